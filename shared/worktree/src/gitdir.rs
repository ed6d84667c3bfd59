//! The guest's **git directory**, built of plain files: no hooks, no logs, no other branches than the one that is checked out, its upstream
//! and the tags of its history.

use std::{
    fs,
    path::{Path, PathBuf},
};

use contract::worktree::{History, Node};
use tree::Mtime;

use crate::{
    builder::{Builder, join},
    config::{self, Settings},
    error::WorktreeError,
    packs::{self, Pack, PackCache, Wanted},
    repo::Repo,
    submodules::Modules,
};

/// Where the attributes are that the user has for all repositories.
const USUAL_ATTRIBUTES: &str = "info/usual-attributes";

/// Where HEAD is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// Its commit; none before the first.
    pub commit: Option<String>,
    /// `refs/heads/…`; none when detached.
    pub branch: Option<String>,
    /// Its upstream.
    pub upstream: Option<Upstream>,
    /// When the commit was made, in seconds since 1970: the time of files that have none of their own.
    pub time: i64,
}

/// What a branch follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Upstream {
    /// `refs/remotes/origin/main`
    pub local: String,
    /// `origin/main`
    pub short: String,
    /// `origin`
    pub remote: String,
    /// `refs/heads/main`
    pub merge: String,
    /// The commit it is at; none where it was never fetched.
    pub commit: Option<String>,
}

impl Head {
    /// Reads a repository's.
    pub(crate) fn of(repo: &Repo) -> Result<Self, WorktreeError> {
        let commit = repo.commit("HEAD")?;
        let branch = repo.branch()?;
        let upstream = match &branch {
            Some(branch) => upstream(repo, branch)?,
            None => None,
        };
        Ok(Self { time: time(repo, commit.as_deref())?, commit, branch, upstream })
    }

    /// The branch's name.
    pub(crate) fn branch_name(&self) -> Option<&str> {
        self.branch.as_deref().and_then(|name| name.strip_prefix("refs/heads/"))
    }
}

/// When a commit was made.
pub(crate) fn time(repo: &Repo, commit: Option<&str>) -> Result<i64, WorktreeError> {
    let Some(commit) = commit else { return Ok(0) };
    let said = repo.git.text(&["show", "--no-patch", "--format=%ct", "--no-show-signature", commit])?;
    Ok(said.trim().parse().unwrap_or(0))
}

fn upstream(repo: &Repo, branch: &str) -> Result<Option<Upstream>, WorktreeError> {
    let format = "%(upstream)%00%(upstream:short)%00%(upstream:remotename)%00%(upstream:remoteref)";
    let said = repo.git.text(&["for-each-ref", "--count=1", &format!("--format={format}"), branch])?;
    let words: Vec<&str> = said.split('\0').collect();
    let [local, short, remote, merge] = words[..] else { return Ok(None) };
    if local.is_empty() || remote.is_empty() {
        return Ok(None);
    }
    let [local, short, remote, merge] = [local, short, remote, merge].map(str::to_owned);
    Ok(Some(Upstream { commit: repo.commit(&local)?, local, short, remote, merge }))
}

/// What a git directory is made of.
pub(crate) struct Making<'a> {
    pub repo: &'a Repo,
    pub head: &'a Head,
    pub history: History,
    /// The index, as a file; none where there is none.
    pub index: Option<(PathBuf, Mtime)>,
    /// The tree of the index, whose objects must be there; git's objects and those in this directory.
    pub staged: Option<(String, PathBuf)>,
    /// The git directory's place in the guest's tree.
    pub home: &'a [u8],
    /// How its files are reached from there, where it is a submodule's.
    pub worktree: Option<String>,
    /// Its place as it is seen from the top of its files, where git looks for relative names.
    pub seen: String,
    /// Submodules that its own settings do not name.
    pub modules: &'a Modules,
    /// Where files are made.
    pub scratch: &'a Path,
    /// The user's cache.
    pub cache: &'a Path,
}

impl Making<'_> {
    /// Makes it.
    pub(crate) fn build(&self, out: &mut Builder) -> Result<(), WorktreeError> {
        let time = Mtime { secs: self.head.time, nanos: 0 };
        let settings = Settings::of(self.repo)?;
        let tags = if self.history == History::Full { self.tags()? } else { Vec::new() };
        let upstream = self.head.upstream.as_ref();
        let branch = upstream.and_then(|it| Some((self.head.branch_name()?, it.remote.as_str(), it.merge.as_str())));
        let boundary = self.boundary()?;
        // What holds in all the user's repositories counts less than what is in this one, so it is a file of its own there too.
        let usual = config::usual(self.repo, "core.attributesFile", "attributes")?;
        let attributes = (!usual.is_empty()).then(|| format!("{}/{USUAL_ATTRIBUTES}", self.seen));
        let config = settings.for_guest(branch, self.worktree.as_deref(), attributes.as_deref(), self.modules);
        let excluded = [config::usual(self.repo, "core.excludesFile", "ignore")?, config::info(self.repo, "exclude")?];
        let mut files: Vec<(&[u8], Vec<u8>)> = vec![
            (b"config", config.into_bytes()),
            (b"HEAD", self.head_text().into_bytes()),
            (b"packed-refs", self.packed_refs(&tags).into_bytes()),
            (b"info/exclude", excluded.concat()),
        ];
        for (name, text) in [(USUAL_ATTRIBUTES, usual), ("info/attributes", config::info(self.repo, "attributes")?)] {
            if !text.is_empty() {
                files.push((name.as_bytes(), text));
            }
        }
        if let Ok(sparse) = fs::read(self.repo.git_dir.join("info/sparse-checkout")) {
            files.push((b"info/sparse-checkout", sparse));
        }
        if !boundary.is_empty() {
            files.push((b"shallow", (boundary.join("\n") + "\n").into_bytes()));
        }
        let branch_file = self.head.branch.clone().zip(self.head.commit.clone());
        if let Some((name, commit)) = &branch_file {
            files.push((name.as_bytes(), format!("{commit}\n").into_bytes()));
        }
        for (name, content) in files {
            out.make(self.scratch, join(self.home, name), time, &content)?;
        }
        for directory in [&b"refs/heads"[..], b"refs/tags", b"objects/info", b"objects/pack"] {
            out.put(join(self.home, directory), time, Node::Directory { mode: 0o755 }, None);
        }
        if let Some((index, mtime)) = &self.index {
            out.put_file(join(self.home, b"index"), *mtime, index.clone())?;
        }
        self.packs(out, &tags, boundary)
    }

    fn head_text(&self) -> String {
        match (&self.head.branch, &self.head.commit) {
            (Some(branch), _) => format!("ref: {branch}\n"),
            (None, Some(commit)) => format!("{commit}\n"),
            (None, None) => "ref: refs/heads/main\n".to_owned(),
        }
    }

    /// Tags that HEAD reaches: name, object, and what it leads to where it is an object of its own.
    fn tags(&self) -> Result<Vec<(String, String, String)>, WorktreeError> {
        let Some(commit) = &self.head.commit else { return Ok(Vec::new()) };
        let format = "--format=%(refname)%00%(objectname)%00%(*objectname)%00";
        let said = self.repo.git.run(&["for-each-ref", &format!("--merged={commit}"), format, "refs/tags"])?;
        let lines = said.split(|byte| *byte == b'\n').filter_map(|line| {
            let words: Vec<_> =
                line.split(|byte| *byte == 0).map(|word| String::from_utf8(word.to_vec()).ok()).collect();
            match &words[..] {
                [Some(name), Some(id), Some(peeled), ..] => Some((name.clone(), id.clone(), peeled.clone())),
                _ => None,
            }
        });
        Ok(lines.collect())
    }

    fn packed_refs(&self, tags: &[(String, String, String)]) -> String {
        let upstream = self.head.upstream.iter().filter(|it| Some(&it.local) != self.head.branch.as_ref());
        let upstream = upstream.filter_map(|it| Some((it.local.clone(), it.commit.clone()?, String::new())));
        let mut refs: Vec<_> = upstream.chain(tags.iter().cloned()).collect();
        refs.sort_unstable();
        let lines = refs.into_iter().map(|(name, id, peeled)| {
            let peeled = if peeled.is_empty() { String::new() } else { format!("^{peeled}\n") };
            format!("{id} {name}\n{peeled}")
        });
        std::iter::once("# pack-refs with: peeled fully-peeled sorted \n".to_owned()).chain(lines).collect()
    }

    fn tips(&self) -> Vec<String> {
        let upstream = self.head.upstream.as_ref().and_then(|it| it.commit.clone());
        self.head.commit.clone().into_iter().chain(upstream).collect()
    }

    /// The commits whose parents do not go along.
    fn boundary(&self) -> Result<Vec<String>, WorktreeError> {
        let tips = self.tips();
        let mut boundary = match self.history {
            _ if tips.is_empty() => Vec::new(),
            History::Depth(depth) => packs::boundary(self.repo, &tips, depth)?,
            History::Full | History::None => packs::shallow(self.repo)?,
        };
        boundary.sort_unstable();
        boundary.dedup();
        Ok(boundary)
    }

    fn packs(
        &self,
        out: &mut Builder,
        tags: &[(String, String, String)],
        shallow: Vec<String>,
    ) -> Result<(), WorktreeError> {
        let cache = PackCache::open(self.cache, self.repo)?;
        let mut tips = self.tips();
        let mut packs = Vec::new();
        if !tips.is_empty() {
            tips.extend(tags.iter().map(|(_, id, _)| id.clone()));
            let (set, grows) = match self.history {
                History::Depth(depth) => (format!("depth-{depth}"), false),
                History::Full | History::None => ("full".to_owned(), true),
            };
            let wanted = Wanted { tips, without: Vec::new(), shallow: shallow.clone() };
            packs = cache.packs(&self.repo.git, &set, wanted, grows)?;
        }
        if let Some((tree, objects)) = &self.staged {
            let known = match &self.head.commit {
                Some(commit) => Some(self.repo.git.text(&["rev-parse", "--verify", &format!("{commit}^{{tree}}")])?),
                None => None,
            };
            if known.as_ref() != Some(tree) {
                let wanted = Wanted { tips: vec![tree.clone()], without: known.into_iter().collect(), shallow };
                packs.extend(cache.packs(&self.repo.with_objects(objects), "index", wanted, false)?);
            }
        }
        for pack in packs {
            self.link(&cache.dir, &pack, out)?;
        }
        Ok(())
    }

    /// Links a pack into the scratch directory, where it stays as long as the capture.
    fn link(&self, dir: &Path, pack: &Pack, out: &mut Builder) -> Result<(), WorktreeError> {
        for (ending, (size, digest)) in [("pack", &pack.pack), ("idx", &pack.index)] {
            let name = format!("{}.{ending}", pack.name);
            let (from, link) = (dir.join(&name), self.scratch.join(&name));
            if let Err(error) = fs::hard_link(&from, &link)
                && error.kind() != std::io::ErrorKind::AlreadyExists
            {
                return Err(WorktreeError::write(&link)(error));
            }
            let metadata = fs::metadata(&link).map_err(WorktreeError::read(&link))?;
            let node = Node::File { mode: 0o444, size: *size, digest: digest.clone() };
            let path = join(self.home, format!("objects/pack/{name}").as_bytes());
            out.put(path, Mtime { nanos: 0, ..Mtime::of(&metadata) }, node, Some(link));
        }
        Ok(())
    }
}
