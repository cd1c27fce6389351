#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "scratch")]
fn main() {
    let dir = std::env::args().nth(1).unwrap();
    let q: Vec<f32> = {
        let b = std::fs::read(std::env::args().nth(2).unwrap()).unwrap();
        let h = u16::from_le_bytes([b[8], b[9]]) as usize;
        b[10 + h..10 + h + 4 * 384]
            .chunks_exact(4)
            .map(|c| f32::from_le_bytes(c.try_into().unwrap()))
            .collect()
    };
    let rss = || {
        std::fs::read_to_string("/proc/self/statm")
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse::<usize>()
            .unwrap()
            * 4096
    };
    let r0 = rss();
    let t = std::time::Instant::now();
    let ix = cellardb::Index::open(&dir).unwrap();
    let open = t.elapsed();
    let r = ix.search(&q, 10).unwrap();
    println!(
        "open {open:?} with search {:?} rss +{} MiB rows {} {:?}",
        t.elapsed(),
        (rss() - r0) >> 20,
        ix.len(),
        r[0]
    );
    if std::env::args().nth(3).is_some() {
        for i in 0..200 {
            ix.insert(&q).unwrap();
            if i == 150 {
                unsafe_kill();
            }
        }
    }
}
fn unsafe_kill() {
    std::process::Command::new("kill")
        .arg("-9")
        .arg(std::process::id().to_string())
        .status()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_secs(5));
}
