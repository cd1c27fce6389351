#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "scratch")]
use cellardb::*;
use std::time::Instant;
fn npy(p: &str) -> (usize, usize, Vec<f32>) {
    let b = std::fs::read(p).unwrap();
    let h = u16::from_le_bytes([b[8], b[9]]) as usize;
    let s = String::from_utf8_lossy(&b[10..10 + h]).to_string();
    let sh = s.split("'shape': (").nth(1).unwrap().split(')').next().unwrap();
    let v: Vec<usize> = sh.split(',').filter_map(|x| x.trim().parse().ok()).collect();
    (
        v[0],
        v[1],
        b[10 + h..].chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect(),
    )
}
fn npyi(p: &str) -> Vec<u32> {
    let b = std::fs::read(p).unwrap();
    let h = u16::from_le_bytes([b[8], b[9]]) as usize;
    b[10 + h..].chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect()
}
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let d = &a[1];
    let kind = a.get(2).map_or("auto", |s| s.as_str());
    let lim: usize = a.get(3).and_then(|x| x.parse().ok()).unwrap_or(usize::MAX);
    let dir = "/work/bench/try.cellar";
    let _ = std::fs::remove_dir_all(dir);
    let (n, dim, x) = npy(&format!("{d}/base.npy"));
    let n = n.min(lim);
    let (_, _, q) = npy(&format!("{d}/query.npy"));
    let t = npyi(&format!("{d}/truth.npy"));
    let m = if std::fs::read_to_string(format!("{d}/metric.txt")).unwrap().contains("ip") {
        Metric::InnerProduct
    } else {
        Metric::L2
    };
    let k = match kind {
        "exact" => Kind::Exact,
        "flat" => Kind::IvfFlat,
        _ => Kind::Auto,
    };
    let bits = if kind == "pq8" { 8 } else { 4 };
    let last = std::sync::Mutex::new(("", Instant::now()));
    let ix = Index::options(dim)
        .metric(m)
        .kind(k)
        .pq_bits(bits)
        .maintenance(Maintenance::Manual)
        .progress(move |p| {
            let mut l = last.lock().unwrap();
            if l.0 != p.stage {
                println!("  {} .. ({:.1}s)", p.stage, l.1.elapsed().as_secs_f32());
                *l = (p.stage, Instant::now());
            }
        })
        .create(dir)
        .unwrap();
    let t0 = Instant::now();
    for c in x[..n * dim].chunks(8192 * dim) {
        ix.insert_many(c).unwrap();
    }
    println!("insert {:?}", t0.elapsed());
    let t0 = Instant::now();
    ix.train().unwrap();
    println!("train {:?}", t0.elapsed());
    println!("{:?}", ix.stats());
    for r in [0.9, 0.95, 0.99] {
        let t0 = Instant::now();
        let mut hit = 0;
        let nq = 1000;
        let (mut codes, mut cells, mut lists) = (0, 0, 0);
        for i in 0..nq {
            let a = ix.query(&q[i * dim..(i + 1) * dim]).recall(r).explain().unwrap();
            codes += a.codes;
            cells += a.cells;
            lists += a.lists;
            hit +=
                a.hits.iter().filter(|h| t[i * 100..i * 100 + 10].contains(&(h.0 as u32))).count();
        }
        let e = t0.elapsed();
        println!(
            "recall {r}: {:.4} {:.0} qps codes {} cells {} lists {}",
            hit as f32 / 10.0 / nq as f32,
            nq as f32 / e.as_secs_f32(),
            codes / nq,
            cells / nq,
            lists / nq
        );
    }
    let t0 = Instant::now();
    drop(ix);
    println!("close {:?}", t0.elapsed());
    let t0 = Instant::now();
    let ix = Index::open(dir).unwrap();
    println!("open {:?}", t0.elapsed());
    ix.search(&q[..dim], 10).unwrap();
    println!("open+search {:?}", t0.elapsed());
    let t0 = Instant::now();
    println!("{:?} {:?}", ix.verify().unwrap(), t0.elapsed());
    let t0 = Instant::now();
    for i in 0..300 {
        ix.insert(&x[i * dim..(i + 1) * dim]).unwrap();
    }
    println!("insert/s {:.0}", 300.0 / t0.elapsed().as_secs_f32());
    let t0 = Instant::now();
    ix.flush().unwrap();
    println!("flush {:?}", t0.elapsed());
    for i in (0..n).step_by(7) {
        ix.remove_many(&[i]).unwrap();
        if i > 700 {
            break;
        }
    }
    let t0 = Instant::now();
    println!("compact {:?} {:?}", ix.compact().unwrap(), t0.elapsed());
    println!("{:?}", ix.verify().unwrap().damage.len());
}
