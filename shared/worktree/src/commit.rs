//! The **files of a commit**, taken from its objects as they are: what a bare repository has, and what `--dirty=no` means.

use std::path::Path;

use contract::{
    FileName,
    worktree::{History, Node},
};
use tree::Mtime;

use crate::{
    blobs,
    builder::{Builder, join},
    capture::{Options, up},
    error::WorktreeError,
    gitdir::{Head, Making},
    index::{self, IndexEntry},
    repo::{self, Indexed, Repo},
    submodules::{Module, Modules, shown},
};

/// The most bytes that the files of a commit may have, when they are written: one object may be many files, and a few kilobytes any number of
/// bytes.
pub(crate) const BYTES_MAX: u64 = 8 << 30;

/// What to take, and where it goes.
pub(crate) struct Files<'a> {
    pub repo: &'a Repo,
    pub head: &'a Head,
    /// The commit.
    pub commit: &'a str,
    /// Its files' place in the tree.
    pub at: &'a [u8],
    /// Its git directory's place.
    pub home: &'a [u8],
    /// Its submodules.
    pub modules: &'a Modules,
}

/// What was taken.
pub(crate) struct Taken {
    /// The bytes of its files.
    pub bytes: u64,
    /// The submodules that are to be taken, and their commits.
    pub links: Vec<(Indexed, Module)>,
}

impl Files<'_> {
    /// Writes the files, of at most so many bytes, into `scratch` and adds them, with a git directory that says they are unchanged. Of a
    /// submodule there is an empty directory.
    pub(crate) fn take(
        &self,
        options: &Options,
        most: u64,
        scratch: &Path,
        out: &mut Builder,
    ) -> Result<Taken, WorktreeError> {
        let mut taken = Taken { bytes: 0, links: Vec::new() };
        let listed = repo::tree_within(&self.repo.git, self.commit, most)?;
        let mtime = Mtime { secs: self.head.time, nanos: 0 };
        let blobs: Vec<_> = listed
            .iter()
            .filter(|it| it.mode != 0o160_000)
            .map(|it| (it.id.clone(), out.scratch_file(scratch)))
            .collect();
        let mut sizes = blobs::write_out(&self.repo.git, &blobs)?.into_iter().zip(blobs);
        let mut entries = Vec::with_capacity(listed.len());
        for it in &listed {
            let path = join(self.at, &it.path);
            let mut size = 0;
            if it.mode == 0o160_000 {
                match self.modules.at(&it.path) {
                    Ok(module) => taken.links.push((it.clone(), module.clone())),
                    Err(why) => out.warn(format!("the submodule {} is empty: {why}", shown(&path))),
                }
                out.put(path, mtime, Node::Directory { mode: 0o755 }, None);
            } else if let Some((length, (id, from))) = sizes.next() {
                size = length;
                taken.bytes += length;
                if it.mode == 0o120_000 {
                    let target = std::fs::read(&from).map_err(WorktreeError::read(&from))?;
                    out.put(path, mtime, Node::Symlink { target: FileName(target) }, None);
                } else {
                    let mode = if it.mode & 0o100 == 0 { 0o644 } else { 0o755 };
                    out.put(path, mtime, Node::File { mode, size, digest: id }, Some(from));
                }
            }
            entries.push(IndexEntry { path: &it.path, mode: it.mode, id: &it.id, size, mtime });
        }
        if options.history == History::None {
            return Ok(taken);
        }
        let made = out.scratch_file(scratch);
        std::fs::write(&made, index::encode(&entries)).map_err(WorktreeError::write(&made))?;
        // Later than all it tells of, so that git trusts it.
        let index = Some((made, Mtime { secs: self.head.time + 1, nanos: 0 }));
        let Self { repo, head, home, at, modules, .. } = *self;
        let (history, cache) = (options.history, &*options.cache);
        Making {
            repo,
            head,
            history,
            index,
            staged: None,
            home,
            worktree: (!at.is_empty()).then(|| up(home) + &String::from_utf8_lossy(at)),
            seen: if at.is_empty() { String::new() } else { up(at) } + &String::from_utf8_lossy(home),
            modules,
            scratch,
            cache,
        }
        .build(out)?;
        Ok(taken)
    }
}
