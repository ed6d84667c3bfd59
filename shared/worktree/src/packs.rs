//! **Packs** of the objects that go along, kept in the user's cache: a capture that follows another packs what is new only, and
//! what a guest has already keeps its name.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{cache, error::WorktreeError, git::Git, repo::Repo};

/// Their place in the cache.
pub(crate) const DIRECTORY: &str = "packs";
/// How many packs one set grows to before it is packed anew.
const CHAIN_MAX: usize = 8;

/// What a set of packs is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wanted {
    /// Commits, tags and trees: with all they reach, they are in the packs.
    pub tips: Vec<String>,
    /// But not what these reach.
    pub without: Vec<String>,
    /// Commits whose parents are not wanted.
    pub shallow: Vec<String>,
}

/// A pack and its index, as files of the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pack {
    /// `pack-<hash>`.
    pub name: String,
    /// Of `.pack`: its length and blob id.
    pub pack: (u64, String),
    /// Of `.idx`.
    pub index: (u64, String),
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Chain {
    wanted: Wanted,
    packs: Vec<Pack>,
}

/// The packs of one worktree.
pub(crate) struct PackCache {
    /// Where they are.
    pub dir: PathBuf,
    _lock: Flock<File>,
}

impl PackCache {
    /// Opens the cache of a worktree below `cache`; one capture at a time has it.
    pub(crate) fn open(cache: &Path, repo: &Repo) -> Result<Self, WorktreeError> {
        let name = hex::encode(Sha256::digest(repo.git_dir.as_os_str().as_encoded_bytes()));
        let dir = cache.join(DIRECTORY).join(name);
        cache::make(&dir)?;
        let lock = File::create(dir.join("lock")).map_err(WorktreeError::write(&dir))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, error)| WorktreeError::Write { path: dir.clone(), source: error.into() })?;
        Ok(Self { dir, _lock: lock })
    }

    /// The packs of a set, made where they are not there. A set that `grows` keeps its packs while all it had is still wanted.
    pub(crate) fn packs(
        &self,
        git: &Git,
        set: &str,
        mut wanted: Wanted,
        grows: bool,
    ) -> Result<Vec<Pack>, WorktreeError> {
        for list in [&mut wanted.tips, &mut wanted.without, &mut wanted.shallow] {
            list.sort_unstable();
            list.dedup();
        }
        let file = self.dir.join(format!("{set}.json"));
        let mut chain = self.load(&file);
        if chain.wanted == wanted {
            return Ok(chain.packs);
        }
        if grows && !chain.packs.is_empty() && chain.packs.len() < CHAIN_MAX && includes(git, &wanted, &chain.wanted)? {
            let mut more = wanted.clone();
            more.without.extend(chain.wanted.tips);
            chain.packs.extend(self.pack(git, &more)?);
        } else {
            chain.packs = self.pack(git, &wanted)?.into_iter().collect();
        }
        chain.wanted = wanted;
        self.save(&file, &chain)?;
        self.sweep()?;
        Ok(chain.packs)
    }

    /// What was kept, if all of it is there still.
    fn load(&self, file: &Path) -> Chain {
        let chain: Option<Chain> = fs::read(file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let whole = |pack: &Pack| {
            let length =
                |ending: &str| fs::metadata(self.dir.join(format!("{}.{ending}", pack.name))).map(|it| it.len()).ok();
            length("pack") == Some(pack.pack.0) && length("idx") == Some(pack.index.0)
        };
        chain.filter(|chain| chain.packs.iter().all(whole)).unwrap_or_default()
    }

    fn save(&self, file: &Path, chain: &Chain) -> Result<(), WorktreeError> {
        let write = || {
            let mut temporary = tempfile::NamedTempFile::new_in(&self.dir)?;
            temporary.write_all(&serde_json::to_vec(chain)?)?;
            temporary.persist(file).map_err(|error| error.error)?;
            Ok::<_, io::Error>(())
        };
        write().map_err(WorktreeError::write(file))
    }

    /// Packs; nothing where there is no object.
    fn pack(&self, git: &Git, wanted: &Wanted) -> Result<Option<Pack>, WorktreeError> {
        let mut input = String::new();
        wanted.shallow.iter().for_each(|id| input.push_str(&format!("--shallow {id}\n")));
        wanted.tips.iter().for_each(|id| input.push_str(&format!("{id}\n")));
        wanted.without.iter().for_each(|id| input.push_str(&format!("^{id}\n")));
        let base = self.dir.join("pack");
        let args = [
            "pack-objects".as_ref(),
            "--revs".as_ref(),
            "--delta-base-offset".as_ref(),
            "--non-empty".as_ref(),
            "-q".as_ref(),
            base.as_os_str(),
        ];
        let said = git.feed(&args, input.into_bytes())?;
        let hash = String::from_utf8_lossy(&said).trim().to_owned();
        if hash.is_empty() {
            return Ok(None);
        }
        let name = format!("pack-{hash}");
        let measure = |ending: &str| {
            let path = self.dir.join(format!("{name}.{ending}"));
            let digest = || {
                let file = File::open(&path)?;
                let size = file.metadata()?.len();
                Ok::<_, io::Error>((size, tree::blob_id(file, size)?))
            };
            digest().map_err(WorktreeError::read(&path))
        };
        Ok(Some(Pack { pack: measure("pack")?, index: measure("idx")?, name: name.clone() }))
    }

    /// Removes packs that no set has any more. A capture under way has links of its own to those it sends.
    fn sweep(&self) -> Result<(), WorktreeError> {
        let entries =
            || fs::read_dir(&self.dir)?.map(|entry| entry.map(|it| it.path())).collect::<io::Result<Vec<_>>>();
        let entries = entries().map_err(WorktreeError::read(&self.dir))?;
        let sets = entries.iter().filter(|path| path.extension().is_some_and(|ending| ending == "json"));
        let used: Vec<String> = sets.flat_map(|file| self.load(file).packs).map(|pack| pack.name).collect();
        for path in &entries {
            let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            if stem.starts_with("pack-") && !used.contains(&stem) {
                fs::remove_file(path).map_err(WorktreeError::write(path))?;
            }
        }
        Ok(())
    }
}

/// Whether all that `old` wanted is reached by `new` too: history that was rewritten must not go along any more.
fn includes(git: &Git, new: &Wanted, old: &Wanted) -> Result<bool, WorktreeError> {
    if new.shallow != old.shallow || new.without != old.without {
        return Ok(false);
    }
    let mut input = String::new();
    old.tips.iter().for_each(|tip| input.push_str(&format!("{tip}\n")));
    new.tips.iter().for_each(|tip| input.push_str(&format!("^{tip}\n")));
    let left = git.feed(&["rev-list", "--objects", "--max-count=1", "--stdin"], input.into_bytes());
    match left {
        Ok(left) => Ok(left.is_empty()),
        // What was wanted then is not here any more.
        Err(WorktreeError::Git { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The commits within `depth` of some tips, those among them whose parents are not.
pub(crate) fn boundary(repo: &Repo, tips: &[String], depth: u32) -> Result<Vec<String>, WorktreeError> {
    let already = shallow(repo)?;
    let mut seen: std::collections::HashSet<String> = tips.iter().cloned().collect();
    let (mut level, mut boundary) = (tips.to_vec(), Vec::new());
    for left in (0..depth.max(1)).rev() {
        if level.is_empty() {
            break;
        }
        let input = level.join("\n") + "\n";
        let out = repo.git.feed(&["rev-list", "--no-walk", "--parents", "--stdin"], input.into_bytes())?;
        let mut next = Vec::new();
        for line in String::from_utf8_lossy(&out).lines() {
            let mut ids = line.split(' ').map(str::to_owned);
            let Some(id) = ids.next() else { continue };
            let parents: Vec<String> = ids.collect();
            if already.contains(&id) || (left == 0 && !parents.is_empty()) {
                boundary.push(id);
            } else {
                next.extend(parents.into_iter().filter(|parent| seen.insert(parent.clone())));
            }
        }
        level = next;
    }
    Ok(boundary)
}

/// The commits whose parents this repository has not.
pub(crate) fn shallow(repo: &Repo) -> Result<Vec<String>, WorktreeError> {
    let path = repo.common.join("shallow");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().map(str::to_owned).filter(|line| is_id(line)).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(WorktreeError::read(&path)(error)),
    }
}

/// Whether a text is a whole object name.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
