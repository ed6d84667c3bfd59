//! A guest that is a directory, and a client beside it.

use std::{
    fs,
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use contract::{
    OperationId,
    worktree::{About, ChangeList, ExportOrder, ImportOrder, Node, Placing, TransferSummary},
};
use tempfile::TempDir;
use tree::{
    GuestError, Limits, Mtime, ReadError, SendError, Sent, StateDir, Transfer, Tree, export, read_export, receive,
    send, walk,
};

pub const LIMITS: Limits = Limits { entries: 10_000, bytes: 1 << 30 };

/// A guest with one workspace, and a directory of its user's.
pub struct Lab {
    dir: TempDir,
    pub state: StateDir,
}

pub type Prepared = (Result<Sent, SendError>, Result<TransferSummary, GuestError>);

impl Lab {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("guest")).unwrap();
        fs::create_dir(dir.path().join("source")).unwrap();
        let state = StateDir(dir.path().join("state"));
        Self { dir, state }
    }

    /// The user's directory.
    pub fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    /// The workspace.
    pub fn workspace(&self) -> PathBuf {
        self.dir.path().join("guest/ws")
    }

    pub fn order(&self) -> ImportOrder {
        ImportOrder {
            operation: OperationId::new(),
            epoch: 1,
            path: self.workspace().to_str().unwrap().to_owned(),
            owner: None,
            placing: Placing::Swap,
            force: false,
            clean: false,
            about: About { origin: "here".to_owned(), ..About::default() },
        }
    }

    /// Prepares the workspace from the user's directory.
    pub fn prepare(&self, order: &ImportOrder) -> TransferSummary {
        let (sent, received) = self.prepare_tree(order, &walk(&self.source(), |_, _| true).unwrap().tree, u64::MAX);
        let summary = received.unwrap();
        assert_eq!(sent.unwrap().summary, summary);
        summary
    }

    /// The same, refused.
    pub fn refused(&self, order: &ImportOrder) -> GuestError {
        let (sent, received) = self.prepare_tree(order, &walk(&self.source(), |_, _| true).unwrap().tree, u64::MAX);
        assert!(sent.is_err());
        received.unwrap_err()
    }

    /// Prepares a tree over a stream that breaks after so many bytes.
    pub fn prepare_tree(&self, order: &ImportOrder, tree: &Tree, cut: u64) -> Prepared {
        self.transfer(order, tree, cut, &|| {})
    }

    /// Prepares the workspace while something else happens: after the old tree was compared, and before the new one is whole.
    pub fn prepare_while(&self, order: &ImportOrder, during: &dyn Fn()) -> Result<TransferSummary, GuestError> {
        let tree = walk(&self.source(), |_, _| true).unwrap().tree;
        let times = std::cell::Cell::new(0);
        let once = || {
            if times.replace(times.get() + 1) == 0 {
                during();
            }
        };
        let received = self.transfer(order, &tree, u64::MAX, &once).1;
        assert!(times.get() > 0, "no content was sent");
        received
    }

    fn transfer(&self, order: &ImportOrder, tree: &Tree, cut: u64, sending: &dyn Fn()) -> Prepared {
        let (client, guest) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            let receiving = scope.spawn(|| {
                let received =
                    receive(order, &self.state, None, buffered(&guest), Flushed(&guest), &Transfer::default());
                guest.shutdown(Shutdown::Both).unwrap_or_default();
                received
            });
            let sent = send(tree, buffered(&client), Cut { to: &client, left: cut }, &|progress| {
                if progress.phase == "sending" {
                    sending();
                }
            });
            client.shutdown(Shutdown::Both).unwrap_or_default();
            (sent, receiving.join().unwrap())
        })
    }

    pub fn export_order(&self) -> ExportOrder {
        ExportOrder {
            operation: OperationId::new(),
            epoch: 1,
            path: self.workspace().to_str().unwrap().to_owned(),
            commits: false,
            advance: false,
            max_bytes: 1 << 30,
            max_entries: 10_000,
        }
    }

    /// Takes changes out into a new directory, and accepts them.
    pub fn export(&self, order: &ExportOrder) -> (ChangeList, TempDir) {
        let quarantine = tempfile::tempdir().unwrap();
        let (list, summary) = self.export_to(order, quarantine.path(), true);
        summary.unwrap();
        (list.unwrap(), quarantine)
    }

    pub fn export_to(
        &self,
        order: &ExportOrder,
        quarantine: &Path,
        accept: bool,
    ) -> (Result<ChangeList, ReadError>, Result<TransferSummary, GuestError>) {
        let (client, guest) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            let exporting = scope.spawn(|| {
                let word = Word { from: &guest, accepted: accept };
                let exported = export(order, &self.state, word, Flushed(&guest), &Transfer::default());
                guest.shutdown(Shutdown::Both).unwrap_or_default();
                exported
            });
            let list = read_export(buffered(&client), quarantine, LIMITS);
            client.shutdown(Shutdown::Both).unwrap_or_default();
            (list, exporting.join().unwrap())
        })
    }

    /// Where the guest remembers the workspace.
    pub fn memory(&self) -> PathBuf {
        fs::read_dir(&self.state.0).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap()
    }

    /// Nothing lies beside the workspace, and nothing is under way.
    pub fn assert_no_residue(&self) {
        let beside: Vec<_> =
            fs::read_dir(self.dir.path().join("guest")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(beside.iter().all(|name| name == "ws"), "{beside:?}");
        for state in fs::read_dir(&self.state.0).into_iter().flatten() {
            let state = state.unwrap().path();
            assert!(!state.join("journal.json").exists());
            let rows = || {
                fs::read_dir(&state)
                    .unwrap()
                    .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("rows-"))
            };
            if state.is_dir() {
                assert_eq!(rows().count(), 1, "{}", state.display());
            }
        }
    }
}

fn buffered(stream: &UnixStream) -> impl Read {
    io::BufReader::new(stream)
}

struct Flushed<'a>(&'a UnixStream);

impl Write for Flushed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A client's word at the end of an export: an end that is one, or a stream that breaks.
struct Word<'a> {
    from: &'a UnixStream,
    accepted: bool,
}

impl Read for Word<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.from.read(buffer)? {
            0 if !self.accepted => Err(io::ErrorKind::UnexpectedEof.into()),
            count => Ok(count),
        }
    }
}

/// A writer that breaks.
struct Cut<'a> {
    to: &'a UnixStream,
    left: u64,
}

impl Write for Cut<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if count == 0 {
            self.to.shutdown(Shutdown::Both).unwrap_or_default();
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.left -= count as u64;
        self.to.write(&bytes[..count])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A directory's tree as it can be compared: where the files lie does not count.
pub fn listed(dir: &Path) -> Vec<(String, Mtime, Node)> {
    let tree = walk(dir, |_, _| true).unwrap().tree;
    let escaped = |path: &contract::FileName| path.0.escape_ascii().to_string();
    tree.entries().iter().map(|entry| (escaped(&entry.path), entry.mtime, entry.node.clone())).collect()
}

/// The same without times.
pub fn contents(dir: &Path) -> Vec<(String, Node)> {
    listed(dir).into_iter().map(|(path, _, node)| (path, node)).collect()
}

/// Writes a file and the directories above it.
pub fn write(dir: &Path, path: &str, text: &str) {
    let path = dir.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// What changed, a line each.
pub fn lines(list: &ChangeList) -> Vec<String> {
    let sign = |change: &contract::worktree::Change| match (&change.before, &change.after) {
        (None, _) => '+',
        (_, None) => '-',
        _ => '~',
    };
    list.changes.iter().map(|change| format!("{}{}", sign(change), change.path)).collect()
}
