//! What runs, written down for the next agent: whoever kills guest-agent leaves its processes without anybody who reads
//! them, and they are ended then.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use contract::job::{JobName, TERM_GRACE};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use super::entry::About;
use crate::process::Job;

/// The longest record that is read, in bytes.
const RECORD_MAX: u64 = 64 * 1024;

/// The directory of records; none where there is no place for it.
#[derive(Debug)]
pub struct Records(Option<PathBuf>);

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    name: JobName,
    command: String,
    user: String,
    kept: bool,
    tty: bool,
    group: i32,
    /// When its leader was started, in the kernel's ticks: a number that is given again has another.
    started: u64,
}

impl Records {
    /// Opens the directory, and takes what an earlier agent left in it: processes that still run are ended.
    pub fn open(dir: Option<PathBuf>) -> (Self, Vec<About>) {
        let Some(dir) = dir else { return (Self(None), Vec::new()) };
        if let Err(error) = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir) {
            tracing::warn!("jobs cannot be written down: {error}");
            return (Self(None), Vec::new());
        }
        let records = take_all(&dir);
        for record in &records {
            end(record);
        }
        let orphans = records.into_iter().map(|record| About {
            name: record.name,
            command: record.command,
            user: record.user,
            kept: record.kept,
            tty: record.tty,
            timeout: None,
        });
        (Self(Some(dir)), orphans.collect())
    }

    /// Writes a job down.
    pub fn put(&self, about: &About, job: &Job) {
        let Some(dir) = &self.0 else { return };
        let group = job.control().group();
        let Some(started) = start_of(group) else { return };
        let record = Record {
            name: about.name.clone(),
            command: about.command.clone(),
            user: about.user.clone(),
            kept: about.kept,
            tty: about.tty,
            group: group.as_raw(),
            started,
        };
        let written = serde_json::to_vec(&record).map_err(io::Error::from).and_then(|bytes| {
            let (path, fresh) = (dir.join(about.name.as_str()), dir.join(format!("{}.new", about.name)));
            fs::write(&fresh, bytes)?;
            fs::rename(fresh, path)
        });
        if let Err(error) = written {
            tracing::warn!("the job {} is not written down: {error}", about.name);
        }
    }

    /// Forgets one.
    pub fn remove(&self, name: &JobName) {
        if let Some(dir) = &self.0
            && let Err(error) = fs::remove_file(dir.join(name.as_str()))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("the job {name} stays written down: {error}");
        }
    }
}

fn take_all(dir: &Path) -> Vec<Record> {
    let Ok(files) = fs::read_dir(dir) else { return Vec::new() };
    let mut records = Vec::new();
    for file in files.flatten() {
        let small = file.metadata().is_ok_and(|data| data.is_file() && data.len() <= RECORD_MAX);
        let record = small.then(|| fs::read(file.path()).ok()).flatten();
        records.extend(record.and_then(|bytes| serde_json::from_slice(&bytes).ok()));
        fs::remove_file(file.path()).unwrap_or_default();
    }
    records
}

/// Ends what still runs of a job.
fn end(record: &Record) {
    let (group, started) = (Pid::from_raw(record.group), record.started);
    if group.as_raw() <= 1 || start_of(group) != Some(started) {
        return;
    }
    tracing::info!("ending the job {} of an earlier agent", record.name);
    killpg(group, Signal::SIGTERM).unwrap_or_default();
    tokio::spawn(async move {
        let give_up = tokio::time::Instant::now() + TERM_GRACE;
        while start_of(group) == Some(started) {
            if tokio::time::Instant::now() >= give_up {
                killpg(group, Signal::SIGKILL).unwrap_or_default();
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

/// When a process was started: field 22 of `/proc/<pid>/stat` (proc_pid_stat(5)). The second field, its name in parentheses,
/// may hold anything.
fn start_of(process: Pid) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    // A zombie is only waited for.
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;

    #[tokio::test]
    async fn what_an_agent_left_behind_is_ended_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let spawn = || {
            let mut command = std::process::Command::new("sleep");
            command.arg("1000").process_group(0).spawn().unwrap()
        };
        let (mut left, mut stranger) = (spawn(), spawn());
        let record = |name: &str, pid: u32, started: u64| {
            let group = pid as i32;
            let (name, user) = (name.parse().unwrap(), "root".to_owned());
            let record = Record { name, command: "sleep".into(), user, kept: true, tty: false, group, started };
            fs::write(dir.path().join(record.name.as_str()), serde_json::to_vec(&record).unwrap()).unwrap();
        };
        record("left", left.id(), start_of(Pid::from_raw(left.id() as i32)).unwrap());
        // Its number was given to somebody else meanwhile.
        record("reused", stranger.id(), 1);
        fs::write(dir.path().join("torn"), b"{").unwrap();
        let (_, orphans) = Records::open(Some(dir.path().to_owned()));
        let mut names: Vec<_> = orphans.iter().map(|about| about.name.to_string()).collect();
        names.sort();
        assert_eq!(names, ["left", "reused"]);
        assert!(!left.wait().unwrap().success());
        assert!(stranger.try_wait().unwrap().is_none());
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
