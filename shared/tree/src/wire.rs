//! The **messages** of a prepare: one byte of kind, four of length (big endian), then so many bytes.
//!
//! The client begins with `hello`; the guest answers `same` or `send`. After `send` come the rows of the tree in `list` messages (a
//! zstd frame with its checksum, cut into pieces), the guest's `want` (a bit for each row, least first), the wanted files' contents one after the
//! other in `content` messages (a zstd frame again), and `end`. The guest's last word is `done`. `fail` is the client's, at any time.

use std::io::{self, Read, Write};

use contract::worktree::ENTRIES_MAX;

/// The version of this protocol; a guest that knows another refuses.
pub(crate) const VERSION: u8 = 1;
/// The most bytes of one message.
pub(crate) const MESSAGE_MAX: usize = 512 * 1024;
/// The bytes of a message that is one piece of more.
const PIECE: usize = 48 * 1024 - 5;
/// The most bytes all rows of a tree may have, before compression.
pub(crate) const ROWS_MAX: u64 = 512 << 20;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Tag {
    Hello = 1,
    List = 2,
    Content = 3,
    End = 4,
    Fail = 5,
    Same = 16,
    Send = 17,
    Want = 18,
    Done = 19,
}

impl Tag {
    fn of(byte: u8) -> Option<Self> {
        use Tag::*;
        [Hello, List, Content, End, Fail, Same, Send, Want, Done].into_iter().find(|tag| *tag as u8 == byte)
    }
}

/// The first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    /// SHA-1 of all rows.
    pub digest: [u8; 20],
    /// How many rows.
    pub entries: u64,
    /// Bytes of all contents.
    pub bytes: u64,
}

impl Hello {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.digest);
        bytes.extend_from_slice(&self.entries.to_be_bytes());
        bytes.extend_from_slice(&self.bytes.to_be_bytes());
        bytes
    }

    /// Reads it; the text says what is wrong.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let (version, rest) = bytes.split_first().ok_or("its first message is empty")?;
        if *version != VERSION {
            return Err("it speaks another version of the protocol: the VM was started by another version of Warren");
        }
        if rest.len() != 36 {
            return Err("its first message has another length");
        }
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&rest[at..at + 8]);
            u64::from_be_bytes(bytes)
        };
        let mut digest = [0; 20];
        digest.copy_from_slice(&rest[..20]);
        Ok(Self { digest, entries: number(20), bytes: number(28) })
    }
}

/// Writes one message.
pub(crate) fn write(to: &mut impl Write, tag: Tag, payload: &[u8]) -> io::Result<()> {
    debug_assert!(payload.len() <= MESSAGE_MAX);
    let mut header = [tag as u8, 0, 0, 0, 0];
    header[1..].copy_from_slice(&(payload.len() as u32).to_be_bytes());
    to.write_all(&header)?;
    to.write_all(payload)
}

/// Reads one message into `buffer`; its kind.
pub(crate) fn read(from: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<Tag> {
    let mut header = [0; 5];
    from.read_exact(&mut header)?;
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let tag = Tag::of(header[0]).ok_or_else(|| invalid("a message of no known kind"))?;
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if length > MESSAGE_MAX {
        return Err(invalid("a message over the limit of 524288 bytes"));
    }
    buffer.resize(length, 0);
    from.read_exact(buffer)?;
    Ok(tag)
}

/// Cuts what is written into messages of one kind; they end with an empty one.
pub(crate) struct Pieces<W: Write> {
    to: W,
    tag: Tag,
    piece: Vec<u8>,
}

impl<W: Write> Pieces<W> {
    pub(crate) fn new(to: W, tag: Tag) -> Self {
        Self { to, tag, piece: Vec::with_capacity(PIECE) }
    }

    /// Writes what is left and the end.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.pass()?;
        write(&mut self.to, self.tag, &[])?;
        self.to.flush()
    }

    fn pass(&mut self) -> io::Result<()> {
        if !self.piece.is_empty() {
            write(&mut self.to, self.tag, &self.piece)?;
            self.piece.clear();
        }
        Ok(())
    }
}

impl<W: Write> Write for Pieces<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..count]);
        if self.piece.len() == PIECE {
            self.pass()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pass()?;
        self.to.flush()
    }
}

/// What [`Pieces`] wrote, read again.
pub(crate) struct Whole<'a, R: Read> {
    from: &'a mut R,
    tag: Tag,
    piece: Vec<u8>,
    at: usize,
    ended: bool,
    /// What the other side said when it gave up.
    pub failed: Option<String>,
}

impl<'a, R: Read> Whole<'a, R> {
    pub(crate) fn new(from: &'a mut R, tag: Tag) -> Self {
        Self { from, tag, piece: Vec::new(), at: 0, ended: false, failed: None }
    }
}

impl<R: Read> Read for Whole<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() && !self.ended && !buffer.is_empty() {
            self.at = 0;
            match read(self.from, &mut self.piece)? {
                tag if tag == self.tag => self.ended = self.piece.is_empty(),
                Tag::Fail => {
                    self.failed = Some(text(&self.piece));
                    return Err(io::Error::other("the other side gave up"));
                }
                _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "a message out of its turn")),
            }
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// A text of the other side's, bounded and without what a terminal would act on.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().filter(|char| !char.is_control()).take(1024).collect()
}

/// A bit for each of so many rows.
pub(crate) fn encode_bits(bits: &[bool]) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; bits.len().div_ceil(8)];
    for (index, _) in bits.iter().enumerate().filter(|(_, bit)| **bit) {
        bytes[index / 8] |= 1 << (index % 8);
    }
    zstd::bulk::compress(&bytes, 1)
}

/// Reads them.
pub(crate) fn decode_bits(bytes: &[u8], count: usize) -> Option<Vec<bool>> {
    debug_assert!(count as u64 <= ENTRIES_MAX);
    let bytes = zstd::bulk::decompress(bytes, count.div_ceil(8).max(1)).ok()?;
    (bytes.len() == count.div_ceil(8))
        .then(|| (0..count).map(|index| bytes[index / 8] >> (index % 8) & 1 == 1).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_back_whole_and_a_failure_is_told() {
        let bytes: Vec<u8> = (0..200_000_u32).map(|number| number as u8).collect();
        let mut wire = Vec::new();
        let mut pieces = Pieces::new(&mut wire, Tag::Content);
        pieces.write_all(&bytes).unwrap();
        pieces.finish().unwrap();
        let (mut from, mut read) = (&wire[..], Vec::new());
        Whole::new(&mut from, Tag::Content).read_to_end(&mut read).unwrap();
        assert!(read == bytes && from.is_empty());
        let mut wire = Vec::new();
        write(&mut wire, Tag::Fail, b"no\x1b more").unwrap();
        let mut from = &wire[..];
        let mut whole = Whole::new(&mut from, Tag::Content);
        assert!(whole.read(&mut [0]).is_err());
        assert_eq!(whole.failed.as_deref(), Some("no more"));
        assert!(super::read(&mut &[1, 0xff, 0xff, 0xff, 0xff][..], &mut Vec::new()).is_err());
    }

    #[test]
    fn bits_come_back() {
        for count in [0, 1, 8, 9, 1000] {
            let bits: Vec<bool> = (0..count).map(|index| index % 3 == 0).collect();
            assert_eq!(decode_bits(&encode_bits(&bits).unwrap(), count).unwrap(), bits);
        }
        assert!(decode_bits(&encode_bits(&[true; 99]).unwrap(), 8).is_none());
    }
}
