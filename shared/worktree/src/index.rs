//! The **index** of the repository that goes along: the user's own, or one written for a commit's files.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Write},
    path::Path,
    time::SystemTime,
};

use sha1::{Digest, Sha1};
use tree::Mtime;

use crate::{
    error::WorktreeError,
    git::records,
    repo::{Indexed, Repo},
};

/// The extensions only this machine's git has a use for: the other half of a split index, directories in place of their files, what is
/// known of untracked files, and of a file system monitor.
const LOCAL: [&[u8]; 4] = [b"link", b"sdir", b"UNTR", b"FSMN"];

/// Copies a worktree's index to `to`, without what only makes sense here; whether there is one. It keeps its time, by which git tells
/// entries that may have changed unnoticed.
pub(crate) fn copy(repo: &Repo, to: &Path) -> Result<bool, WorktreeError> {
    let from = repo.git_dir.join("index");
    let bytes = match fs::read(&from) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(WorktreeError::read(&from)(error)),
    };
    let time = fs::metadata(&from).and_then(|it| it.modified()).map_err(WorktreeError::read(&from))?;
    write(to, &bytes, time)?;
    if LOCAL.iter().any(|mark| bytes.windows(4).any(|window| window == *mark)) {
        rewrite(repo, to, &["--no-split-index", "--force-write-index"], Vec::new())?;
    }
    Ok(true)
}

/// Takes sizes and times out of a copied index where git finds the files changed. Those of a file that was changed within its size and
/// dated back are as they were: only its inode or ctime told, which a copy cannot keep, so the git of the guest would not look. What has a
/// filter is left as it is, since the guest has no filters and would take what they made of a file for a change.
pub(crate) fn doubt(repo: &Repo, to: &Path, indexed: &[Indexed]) -> Result<(), WorktreeError> {
    let out = repo.git.run(&["diff-files", "--name-only", "-z", "--diff-filter=M", "--ignore-submodules=all"])?;
    if out.is_empty() {
        return Ok(());
    }
    let said = repo.git.feed(&["check-attr", "-z", "--stdin", "filter"], out)?;
    let said: Vec<&[u8]> = records(&said).collect();
    let changed: HashSet<&[u8]> =
        said.chunks_exact(3).filter(|it| it[2] == b"unspecified" || it[2] == b"unset").map(|it| it[0]).collect();
    let mut input = Vec::new();
    for entry in indexed.iter().filter(|entry| changed.contains(&entry.path[..])) {
        input.extend(format!("{:o} {} 0\t", entry.mode, entry.id).into_bytes());
        input.extend(&entry.path);
        input.push(0);
    }
    if input.is_empty() { Ok(()) } else { rewrite(repo, to, &["-z", "--no-split-index", "--index-info"], input) }
}

/// Has git write an index anew, which keeps its time.
fn rewrite(repo: &Repo, index: &Path, args: &[&str], input: Vec<u8>) -> Result<(), WorktreeError> {
    let time = fs::metadata(index).and_then(|it| it.modified()).map_err(WorktreeError::read(index))?;
    let settings = ["index.sparse=false", "core.untrackedCache=false", "core.splitIndex=false"];
    let git = settings.iter().fold(repo.git.clone().env("GIT_INDEX_FILE", index), |git, it| git.setting(*it));
    git.feed(&[&["update-index"], args].concat(), input)?;
    let file = File::options().write(true).open(index).map_err(WorktreeError::write(index))?;
    file.set_modified(time).map_err(WorktreeError::write(index))
}

fn write(to: &Path, bytes: &[u8], time: SystemTime) -> Result<(), WorktreeError> {
    let all = || {
        let mut file = File::create(to)?;
        file.write_all(bytes)?;
        file.set_modified(time)
    };
    all().map_err(WorktreeError::write(to))
}

/// One entry of an index that is written.
pub(crate) struct IndexEntry<'a> {
    pub path: &'a [u8],
    pub mode: u32,
    pub id: &'a str,
    pub size: u64,
    pub mtime: Mtime,
}

/// An index (gitformat-index(5), version 2) of entries in the order of their paths.
pub(crate) fn encode(entries: &[IndexEntry<'_>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.len() * 100 + 32);
    out.extend_from_slice(b"DIRC");
    out.extend_from_slice(&2u32.to_be_bytes());
    out.extend_from_slice(&u32::try_from(entries.len()).unwrap_or(u32::MAX).to_be_bytes());
    for entry in entries {
        let begin = out.len();
        let (seconds, nanos) = (entry.mtime.secs as u32, entry.mtime.nanos);
        // ctime, mtime, device, inode, mode, user, group, size; what is 0 is not compared (core.checkStat=minimal).
        for word in [0, 0, seconds, nanos, 0, 0, entry.mode, 0, 0, entry.size as u32] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        out.extend_from_slice(&hex::decode(entry.id).unwrap_or_default());
        let length = u16::try_from(entry.path.len()).unwrap_or(u16::MAX).min(0xfff);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(entry.path);
        // One to eight zeros, to a multiple of eight.
        let padding = 8 - (out.len() - begin) % 8;
        out.resize(out.len() + padding, 0);
    }
    let digest = Sha1::digest(&out);
    out.extend_from_slice(&digest);
    out
}
