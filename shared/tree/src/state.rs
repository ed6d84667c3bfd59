//! What a guest **remembers** of its workspaces, a directory each: `head.json` says which prepare made the base, and names the file of
//! its rows; `journal.json` is there while a transfer makes something that has to be finished or removed if the guest dies.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
};

use contract::{
    FileName, OperationId,
    worktree::{About, TransferSummary},
};
use serde::{Deserialize, Serialize};

use crate::{
    GuestError, Mtime,
    files::{Stat, gone_is_fine},
    repo::Repository,
    row::{self, Kind, Row},
};

/// The file of a base's beginning.
const HEAD: &str = "head.json";
/// The file of what is under way.
const JOURNAL: &str = "journal.json";
/// The file of the highest epoch seen.
const EPOCH: &str = "epoch";
/// The most bytes of a JSON file that are read.
const JSON_MAX: u64 = 32 << 20;
/// The bytes of one remembered [`Stat`].
const STAT: usize = 4 + 8 + 8 + 12 + 12;

/// Where a guest keeps what it knows of its workspaces (`/var/lib/warren/workspaces`).
#[derive(Clone, Debug)]
pub struct StateDir(pub PathBuf);

impl StateDir {
    /// Notes the epoch of a claim on the VM's workspaces; it is remembered for ever.
    ///
    /// # Errors
    /// A higher one was seen, or it cannot be noted.
    pub fn claim(&self, epoch: i64) -> Result<(), GuestError> {
        let path = self.0.join(EPOCH);
        let seen = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().unwrap_or(i64::MIN),
            Err(error) if error.kind() == io::ErrorKind::NotFound => i64::MIN,
            Err(error) => return Err(GuestError::files("reading the workspaces' epoch")(error)),
        };
        if epoch < seen {
            return Err(GuestError::Stale { epoch, seen });
        }
        if epoch > seen {
            let note = || {
                fs::create_dir_all(&self.0)?;
                replace(&path, |file| file.write_all(epoch.to_string().as_bytes()))?;
                sync_names(&self.0)
            };
            note().map_err(GuestError::files("noting the workspaces' epoch"))?;
        }
        Ok(())
    }

    /// What a prepare, or an export that advanced a base, did, where its base is still there: it was placed, whatever its own agent
    /// came to tell of it. Blocking.
    pub fn placed(&self, operation: OperationId) -> io::Result<Option<TransferSummary>> {
        for state in self.all()? {
            let Some(head) = read_json::<Head>(&state.join(HEAD))?.filter(|head| head.generation == operation) else {
                continue;
            };
            return Ok(Some(head.summary.unwrap_or_default()));
        }
        Ok(None)
    }

    /// The directories of all workspaces.
    pub(crate) fn all(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
    }
}

/// The beginning of a base.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Head {
    /// The workspace's path.
    pub path: FileName,
    /// The prepare, or the export that advanced it.
    pub generation: OperationId,
    pub about: About,
    /// Whose the files became.
    pub owner: Option<(u32, u32)>,
    /// SHA-1 of the rows; none once an export has advanced them.
    pub digest: Option<String>,
    /// The file with the rows.
    pub rows: String,
    /// The root when the rows were in place: inode, times.
    pub root: (u64, i64, u32, i64, u32),
    /// The repository then.
    pub repository: Repository,
    /// The digest of the changes that were exported last.
    pub exported: Option<String>,
    /// What the transfer that made it did.
    #[serde(default)]
    pub summary: Option<TransferSummary>,
}

/// A base: what was put into a workspace, and what `stat` said of each of it then. A zero stat is none's: such a file is read to see
/// whether it has changed.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    pub head: Head,
    pub rows: Vec<Row>,
    pub stats: Vec<Stat>,
}

impl Base {
    /// Reads it; none where nothing was prepared. One that is damaged counts as none.
    pub(crate) fn load(state: &Path) -> io::Result<Option<Self>> {
        match read_json::<Head>(&state.join(HEAD))? {
            Some(head) => Self::load_as(state, head),
            None => Ok(None),
        }
    }

    /// Reads one whose beginning is known.
    pub(crate) fn load_as(state: &Path, head: Head) -> io::Result<Option<Self>> {
        if head.rows.contains('/') {
            return Ok(None);
        }
        let bytes = match fs::read(state.join(&head.rows)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(decode(&bytes).map(|(rows, stats)| Self { head, rows, stats }))
    }

    /// Writes it; afterwards it is the one that is read.
    pub(crate) fn save(&self, state: &Path) -> io::Result<()> {
        self.save_rows(state)?;
        self.head.save(state)?;
        self.remove_other_rows(state)
    }

    /// Removes rows that belong to no base: an older one's, or those of one that never came to be.
    pub(crate) fn remove_other_rows(&self, state: &Path) -> io::Result<()> {
        for entry in fs::read_dir(state)?.flatten() {
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b"rows-") && name != self.head.rows.as_str() {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Writes its rows only; they last once something is saved that names them.
    pub(crate) fn save_rows(&self, state: &Path) -> io::Result<()> {
        replace(&state.join(&self.head.rows), |file| file.write_all(&encode(&self.rows, &self.stats)))
    }

    /// The row at a path.
    pub(crate) fn find(&self, path: &[u8]) -> Option<usize> {
        self.rows.binary_search_by(|row| row.path[..].cmp(path)).ok()
    }
}

impl Head {
    pub(crate) fn save(&self, state: &Path) -> io::Result<()> {
        write_json(state, HEAD, self)
    }

    pub(crate) fn set_root(&mut self, stat: &Stat) {
        self.root = (stat.ino, stat.mtime.secs, stat.mtime.nanos, stat.ctime.secs, stat.ctime.nanos);
    }

    pub(crate) fn is_root(&self, stat: &Stat) -> bool {
        self.root == (stat.ino, stat.mtime.secs, stat.mtime.nanos, stat.ctime.secs, stat.ctime.nanos)
    }

    /// The name of the file of an operation's rows.
    pub(crate) fn rows_of(operation: OperationId) -> String {
        format!("rows-{operation}")
    }
}

fn encode(rows: &[Row], stats: &[Stat]) -> Vec<u8> {
    let encoded = row::encode_rows(rows.iter());
    let mut bytes = Vec::with_capacity(16 + encoded.len() + stats.len() * STAT);
    bytes.extend_from_slice(&(rows.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&(encoded.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&encoded);
    for stat in stats {
        bytes.extend_from_slice(&stat.mode.to_le_bytes());
        bytes.extend_from_slice(&stat.ino.to_le_bytes());
        bytes.extend_from_slice(&stat.size.to_le_bytes());
        for time in [stat.mtime, stat.ctime] {
            bytes.extend_from_slice(&time.secs.to_le_bytes());
            bytes.extend_from_slice(&time.nanos.to_le_bytes());
        }
    }
    bytes
}

fn decode(bytes: &[u8]) -> Option<(Vec<Row>, Vec<Stat>)> {
    let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let (count, length) = (number(0)?, usize::try_from(number(8)?).ok()?);
    let encoded = bytes.get(16..16_usize.checked_add(length)?)?;
    let rows = row::decode_trusted(encoded, count)?;
    let rest = &bytes[16 + length..];
    if rest.len() != rows.len() * STAT {
        return None;
    }
    let stats = rest.chunks_exact(STAT).map(stat).collect::<Option<_>>()?;
    Some((rows, stats))
}

fn stat(bytes: &[u8]) -> Option<Stat> {
    let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let time = |at: usize| {
        let nanos = u32::from_le_bytes(bytes.get(at + 8..at + 12)?.try_into().ok()?);
        Some(Mtime { secs: number(at)?.cast_signed(), nanos })
    };
    let mode = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?);
    Some(Stat { mode, ino: number(4)?, size: number(12)?, mtime: time(20)?, ctime: time(32)? })
}

/// What is under way in a workspace; written before the first file is made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Journal {
    /// The workspace's path.
    pub path: FileName,
    /// The directory beside it that a new tree is made in.
    pub staging: FileName,
    /// Directories above it that were made for it, outermost first.
    pub made: Vec<FileName>,
    pub step: Step,
}

/// How far it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Step {
    /// The new tree is being made: it is removed.
    Staging,
    /// The same, in a directory of that inode: anything else there is not it.
    Staged { inode: u64 },
    /// It is whole, and the rows of its base are written, with zero stats: it takes its place.
    Placing {
        next: Head,
        #[serde(flatten)]
        way: Way,
    },
    /// It is in its place; the old one is removed.
    Clearing {
        next: Head,
        /// Something of the old one could not be carried over: it stays beside the new one.
        #[serde(default)]
        keep: bool,
    },
}

/// How a tree takes its place.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Way {
    /// The new root's inode, where it is swapped in; none where its files are placed one by one.
    pub swap: Option<u64>,
    /// What git ignores is removed too.
    pub clean: bool,
    /// What the old tree has may be lost: by force, or since it was looked at after the swap.
    #[serde(default)]
    pub force: bool,
    /// What is not in the new tree is gone from the old one, where files are placed one by one.
    #[serde(default)]
    pub removed: bool,
}

impl Journal {
    pub(crate) fn load(state: &Path) -> io::Result<Option<Self>> {
        read_json(&state.join(JOURNAL))
    }

    pub(crate) fn save(&self, state: &Path) -> io::Result<()> {
        if !state.is_dir() {
            fs::create_dir_all(state)?;
            state.ancestors().skip(1).take(2).try_for_each(sync_names)?;
        }
        write_json(state, JOURNAL, self)
    }

    pub(crate) fn clear(state: &Path) -> io::Result<()> {
        match fs::remove_file(state.join(JOURNAL)) {
            Ok(()) => sync_names(state),
            gone => gone_is_fine(gone),
        }
    }
}

/// Removes all that is known of a workspace.
pub(crate) fn forget(state: &Path) -> io::Result<()> {
    // The head first: without it nothing else counts.
    gone_is_fine(fs::remove_file(state.join(HEAD)))?;
    gone_is_fine(fs::remove_dir_all(state))
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> io::Result<Option<T>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match serde_json::from_reader(BufReader::new(file).take(JSON_MAX)) {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_io() => Err(error.into()),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "what was remembered of a workspace is damaged");
            Ok(None)
        }
    }
}

/// Writes a file of a workspace's; it is on the disk when this returns, with all that was replaced beside it before.
fn write_json(state: &Path, name: &str, value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(value)?;
    replace(&state.join(name), |file| file.write_all(&text))?;
    sync_names(state)
}

/// Puts a directory's names on its disk: a rename is there after a power cut only then.
fn sync_names(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Replaces a file so that the old or the new one is there whenever the guest dies.
fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let aside = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&aside)?;
    write(&mut file)?;
    file.sync_data()?;
    fs::rename(&aside, path)
}

/// Applies what `stats` say where the rows' own times and sizes agree with them; the rest has changed already.
pub(crate) fn settled(row: &Row, stat: Option<Stat>) -> Stat {
    let Some(stat) = stat else { return Stat::default() };
    let same = match &row.kind {
        Kind::Directory { mode } => stat.is_dir() && stat.bits() == *mode && stat.mtime == row.mtime,
        Kind::File { mode, size, .. } => {
            stat.is_file() && stat.bits() == *mode && stat.size == *size && stat.mtime == row.mtime
        }
        Kind::Symlink { target } => stat.is_symlink() && stat.size == target.len() as u64 && stat.mtime == row.mtime,
    };
    if same { stat } else { Stat::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_epoch_is_refused_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir(dir.path().join("state"));
        state.claim(3).unwrap();
        state.claim(3).unwrap();
        state.claim(5).unwrap();
        assert!(matches!(state.claim(4), Err(GuestError::Stale { epoch: 4, seen: 5 })));
    }

    #[test]
    fn rows_and_stats_come_back_and_damage_is_seen() {
        let row = Row {
            path: b"a".to_vec(),
            mtime: Mtime { secs: -4, nanos: 5 },
            kind: Kind::File { mode: 0o644, size: 3, digest: [1; 20] },
        };
        let stat =
            Stat { mode: 1, ino: 2, size: 3, mtime: Mtime { secs: -4, nanos: 5 }, ctime: Mtime { secs: 6, nanos: 7 } };
        let bytes = encode(std::slice::from_ref(&row), &[stat]);
        assert_eq!(decode(&bytes).unwrap(), (vec![row], vec![stat]));
        for end in 0..bytes.len() {
            assert!(decode(&bytes[..end]).is_none());
        }
    }
}
