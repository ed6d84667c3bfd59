//! A **remote** repository, cloned once into a bare one in a cache, and captured from there at a commit.

use std::{
    collections::BTreeSet,
    fs::File,
    path::{Path, PathBuf},
    time::Duration,
};

use contract::worktree::History;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use crate::{
    builder::Builder,
    cache,
    capture::{Captured, Options, about, scratch},
    commit::Files,
    config::without_secrets,
    error::WorktreeError,
    git::{Bounds, Git},
    gitdir::{Head, Upstream, time},
    packs::is_id,
    repo::Repo,
    stat_cache::StatCache,
};

/// How long one fetch may take.
const FETCH_LIMIT: Duration = Duration::from_secs(1800);
/// The most bytes of one pack that is fetched.
const PACK_MAX: u64 = 8 << 30;
/// The schemes that are spoken; `file` where it is allowed.
const SCHEMES: [&str; 4] = ["https", "http", "ssh", "git"];

/// A repository elsewhere.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Where bare clones are kept.
    pub cache: PathBuf,
    /// `https://`, `http://`, `ssh://`, `git://`, or `file://` where it is allowed; without a password.
    pub url: String,
    /// Whether directories of this machine may be named.
    pub allow_file: bool,
    /// A file as git-credential-store(1) has it; else whatever helper git is set to use here.
    pub credentials: Option<PathBuf>,
}

/// What is wanted of it.
#[derive(Clone, Debug, Default)]
pub struct Checkout {
    /// A branch, tag, or full commit id; left out, the remote's HEAD.
    pub reference: Option<String>,
    /// How much history.
    pub history: History,
}

impl Remote {
    /// Fetches what is new, and captures the files of the commit. Submodules are left empty.
    ///
    /// # Errors
    /// The URL is none that is taken, the remote refuses or has no such reference.
    pub fn capture(&self, checkout: &Checkout) -> Result<Captured, WorktreeError> {
        self.check()?;
        let depth = match checkout.history {
            History::Full => None,
            History::Depth(depth) => Some(depth.max(1)),
            History::None => Some(1),
        };
        let key = format!("{} {depth:?}", self.url);
        let dir = self.cache.join("remotes").join(hex::encode(Sha256::digest(key)));
        cache::make(&dir)?;
        let lock = File::create(dir.join("warren.lock")).map_err(WorktreeError::write(&dir))?;
        // Held until the capture is made: two fetches into one repository would wait for git's own locks and fail.
        let _lock = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, error)| WorktreeError::Write { path: dir.clone(), source: error.into() })?;
        let git = Git::at(&dir);
        if !dir.join("HEAD").exists() {
            git.run(&["init", "--quiet", "--bare", "--template=", "--object-format=sha1", "."])?;
            git.run(&["config", "remote.origin.url", &without_secrets(&self.url)])?;
            git.run(&["config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*"])?;
        }
        let found = self.find(&dir, checkout.reference.as_deref())?;
        let head = self.fetch(&dir, found, depth)?;
        self.files(&dir, &head, checkout.history)
    }

    fn check(&self) -> Result<(), WorktreeError> {
        let refuse =
            |why: &str| Err(WorktreeError::Unsupported(format!("{} is not taken: {why}", without_secrets(&self.url))));
        let Some((scheme, rest)) = self.url.split_once("://") else {
            return refuse("it has no scheme such as https://");
        };
        let host = rest.split('/').next().unwrap_or_default();
        let user = host.rsplit_once('@').map(|(user, _)| user);
        match scheme {
            "file" if self.allow_file => Ok(()),
            "file" => refuse("directories of the service's machine are not allowed"),
            _ if !SCHEMES.contains(&scheme) => refuse("its scheme is none of https, http, ssh, git"),
            _ if user.is_some_and(|user| user.contains(':') || scheme.starts_with("http")) => {
                refuse("it holds credentials; they belong into a credential helper or file")
            }
            _ if host.starts_with('-') || host.is_empty() => refuse("it names no host"),
            _ => Ok(()),
        }
    }

    /// Git that speaks to the remote.
    fn git(&self, dir: &Path) -> Git {
        let mut git = Git::at(dir)
            .within(FETCH_LIMIT)
            .bounded(Bounds { memory: None, file: Some(PACK_MAX) })
            .env("GIT_SSH_COMMAND", "ssh -o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=15")
            .env("GIT_ASKPASS", "true")
            .setting("protocol.allow=never")
            .setting("transfer.fsckObjects=true")
            .setting("http.lowSpeedLimit=1000")
            .setting("http.lowSpeedTime=60");
        for scheme in SCHEMES.iter().chain(self.allow_file.then_some(&"file")) {
            git = git.setting(format!("protocol.{scheme}.allow=always"));
        }
        if let Some(file) = &self.credentials {
            let quoted = file.to_string_lossy().replace('\'', "'\\''");
            git = git.setting("credential.helper=").setting(format!("credential.helper=store --file='{quoted}'"));
        }
        git
    }

    /// What a name is on the remote: its full reference, or a commit id.
    fn find(&self, dir: &Path, name: Option<&str>) -> Result<Found, WorktreeError> {
        let git = self.git(dir);
        let Some(name) = name else {
            let said = git.text(&["ls-remote", "--symref", "--", &self.url, "HEAD"])?;
            let branch =
                said.lines().find_map(|line| line.strip_prefix("ref: ")?.split('\t').next().map(str::to_owned));
            // A detached HEAD is a commit only.
            let commit = || said.lines().find_map(|line| line.strip_suffix("\tHEAD")).filter(|id| is_id(id));
            return match branch.map(Found::Reference).or_else(|| commit().map(|id| Found::Commit(id.to_owned()))) {
                Some(found) => Ok(found),
                None => Err(WorktreeError::Absent(format!("{} has no HEAD", without_secrets(&self.url)))),
            };
        };
        if is_id(name) {
            return Ok(Found::Commit(name.to_ascii_lowercase()));
        }
        let wanted = [name.to_owned(), format!("refs/heads/{name}"), format!("refs/tags/{name}")];
        let said = git.text(&["ls-remote", "--", &self.url, &wanted[0], &wanted[1], &wanted[2]])?;
        let names: Vec<&str> = said.lines().filter_map(|line| line.split('\t').nth(1)).collect();
        let found = wanted.iter().find(|wanted| wanted.starts_with("refs/") && names.contains(&wanted.as_str()));
        found.cloned().map(Found::Reference).ok_or_else(|| {
            WorktreeError::Absent(format!("{} has no branch or tag {name:?}", without_secrets(&self.url)))
        })
    }

    fn fetch(&self, dir: &Path, found: Found, depth: Option<u32>) -> Result<Head, WorktreeError> {
        let (source, branch) = match &found {
            Found::Reference(name) => (name.clone(), name.strip_prefix("refs/heads/").map(str::to_owned)),
            Found::Commit(id) => (id.clone(), None),
        };
        // Under no name of the remote's, of which one may come to be a directory of another.
        let local = format!("refs/warren/at/{}", hex::encode(Sha256::digest(&source)));
        let git = self.git(dir);
        let mut args = vec!["fetch".to_owned(), "--quiet".into(), "--force".into(), "--no-write-fetch-head".into()];
        args.extend(depth.map(|depth| format!("--depth={depth}")));
        args.extend(["--no-tags", "--prune", "--", &self.url].map(str::to_owned));
        args.push(format!("+{source}:{local}"));
        if depth.is_none() {
            args.push("+refs/tags/*:refs/tags/*".to_owned());
        }
        git.run(&args)?;
        let repo = bare(dir)?;
        let commit = repo.commit(&local)?;
        let commit = commit.ok_or_else(|| WorktreeError::Absent(format!("{source} leads to no commit")))?;
        let upstream = branch.as_ref().map(|name| Upstream {
            local: format!("refs/remotes/origin/{name}"),
            short: format!("origin/{name}"),
            remote: "origin".to_owned(),
            merge: source.clone(),
            commit: Some(commit.clone()),
        });
        let time = time(&repo, Some(&commit))?;
        Ok(Head { commit: Some(commit), branch: branch.map(|name| format!("refs/heads/{name}")), upstream, time })
    }

    fn files(&self, dir: &Path, head: &Head, history: History) -> Result<Captured, WorktreeError> {
        let repo = bare(dir)?;
        let scratch = scratch(&self.cache)?;
        let mut out = Builder::default();
        // Packs of it are kept in its own directory, and go with it.
        let commit = head.commit.clone().unwrap_or_default();
        let options = Options { history, include_ignored: Vec::new(), dirty: false, cache: dir.to_owned() };
        Files { repo: &repo, head, commit: &commit, at: b"", home: b".git" }.take(
            &options,
            scratch.path(),
            &mut out,
        )?;
        let (tree, warnings) = out.finish(&mut StatCache::default())?;
        let mut about = about(&without_secrets(&self.url), head, history);
        about.base = Some(commit);
        Ok(Captured {
            tree,
            about,
            warnings,
            root: dir.to_owned(),
            repo: Some(repo),
            time: head.time,
            dirty: Vec::new(),
            ignored: BTreeSet::new(),
            staged: None,
            cache: dir.to_owned(),
            _scratch: scratch,
        })
    }
}

enum Found {
    Reference(String),
    Commit(String),
}

fn bare(dir: &Path) -> Result<Repo, WorktreeError> {
    Repo::find(dir)?.ok_or_else(|| WorktreeError::Absent(format!("{} is no repository any more", dir.display())))
}
