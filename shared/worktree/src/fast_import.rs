//! **New commits** through git-fast-import(1): any names, contents of any size, and objects that are there already are not written again.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use tree::BlobHasher;

use crate::{error::WorktreeError, git::Git};

/// What a path becomes.
#[derive(Clone, Debug)]
pub(crate) struct Put {
    pub path: Vec<u8>,
    /// 0o100644, 0o100755 or 0o120000.
    pub mode: u32,
    pub content: Content,
}

/// Where its bytes are.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// In an object that is there.
    Object(String),
    /// In a file, which has this length and blob id.
    File(PathBuf, u64, String),
    /// Here.
    Bytes(Vec<u8>),
}

/// A commit that is made.
#[derive(Clone, Debug)]
pub(crate) struct Making<'a> {
    /// What it comes after.
    pub parent: Option<String>,
    pub message: &'a str,
    /// In seconds since 1970.
    pub time: i64,
    pub deletes: Vec<Vec<u8>>,
    pub puts: Vec<Put>,
}

/// Makes commits, each after the one before where it has no parent of its own, and leads a reference to the last; their ids.
pub(crate) fn import(git: &Git, reference: &str, commits: Vec<Making<'_>>) -> Result<Vec<String>, WorktreeError> {
    let args = ["fast-import", "--quiet", "--force", "--done", "--date-format=raw"];
    let count = commits.len();
    let (out, changed) = git.stream(&args, move |to| write(to, reference, &commits))?;
    let changed =
        changed.map_err(|error| WorktreeError::Git { what: "fast-import".to_owned(), said: error.to_string() })?;
    if let Some(path) = changed {
        return Err(WorktreeError::Changed(path));
    }
    let ids: Vec<String> = String::from_utf8_lossy(&out).lines().map(str::to_owned).collect();
    if ids.len() != count {
        return Err(WorktreeError::Git {
            what: "fast-import".to_owned(),
            said: format!("it made {} commits of {count}", ids.len()),
        });
    }
    Ok(ids)
}

/// Writes the blobs, then the commits; or, where a file was not what it should be, no commit and that file's path.
fn write(to: &mut dyn Write, reference: &str, commits: &[Making<'_>]) -> io::Result<Option<PathBuf>> {
    let mut mark = 0;
    let mut changed = None;
    for put in commits.iter().flat_map(|commit| &commit.puts) {
        mark += 1;
        match &put.content {
            Content::Object(_) => {}
            Content::Bytes(bytes) => {
                write!(to, "blob\nmark :{mark}\ndata {}\n", bytes.len())?;
                to.write_all(bytes)?;
                to.write_all(b"\n")?;
            }
            Content::File(path, size, digest) => {
                write!(to, "blob\nmark :{mark}\ndata {size}\n")?;
                if !copy(to, path, *size, digest)? {
                    changed.get_or_insert_with(|| path.clone());
                }
                to.write_all(b"\n")?;
            }
        }
    }
    if changed.is_none() {
        let first = mark + 1;
        let mut blob = 0;
        for (number, commit) in (first..).zip(commits) {
            write_commit(to, reference, commit, number, (number > first).then(|| number - 1), &mut blob)?;
        }
    }
    to.write_all(b"done\n")?;
    Ok(changed)
}

fn write_commit(
    to: &mut dyn Write,
    reference: &str,
    commit: &Making<'_>,
    mark: usize,
    after: Option<usize>,
    blob: &mut usize,
) -> io::Result<()> {
    write!(to, "commit {reference}\nmark :{mark}\ncommitter Warren <warren@localhost> {} +0000\n", commit.time.max(0))?;
    write!(to, "data {}\n{}\n", commit.message.len(), commit.message)?;
    match (&commit.parent, after) {
        (Some(parent), _) => writeln!(to, "from {parent}")?,
        (None, Some(after)) => writeln!(to, "from :{after}")?,
        (None, None) => {}
    }
    for path in &commit.deletes {
        write!(to, "D ")?;
        write_path(to, path)?;
    }
    for put in &commit.puts {
        *blob += 1;
        match &put.content {
            Content::Object(id) => write!(to, "M {:o} {id} ", put.mode)?,
            Content::Bytes(_) | Content::File(..) => write!(to, "M {:o} :{blob} ", put.mode)?,
        }
        write_path(to, &put.path)?;
    }
    write!(to, "\nget-mark :{mark}\n")
}

/// Writes a path in quotes, as C would.
fn write_path(to: &mut dyn Write, path: &[u8]) -> io::Result<()> {
    let mut out = vec![b'"'];
    for byte in path {
        match byte {
            b'"' | b'\\' => out.extend([b'\\', *byte]),
            0x20..0x7f => out.push(*byte),
            _ => out.extend(format!("\\{byte:03o}").into_bytes()),
        }
    }
    out.extend(b"\"\n");
    to.write_all(&out)
}

/// Writes exactly `size` bytes of a file; whether they were what they should be.
fn copy(to: &mut dyn Write, path: &Path, size: u64, digest: &str) -> io::Result<bool> {
    let mut hash = BlobHasher::new(size);
    let mut left = size;
    let mut piece = vec![0; 64 * 1024];
    if let Ok(mut file) = File::open(path) {
        while left > 0 {
            let wanted = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = match file.read(&mut piece[..wanted]) {
                Ok(0) | Err(_) => break,
                Ok(count) => count,
            };
            hash.update(&piece[..count]);
            to.write_all(&piece[..count])?;
            left -= count as u64;
        }
    }
    // git was promised so many bytes; what is made of these is thrown away.
    let whole = left == 0;
    piece.fill(0);
    while left > 0 {
        let count = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        to.write_all(&piece[..count])?;
        left -= count as u64;
    }
    Ok(whole && hex::encode(hash.finish()) == digest)
}
