//! The client's end of a prepare.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
};

use contract::worktree::{Node, TransferSummary};

use crate::{
    BlobHasher, Entry, Progress, SendError, Tree,
    row::encode_tree,
    wire::{self, Hello, Pieces, Tag},
};

/// How much of a file is read at once, in bytes.
const CHUNK: usize = 128 * 1024;
/// zstd's level: more than what an emulated guest can take comes out of one core, and higher levels make little smaller.
const LEVEL: i32 = 1;

/// What was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// What the guest says it did.
    pub summary: TransferSummary,
    /// Bytes towards the guest, all of them.
    pub wire_bytes: u64,
}

/// The client's end of a prepare. `progress` is told of each piece. Blocking.
///
/// # Errors
/// See the variants; the guest's tree is what it was.
pub fn send(
    tree: &Tree,
    mut from_guest: impl Read,
    to_guest: impl Write,
    progress: &dyn Fn(Progress),
) -> Result<Sent, SendError> {
    let mut to_guest = Counted { to: to_guest, count: 0 };
    let (rows, digest) = encode_tree(tree);
    let hello = Hello { digest, entries: tree.entries().len() as u64, bytes: tree.bytes() };
    progress(Progress { phase: "comparing", done: 0, total: 0 });
    say(&mut to_guest, Tag::Hello, &hello.encode())?;
    let mut message = Vec::new();
    if hear(&mut from_guest, &mut message)? == Tag::Send {
        send_rows(&mut to_guest, &rows).map_err(SendError::Stream)?;
        drop(rows);
        if hear(&mut from_guest, &mut message)? != Tag::Want {
            return Err(SendError::Protocol("it did not say what it wants"));
        }
        let wanted = wire::decode_bits(&message, tree.entries().len())
            .ok_or(SendError::Protocol("what it wants cannot be read"))?;
        if let Err(error) = send_contents(tree, &wanted, &mut to_guest, progress) {
            if !matches!(error, SendError::Stream(_)) {
                // It is told, so that it need not wait for the stream's end; that failing changes nothing.
                say(&mut to_guest, Tag::Fail, crate::error::chain(&error).as_bytes()).unwrap_or_default();
            }
            return Err(error);
        }
        say(&mut to_guest, Tag::End, &[])?;
    } else {
        message.clear();
    }
    progress(Progress { phase: "placing", done: 0, total: 0 });
    if hear(&mut from_guest, &mut message)? != Tag::Done {
        return Err(SendError::Protocol("it did not say what it did"));
    }
    let summary = serde_json::from_slice(&message).map_err(|_| SendError::Protocol("its summary cannot be read"))?;
    Ok(Sent { summary, wire_bytes: to_guest.count })
}

struct Counted<W> {
    to: W,
    count: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn say(to: &mut impl Write, tag: Tag, payload: &[u8]) -> Result<(), SendError> {
    wire::write(to, tag, payload).and_then(|()| to.flush()).map_err(SendError::Stream)
}

fn hear(from: &mut impl Read, message: &mut Vec<u8>) -> Result<Tag, SendError> {
    wire::read(from, message).map_err(SendError::Stream)
}

fn send_rows(to: &mut impl Write, rows: &[u8]) -> io::Result<()> {
    let mut encoder = zstd::Encoder::new(Pieces::new(to, Tag::List), LEVEL)?;
    encoder.include_checksum(true)?;
    encoder.write_all(rows)?;
    encoder.finish()?.finish()
}

fn send_contents(
    tree: &Tree,
    wanted: &[bool],
    to: &mut impl Write,
    progress: &dyn Fn(Progress),
) -> Result<(), SendError> {
    let files = || tree.entries().iter().zip(wanted).filter(|(_, wanted)| **wanted).map(|(entry, _)| entry);
    let total = files().map(|entry| if let Node::File { size, .. } = entry.node { size } else { 0 }).sum();
    let mut encoder = zstd::Encoder::new(Pieces::new(to, Tag::Content), LEVEL).map_err(SendError::Stream)?;
    encoder.include_checksum(true).map_err(SendError::Stream)?;
    let (mut done, mut buffer) = (0, vec![0; CHUNK]);
    for entry in files() {
        send_file(entry, &mut encoder, &mut buffer, |count| {
            done += count;
            progress(Progress { phase: "sending", done, total });
        })?;
    }
    encoder.finish().and_then(Pieces::finish).map_err(SendError::Stream)
}

/// Sends one file's bytes, and finds out whether they are what the tree says.
fn send_file(
    entry: &Entry,
    to: &mut impl Write,
    buffer: &mut [u8],
    mut sent: impl FnMut(u64),
) -> Result<(), SendError> {
    let Node::File { size, digest, .. } = &entry.node else {
        return Err(SendError::Protocol("it wants the content of what is no file"));
    };
    let unreadable = |source| SendError::Read { path: entry.path.clone(), source };
    let changed = || SendError::Changed { path: entry.path.clone() };
    let from = entry.from.as_ref().ok_or_else(|| unreadable(io::ErrorKind::NotFound.into()))?;
    // A pipe that took the file's place must not hold us up.
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc_flags());
    let mut file = match options.open(from) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(changed()),
        Err(error) => return Err(unreadable(error)),
    };
    if !is_whole(&file, *size).map_err(unreadable)? {
        return Err(changed());
    }
    let (mut hash, mut left) = (BlobHasher::new(*size), *size);
    while left > 0 {
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = match file.read(&mut buffer[..want]) {
            Ok(0) => return Err(changed()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(unreadable(error)),
        };
        hash.update(&buffer[..count]);
        to.write_all(&buffer[..count]).map_err(SendError::Stream)?;
        left -= count as u64;
        sent(count as u64);
    }
    if hex::encode(hash.finish()) != *digest {
        return Err(changed());
    }
    Ok(())
}

fn libc_flags() -> i32 {
    (nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_CLOEXEC).bits()
}

fn is_whole(file: &File, size: u64) -> io::Result<bool> {
    let metadata = file.metadata()?;
    Ok(metadata.is_file() && metadata.len() == size)
}
