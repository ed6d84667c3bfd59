//! A **remote** repository, cloned once into a bare one in a cache, and captured from there at a commit, with its submodules.

use std::{collections::BTreeSet, path::PathBuf};

use contract::worktree::{ENTRIES_MAX, History};
use tempfile::TempDir;

use crate::{
    address::{Address, Hosts},
    builder::{Builder, join},
    capture::{Captured, NESTED_MAX, Options, about, scratch, up},
    commit::{self, Files},
    config::without_secrets,
    error::WorktreeError,
    fetch::BareClone,
    gitdir::Head,
    repo::{Repo, as_path},
    stat_cache::StatCache,
    stop::Stop,
    submodules::Modules,
};

/// The most submodules that are taken, those within others included: each is a repository to fetch.
const SUBMODULES_MAX: usize = 128;

/// A repository elsewhere.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Where bare clones are kept.
    pub cache: PathBuf,
    /// `https://`, `http://`, `ssh://`, `git://`, or `file://` where it is allowed; without a password.
    pub url: String,
    /// Whether directories of this machine may be named.
    pub allow_file: bool,
    /// Which hosts may be named, by submodules too; left out, all.
    pub hosts: Option<Hosts>,
    /// A file as git-credential-store(1) has it; else whatever helper git is set to use here.
    pub credentials: Option<PathBuf>,
    /// Ends it.
    pub stop: Stop,
}

/// What is wanted of it.
#[derive(Clone, Debug, Default)]
pub struct Checkout {
    /// A branch, tag, or full commit id; left out, the remote's HEAD.
    pub reference: Option<String>,
    /// How much history, of submodules too.
    pub history: History,
}

/// What is being taken: a repository, and all its submodules after it.
struct Taking {
    history: History,
    scratch: TempDir,
    out: Builder,
    /// The bytes of files that may still come.
    left: u64,
    caches: Vec<PathBuf>,
}

/// Where a repository goes in the tree, and its git directory.
#[derive(Clone, Copy)]
struct Place<'a> {
    at: &'a [u8],
    home: &'a [u8],
    level: usize,
}

impl Remote {
    /// Fetches what is new, and captures the files of the commit and its submodules'. One that may not be fetched from where it is, or of which
    /// `.gitmodules` says that it is left out, is an empty directory, of which a warning tells.
    ///
    /// # Errors
    /// The URL is none that is taken, the remote refuses or has no such reference; or that is so of a submodule.
    pub fn capture(&self, checkout: &Checkout) -> Result<Captured, WorktreeError> {
        self.check(&self.url)?;
        let mut all = Taking {
            history: checkout.history,
            scratch: scratch(&self.cache)?,
            out: Builder::default(),
            left: commit::BYTES_MAX,
            caches: Vec::new(),
        };
        let top = Place { at: b"", home: b".git", level: 0 };
        let (repo, head) = self.take(top, &mut all, |clone| clone.fetch(checkout.reference.as_deref()))?;
        let Taking { scratch, out, caches, .. } = all;
        let (tree, warnings) = out.finish(&mut StatCache::default())?;
        let mut about = about(&without_secrets(&self.url), &head, checkout.history);
        about.base = head.commit;
        Ok(Captured {
            tree,
            about,
            warnings,
            root: repo.top.clone(),
            repo: Some(repo),
            time: head.time,
            dirty: Vec::new(),
            ignored: BTreeSet::new(),
            staged: None,
            caches,
            _scratch: scratch,
        })
    }

    /// Whether a repository may be fetched from there.
    fn check(&self, url: &str) -> Result<(), WorktreeError> {
        let shown = without_secrets(url);
        let address = Address::of(url)
            .map_err(|why| WorktreeError::Unsupported(format!("the URL {shown} is not taken: {why}")))?;
        match &self.hosts {
            _ if address.scheme == "file" && self.allow_file => Ok(()),
            _ if address.scheme == "file" => Err(WorktreeError::Unsupported(format!(
                "the URL {shown} is not taken: directories of the service's machine are not allowed"
            ))),
            Some(hosts) if !hosts.name(&address) => Err(WorktreeError::Forbidden(format!(
                "the URL {shown} is not taken: {} is no host that repositories may be fetched from",
                address.host
            ))),
            _ => Ok(()),
        }
    }

    /// Takes a repository. Its clone is nobody else's until its own files are taken, and no longer: two that are submodules of each other
    /// would wait for each other.
    fn take(
        &self,
        place: Place<'_>,
        all: &mut Taking,
        fetch: impl FnOnce(&BareClone<'_>) -> Result<Head, WorktreeError>,
    ) -> Result<(Repo, Head), WorktreeError> {
        let depth = match all.history {
            History::Full => None,
            History::Depth(depth) => Some(depth.max(1)),
            History::None => Some(1),
        };
        let clone = BareClone::open(self, depth)?;
        let head = fetch(&clone)?;
        let repo = clone.repo()?;
        let commit = head.commit.clone().unwrap_or_default();
        let modules = Modules::of(&repo, &commit, &self.url, |url| self.check(url))?;
        // Packs of it are kept in its own directory, and go with it.
        let cache = clone.dir.clone();
        all.caches.push(cache.clone());
        let options = Options { history: all.history, include_ignored: Vec::new(), dirty: false, cache };
        let files =
            Files { repo: &repo, head: &head, commit: &commit, at: place.at, home: place.home, modules: &modules };
        let taken = files.take(&options, all.left, all.scratch.path(), &mut all.out)?;
        drop(clone);
        all.left = all.left.saturating_sub(taken.bytes);
        if all.out.len() as u64 > ENTRIES_MAX {
            return Err(WorktreeError::TooMuch(format!("it and its submodules have more than {ENTRIES_MAX} entries")));
        }
        for (link, module) in taken.links {
            let inner = Self { url: module.url, ..self.clone() };
            inner.take_within(place, &link.path, &module.name, &link.id, all)?;
        }
        Ok((repo, head))
    }

    /// Takes a submodule at a path of what it is in, with a git directory of its own below that one's.
    fn take_within(
        &self,
        outer: Place<'_>,
        path: &[u8],
        name: &str,
        commit: &str,
        all: &mut Taking,
    ) -> Result<(), WorktreeError> {
        let (at, level) = (join(outer.at, path), outer.level + 1);
        let home = join(outer.home, format!("modules/{name}").as_bytes());
        let of = |source| WorktreeError::Submodule { path: as_path(&at), source: Box::new(source) };
        if level > NESTED_MAX || all.caches.len() > SUBMODULES_MAX {
            let limits = format!("there are more than {SUBMODULES_MAX}, or {NESTED_MAX} within each other");
            return Err(of(WorktreeError::TooMuch(limits)));
        }
        let place = Place { at: &at, home: &home, level };
        let taken = self.take(place, all, |clone| clone.commit(commit));
        let (_, head) = taken.map_err(|error| match error {
            // The innermost path says it all.
            WorktreeError::Submodule { .. } | WorktreeError::Stopped => error,
            error => of(error),
        })?;
        if all.history != History::None {
            let link = format!("gitdir: {}{}\n", up(&at), String::from_utf8_lossy(&home));
            let time = tree::Mtime { secs: head.time, nanos: 0 };
            all.out.make(all.scratch.path(), join(&at, b".git"), time, link.as_bytes())?;
        }
        Ok(())
    }
}
