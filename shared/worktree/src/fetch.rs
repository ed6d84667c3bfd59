//! A **fetch**: what is new at a remote, into its bare clone in the cache.

use std::{
    fs::File,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use sha2::{Digest, Sha256};

use crate::{
    address::SCHEMES,
    cache,
    config::without_secrets,
    error::WorktreeError,
    git::{Bounds, Git},
    gitdir::{Head, Upstream, time},
    packs::is_id,
    remote::Remote,
    repo::Repo,
};

/// How long one fetch may take, and another may be waited for.
const LIMIT: Duration = Duration::from_secs(1800);
/// The most bytes of one pack that is fetched.
const PACK_MAX: u64 = 8 << 30;
/// How often a lock that another has is looked at: another process of this machine's, or another repository's submodule, so rarely.
const LOOK: Duration = Duration::from_millis(50);

/// A bare clone in the cache, which nobody else has meanwhile: two fetches into one would wait for git's own locks and fail.
pub(crate) struct BareClone<'a> {
    remote: &'a Remote,
    /// Its directory.
    pub dir: PathBuf,
    depth: Option<u32>,
    _lock: Flock<File>,
}

enum Found {
    Reference(String),
    Commit(String),
}

impl<'a> BareClone<'a> {
    /// Makes it, where it is not there.
    pub(crate) fn open(remote: &'a Remote, depth: Option<u32>) -> Result<Self, WorktreeError> {
        let key = format!("{} {depth:?}", remote.url);
        let dir = remote.cache.join("remotes").join(hex::encode(Sha256::digest(key)));
        cache::make(&dir)?;
        let lock = File::create(dir.join("warren.lock")).map_err(WorktreeError::write(&dir))?;
        let lock = alone(lock, &dir, remote)?;
        let git = Git::at(&dir);
        if !dir.join("HEAD").exists() {
            git.run(&["init", "--quiet", "--bare", "--template=", "--object-format=sha1", "."])?;
            git.run(&["config", "remote.origin.url", &without_secrets(&remote.url)])?;
            git.run(&["config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*"])?;
        }
        Ok(Self { remote, dir, depth, _lock: lock })
    }

    /// The repository.
    pub(crate) fn repo(&self) -> Result<Repo, WorktreeError> {
        let gone = || WorktreeError::Absent(format!("{} is no repository any more", self.dir.display()));
        let repo = Repo::find(&self.dir)?.ok_or_else(gone)?;
        Ok(Repo { git: repo.git.stopped_by(&self.remote.stop), ..repo })
    }

    /// Fetches a branch, tag or commit; left out, the remote's HEAD.
    pub(crate) fn fetch(&self, name: Option<&str>) -> Result<Head, WorktreeError> {
        let found = self.find(name)?;
        let (source, branch) = match &found {
            Found::Reference(name) => (name.clone(), name.strip_prefix("refs/heads/").map(str::to_owned)),
            Found::Commit(id) => (id.clone(), None),
        };
        let local = local(&source);
        let tags = self.depth.is_none().then_some("+refs/tags/*:refs/tags/*");
        let wanted = format!("+{source}:{local}");
        let fetched = self.run(self.depth, std::iter::once(wanted.as_str()).chain(tags));
        match (&found, fetched) {
            // An old server gives what a branch or tag is at only, and what that reaches.
            (Found::Commit(id), Err(WorktreeError::Git { said, .. })) if said.contains("unadvertised object") => {
                self.run(None, ["+refs/heads/*:refs/warren/all/heads/*", "+refs/tags/*:refs/warren/all/tags/*"])?;
                let here = self.repo()?.commit(id)?;
                let id = here.ok_or_else(|| self.absent(&format!("has no commit {id}")))?;
                self.git().run(&["update-ref", &local, &id])?;
            }
            (_, fetched) => fetched?,
        }
        self.head(&source, branch)
    }

    /// A commit, which is fetched only where it is not here yet.
    pub(crate) fn commit(&self, id: &str) -> Result<Head, WorktreeError> {
        match self.repo()?.commit(&local(id))? {
            Some(here) if here == id => self.head(id, None),
            _ => self.fetch(Some(id)),
        }
    }

    fn head(&self, source: &str, branch: Option<String>) -> Result<Head, WorktreeError> {
        let repo = self.repo()?;
        let commit = repo.commit(&local(source))?;
        let commit = commit.ok_or_else(|| WorktreeError::Absent(format!("{source} leads to no commit")))?;
        let upstream = branch.as_ref().map(|name| Upstream {
            local: format!("refs/remotes/origin/{name}"),
            short: format!("origin/{name}"),
            remote: "origin".to_owned(),
            merge: source.to_owned(),
            commit: Some(commit.clone()),
        });
        let time = time(&repo, Some(&commit))?;
        Ok(Head { commit: Some(commit), branch: branch.map(|name| format!("refs/heads/{name}")), upstream, time })
    }

    fn run<'r>(&self, depth: Option<u32>, refs: impl IntoIterator<Item = &'r str>) -> Result<(), WorktreeError> {
        let mut args = vec!["fetch".to_owned(), "--quiet".into(), "--force".into(), "--no-write-fetch-head".into()];
        args.extend(depth.map(|depth| format!("--depth={depth}")));
        args.extend(["--no-tags", "--prune", "--no-recurse-submodules", "--", &self.remote.url].map(str::to_owned));
        args.extend(refs.into_iter().map(str::to_owned));
        self.git().run(&args).map(drop)
    }

    /// What a name is on the remote: its full reference, or a commit id.
    fn find(&self, name: Option<&str>) -> Result<Found, WorktreeError> {
        let (git, url) = (self.git(), self.remote.url.as_str());
        let Some(name) = name else {
            let said = git.text(&["ls-remote", "--symref", "--", url, "HEAD"])?;
            let branch =
                said.lines().find_map(|line| line.strip_prefix("ref: ")?.split('\t').next().map(str::to_owned));
            // A detached HEAD is a commit only.
            let commit = || said.lines().find_map(|line| line.strip_suffix("\tHEAD")).filter(|id| is_id(id));
            let found = branch.map(Found::Reference).or_else(|| commit().map(|id| Found::Commit(id.to_owned())));
            return found.ok_or_else(|| self.absent("has no HEAD"));
        };
        if is_id(name) {
            return Ok(Found::Commit(name.to_ascii_lowercase()));
        }
        let wanted = [name.to_owned(), format!("refs/heads/{name}"), format!("refs/tags/{name}")];
        let said = git.text(&["ls-remote", "--", url, &wanted[0], &wanted[1], &wanted[2]])?;
        let names: Vec<&str> = said.lines().filter_map(|line| line.split('\t').nth(1)).collect();
        let found = wanted.iter().find(|wanted| wanted.starts_with("refs/") && names.contains(&wanted.as_str()));
        found.cloned().map(Found::Reference).ok_or_else(|| self.absent(&format!("has no branch or tag {name:?}")))
    }

    fn absent(&self, what: &str) -> WorktreeError {
        WorktreeError::Absent(format!("{} {what}", without_secrets(&self.remote.url)))
    }

    /// Git that speaks to the remote, and by no other way than those that are spoken: this counts more than what the service's user has set.
    fn git(&self) -> Git {
        let remote = self.remote;
        let file = remote.allow_file.then_some("file");
        let schemes: Vec<&str> = SCHEMES.iter().map(|(scheme, _)| *scheme).chain(file).collect();
        // Where hosts are listed, a listed one must not name others.
        let redirects = if remote.hosts.is_some() { "false" } else { "initial" };
        let mut git = Git::at(&self.dir)
            .within(LIMIT)
            .stopped_by(&remote.stop)
            .bounded(Bounds { memory: None, file: Some(PACK_MAX) })
            .env("GIT_ALLOW_PROTOCOL", schemes.join(":"))
            .env("GIT_SSH_COMMAND", "ssh -o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=15")
            .env("GIT_ASKPASS", "true")
            .setting("transfer.fsckObjects=true")
            .setting("transfer.bundleURI=false")
            .setting("fetch.uriProtocols=")
            .setting(format!("http.followRedirects={redirects}"))
            .setting("http.lowSpeedLimit=1000")
            .setting("http.lowSpeedTime=60");
        if let Some(file) = &remote.credentials {
            let quoted = file.to_string_lossy().replace('\'', "'\\''");
            git = git.setting("credential.helper=").setting(format!("credential.helper=store --file='{quoted}'"));
        }
        git
    }
}

/// Where what a name led to is kept: under no name of the remote's, of which one may come to be a directory of another.
fn local(source: &str) -> String {
    format!("refs/warren/at/{}", hex::encode(Sha256::digest(source)))
}

fn alone(mut file: File, dir: &Path, remote: &Remote) -> Result<Flock<File>, WorktreeError> {
    let began = Instant::now();
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EWOULDBLOCK)) if began.elapsed() < LIMIT => file,
            Err((_, error)) => return Err(WorktreeError::Write { path: dir.to_owned(), source: error.into() }),
        };
        remote.stop.check()?;
        thread::sleep(LOOK);
    }
}
