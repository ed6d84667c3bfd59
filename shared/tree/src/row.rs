//! **Rows**: a tree's entries as they travel and are remembered: each path without what it shares with the one before, its time, and its kind.
//!
//! All numbers are little endian. A row is: bytes shared with the path before (u16), further bytes (u16), these; seconds (i64) and nanoseconds
//! (u32) of the time; then `0` and a mode (u16) for a directory, `1`, mode, size (u64) and digest (20 bytes) for a file, `2`, length (u16) and target for a symbolic link.

use std::io::Read;

use contract::{
    FileName,
    worktree::{ENTRIES_MAX, Node},
};
use sha1::{Digest, Sha1};

use crate::{
    Entry, GuestError, Mtime, Tree,
    entry::{Check, MODE_MASK, PATH_MAX, TARGET_MAX},
    error::broken,
};

/// One entry as a guest remembers it: a digest takes half of what hexadecimal digits would.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub path: Vec<u8>,
    pub mtime: Mtime,
    pub kind: Kind,
}

/// What it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory { mode: u32 },
    File { mode: u32, size: u64, digest: [u8; 20] },
    Symlink { target: Vec<u8> },
}

impl Kind {
    pub(crate) fn node(&self) -> Node {
        match self {
            Self::Directory { mode } => Node::Directory { mode: *mode },
            Self::File { mode, size, digest } => Node::File { mode: *mode, size: *size, digest: hex::encode(digest) },
            Self::Symlink { target } => Node::Symlink { target: FileName(target.clone()) },
        }
    }

    /// Bytes of content.
    pub(crate) fn size(&self) -> u64 {
        if let Self::File { size, .. } = self { *size } else { 0 }
    }
}

impl Row {
    /// Whether it is git's own: `.git`, below the root or further down, or in such a directory.
    pub(crate) fn is_git(&self) -> bool {
        is_git(&self.path)
    }
}

/// Whether a path leads to or through `.git` (in any case: some file systems know none).
pub(crate) fn is_git(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/').any(|name| name.eq_ignore_ascii_case(b".git"))
}

/// The kind of a checked entry.
fn kind(node: &Node) -> Kind {
    match node {
        Node::Directory { mode } => Kind::Directory { mode: *mode },
        Node::File { mode, size, digest } => {
            let mut bytes = [0; 20];
            // A tree's digests were checked when it was made.
            hex::decode_to_slice(digest, &mut bytes).unwrap_or_default();
            Kind::File { mode: *mode, size: *size, digest: bytes }
        }
        Node::Symlink { target } => Kind::Symlink { target: target.0.clone() },
    }
}

/// The rows of a tree, encoded, and their digest.
pub(crate) fn encode_tree(tree: &Tree) -> (Vec<u8>, [u8; 20]) {
    let mut encoder = Encoder::default();
    for Entry { path, mtime, node, .. } in tree.entries() {
        encoder.add(&path.0, *mtime, &kind(node));
    }
    let digest = Sha1::digest(&encoder.bytes).into();
    (encoder.bytes, digest)
}

/// The same of rows.
pub(crate) fn encode_rows<'a>(rows: impl Iterator<Item = &'a Row>) -> Vec<u8> {
    let mut encoder = Encoder::default();
    for row in rows {
        encoder.add(&row.path, row.mtime, &row.kind);
    }
    encoder.bytes
}

#[derive(Default)]
struct Encoder {
    bytes: Vec<u8>,
    last: Vec<u8>,
}

impl Encoder {
    fn add(&mut self, path: &[u8], mtime: Mtime, kind: &Kind) {
        let shared = self.last.iter().zip(path).take_while(|(a, b)| a == b).count();
        let out = &mut self.bytes;
        // Paths and targets are below 4096 bytes.
        out.extend_from_slice(&(shared as u16).to_le_bytes());
        out.extend_from_slice(&((path.len() - shared) as u16).to_le_bytes());
        out.extend_from_slice(&path[shared..]);
        out.extend_from_slice(&mtime.secs.to_le_bytes());
        out.extend_from_slice(&mtime.nanos.to_le_bytes());
        match kind {
            Kind::Directory { mode } => {
                out.push(0);
                out.extend_from_slice(&(*mode as u16).to_le_bytes());
            }
            Kind::File { mode, size, digest } => {
                out.push(1);
                out.extend_from_slice(&(*mode as u16).to_le_bytes());
                out.extend_from_slice(&size.to_le_bytes());
                out.extend_from_slice(digest);
            }
            Kind::Symlink { target } => {
                out.push(2);
                out.extend_from_slice(&(target.len() as u16).to_le_bytes());
                out.extend_from_slice(target);
            }
        }
        self.last.truncate(shared);
        self.last.extend_from_slice(&path[shared..]);
    }
}

/// Reads `count` rows and checks that they are a tree, up to the end of what there is to read; with the digest of it all.
///
/// # Errors
/// They are none, or cannot be read.
pub(crate) fn decode(from: impl Read, count: u64) -> Result<(Vec<Row>, [u8; 20]), GuestError> {
    if count > ENTRIES_MAX {
        return Err(crate::TreeError::TooMany(usize::try_from(count).unwrap_or(usize::MAX)).into());
    }
    let mut from = Hashed { from, hash: Sha1::new() };
    let mut rows = Vec::with_capacity(usize::try_from(count.min(65536)).unwrap_or(0));
    let (mut path, mut check) = (FileName::default(), Check::default());
    for _ in 0..count {
        let row = decode_row(&mut from, &mut path.0)?;
        check.next(&path, matches!(row.kind, Kind::Directory { .. }))?;
        rows.push(row);
    }
    let mut more = [0];
    if from.from.read(&mut more).map_err(broken)? > 0 {
        return Err(GuestError::Protocol("the list is longer than it says"));
    }
    Ok((rows, from.hash.finalize().into()))
}

struct Hashed<R> {
    from: R,
    hash: Sha1,
}

impl<R: Read> Hashed<R> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], GuestError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), GuestError> {
        self.from.read_exact(bytes).map_err(broken)?;
        self.hash.update(bytes);
        Ok(())
    }

    fn u16(&mut self) -> Result<usize, GuestError> {
        Ok(usize::from(u16::from_le_bytes(self.take()?)))
    }

    fn mode(&mut self) -> Result<u32, GuestError> {
        let mode = u32::from(u16::from_le_bytes(self.take()?));
        if mode & !MODE_MASK != 0 {
            return Err(GuestError::Protocol("a mode has bits over 0777"));
        }
        Ok(mode)
    }
}

fn decode_row(from: &mut Hashed<impl Read>, path: &mut Vec<u8>) -> Result<Row, GuestError> {
    let (shared, more) = (from.u16()?, from.u16()?);
    if shared > path.len() || shared + more > PATH_MAX {
        return Err(GuestError::Protocol("a path in the list is too long"));
    }
    path.resize(shared + more, 0);
    from.fill(&mut path[shared..])?;
    let mtime = Mtime { secs: i64::from_le_bytes(from.take()?), nanos: u32::from_le_bytes(from.take()?) };
    if mtime.nanos >= 1_000_000_000 {
        return Err(GuestError::Protocol("a time has more nanoseconds than a second"));
    }
    let [tag] = from.take()?;
    let kind = match tag {
        0 => Kind::Directory { mode: from.mode()? },
        1 => {
            let mode = from.mode()?;
            let size = u64::from_le_bytes(from.take()?);
            if size > i64::MAX as u64 {
                return Err(GuestError::Protocol("a file is longer than a file can be"));
            }
            Kind::File { mode, size, digest: from.take()? }
        }
        2 => {
            let length = from.u16()?;
            if length == 0 || length > TARGET_MAX {
                return Err(GuestError::Protocol("a link's target is empty or too long"));
            }
            let mut target = vec![0; length];
            from.fill(&mut target)?;
            if target.contains(&0) {
                return Err(GuestError::Protocol("a link's target holds a NUL byte"));
            }
            Kind::Symlink { target }
        }
        _ => return Err(GuestError::Protocol("an entry is of no known kind")),
    };
    Ok(Row { path: path.clone(), mtime, kind })
}

/// Reads rows that were checked when they were written; none where they are damaged.
pub(crate) fn decode_trusted(bytes: &[u8], count: u64) -> Option<Vec<Row>> {
    decode(bytes, count).ok().map(|(rows, _)| rows)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(path: &[u8], size: u64) -> Row {
        Row {
            path: path.to_vec(),
            mtime: Mtime { secs: -1, nanos: 999_999_999 },
            kind: Kind::File { mode: 0o755, size, digest: [7; 20] },
        }
    }

    #[test]
    fn rows_come_back_and_what_is_no_tree_does_not() {
        let mut rows = vec![
            Row { kind: Kind::Directory { mode: 0o700 }, ..file(b"a", 0) },
            file(b"a/\xff\n", 1 << 40),
            Row { kind: Kind::Symlink { target: b"../x".to_vec() }, ..file(b"ab", 0) },
        ];
        let bytes = encode_rows(rows.iter());
        let (decoded, digest) = decode(&bytes[..], 3).unwrap();
        assert_eq!((&decoded, digest), (&rows, Sha1::digest(&bytes).into()));
        assert!(matches!(decode(&bytes[..], 2), Err(GuestError::Protocol(_))));
        assert!(matches!(decode(&bytes[..], 4), Err(GuestError::Stream(_))));
        assert!(matches!(decode(&bytes[..], u64::MAX), Err(GuestError::Tree(_))));
        for bad in [&b"a"[..], b"0", b"b/../c", b"b/c", b"ab/c", b"b//c", b""] {
            rows.push(file(bad, 0));
            let refused = decode(&encode_rows(rows.iter())[..], 4);
            assert!(matches!(refused, Err(GuestError::Tree(_))), "{bad:?}: {refused:?}");
            rows.pop();
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            for count in [1, 3] {
                decode(&bytes[..], count).map(drop).unwrap_or_default();
            }
        }
    }
}
