//! File systems in a file, mounted through a loop device (needs root).

use crate::scratch::undo;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Runs a command of the system; what it answered if it failed.
pub fn system(program: &str, words: &[&str]) -> Result<(), String> {
    let line = format!("{program} {}", words.join(" "));
    // In a group of its own: Ctrl-C is not for it.
    let out = Command::new(program).args(words).process_group(0).output();
    let out = out.map_err(|e| format!("`{line}`: {e}"))?;
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    Err(format!("`{line}` ended with {}: {}", out.status, said.trim()))
}

/// An image that is mounted as long as this lives.
#[derive(Debug)]
pub struct Image {
    pub image: PathBuf,
    pub at: PathBuf,
}

impl Image {
    /// Makes the file and the directory to mount it at.
    pub fn create(&self, len: u64) -> Result<(), String> {
        std::fs::create_dir(&self.at).map_err(|e| e.to_string())?;
        let image = std::fs::File::create(&self.image).map_err(|e| e.to_string())?;
        image.set_len(len).map_err(|e| e.to_string())
    }

    pub fn mount(&self, options: &str) -> Result<(), String> {
        self.mount_as(&["-o", &format!("loop,{options}"), &self.image.to_string_lossy()])
    }

    /// Mounts what the words say.
    pub fn mount_as(&self, words: &[&str]) -> Result<(), String> {
        let (mut undo, at) = (undo(), self.at.to_string_lossy());
        undo.mounts.push(self.at.clone());
        system("mount", &[words, &[&at]].concat())
    }

    pub fn umount(&self) -> Result<(), String> {
        let (mut undo, at) = (undo(), self.at.to_string_lossy());
        // What was killed may take a moment to let go.
        let mut last = system("umount", &[&at]);
        for _ in 0..200 {
            if last.is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
            last = system("umount", &[&at]);
        }
        last.inspect(|()| undo.mounts.retain(|mounted| *mounted != self.at))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _undo = undo();
        let _ = system("umount", &["-q", &self.at.to_string_lossy()]);
    }
}
