//! A campaign that is interrupted leaves nothing.

use cellardb_campaign::patience::until;
use cellardb_campaign::scratch::PREFIX;
use rustix::process::{Pid, Signal, kill_process};
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn an_interrupted_campaign_removes_its_files() {
    for signal in [Signal::INT, Signal::TERM] {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_campaign"));
        command.args(["kills", "--count", "100000", "--dir"]).arg(dir.path());
        let mut campaign = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let at_work = || {
            let mut names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap());
            names.any(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
        };
        until("the beginning of the campaign", at_work);
        std::thread::sleep(Duration::from_millis(100));
        kill_process(Pid::from_child(&campaign), signal).unwrap();
        assert_eq!(campaign.wait().unwrap().code(), Some(130));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
