//! The **sparse form** of a file on a stream: its data without its holes, compressed, and its length at the end.
//!
//! ```text
//! one zstd frame with a checksum, of:
//!   "warren-sparse-1\0"
//!   1 · offset (u64) · length (u32) · so many bytes      for each piece, in the order of their places
//!   2 · length of the file (u64)                         at the end
//! ```
//!
//! All numbers are big endian. A stream that breaks off has no end, so half a file is never taken for a whole one. One that goes on where
//! another broke off has the pieces from there on only; that its file is still the same is known by a [`Prefix`](crate::prefix::Prefix).

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::FileExt,
};

use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};

/// The most bytes of a piece.
pub const PIECE_MAX: usize = 256 << 10;

const NAME: &[u8; 16] = b"warren-sparse-1\0";
const DATA: u8 = 1;
const END: u8 = 2;
/// As fast as a network is.
const LEVEL: i32 = 1;
/// The most that a sender's compression may make its receiver keep in memory, as a power of two: 8 MiB, which every level up to 19 asks for.
const WINDOW_LOG: u32 = 23;
/// What is left out where it is zeros.
const BLOCK: usize = 4096;

/// Sends a file; also one that is written from its beginning to its end ([`Write`]), such as an archive.
pub struct Sender<W: Write> {
    to: zstd::Encoder<'static, W>,
    at: u64,
}

impl<W: Write> Sender<W> {
    /// Begins.
    ///
    /// # Errors
    /// Nobody takes it.
    pub fn new(to: W) -> io::Result<Self> {
        Self::from(to, 0)
    }

    /// Goes on at that offset.
    ///
    /// # Errors
    /// Nobody takes it.
    pub fn from(to: W, at: u64) -> io::Result<Self> {
        let mut to = zstd::Encoder::new(to, LEVEL)?;
        to.include_checksum(true)?;
        to.write_all(NAME)?;
        Ok(Self { to, at })
    }

    fn piece(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.to.write_all(&[DATA])?;
        self.to.write_all(&offset.to_be_bytes())?;
        self.to.write_all(&length.to_be_bytes())?;
        self.to.write_all(bytes)?;
        self.at = offset + u64::from(length);
        Ok(())
    }

    /// Sends a file's data from where it began; `sent` hears how far in the file it is. Gives the file's length.
    ///
    /// # Errors
    /// It cannot be read, became shorter, or nobody takes it.
    pub fn file(&mut self, file: &File, mut sent: impl FnMut(u64)) -> io::Result<u64> {
        let (from, length) = (self.at, file.metadata()?.len());
        data_between(file, from, length, |at, bytes| {
            self.piece(at, bytes)?;
            sent(at + bytes.len() as u64);
            Ok(())
        })?;
        Ok(length)
    }

    /// Says that the file has that length, and ends.
    ///
    /// # Errors
    /// Nobody takes it.
    pub fn finish(mut self, length: u64) -> io::Result<W> {
        self.to.write_all(&[END])?;
        self.to.write_all(&length.to_be_bytes())?;
        self.to.finish()
    }

    /// How many bytes were written, of a file that is written to its end.
    pub fn written(&self) -> u64 {
        self.at
    }

    /// Whoever takes it.
    pub fn get_ref(&self) -> &W {
        self.to.get_ref()
    }
}

impl<W: Write> Write for Sender<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PIECE_MAX);
        if count > 0 {
            self.piece(self.at, &bytes[..count])?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Reads a file's data in pieces, its holes left out; gives its length.
///
/// # Errors
/// It cannot be read, became shorter, or what `take` answers.
pub fn data(file: &File, take: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<u64> {
    let length = file.metadata()?.len();
    data_between(file, 0, length, take)?;
    Ok(length)
}

/// Reads a file's data from one offset up to another in pieces, its holes left out.
///
/// # Errors
/// It cannot be read, is shorter, or what `take` answers.
pub fn data_between(
    file: &File,
    from: u64,
    to: u64,
    mut take: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let (mut buffer, mut at) = (vec![0; PIECE_MAX], from);
    while at < to {
        let Some((data, hole)) = data_from(file, at, to)? else { break };
        at = data;
        while at < hole {
            let wanted = usize::try_from(hole - at).map_or(PIECE_MAX, |left| left.min(PIECE_MAX));
            file.read_exact_at(&mut buffer[..wanted], at)?;
            take(at, &buffer[..wanted])?;
            at += wanted as u64;
        }
    }
    Ok(())
}

/// The next stretch of data from `at` on, up to `length`.
fn data_from(file: &File, at: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
    let signed = |value: u64| i64::try_from(value).map_err(io::Error::other);
    match lseek(file, signed(at)?, Whence::SeekData) {
        Ok(data) => {
            let hole = lseek(file, data, Whence::SeekHole)?;
            Ok(Some((data.unsigned_abs(), hole.unsigned_abs().min(length))))
        }
        // No data after this.
        Err(Errno::ENXIO) => Ok(None),
        // A filesystem that knows no holes.
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(Some((at, length))),
        Err(error) => Err(error.into()),
    }
}

/// Why a file was not received.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// It is larger than it may be.
    #[error("it has more than {0} bytes")]
    TooLarge(u64),
    /// It is not in this form.
    #[error("it is malformed: {0}")]
    Malformed(&'static str),
    /// The stream broke, or is damaged.
    #[error("it did not come to its end: {0}")]
    Stream(#[source] io::Error),
    /// It cannot be written here.
    #[error("it cannot be written: {0}")]
    Disk(#[source] io::Error),
}

/// Writes what is received into a file that has what is before `begin` and nothing after it, holes and zeros left out; gives its length.
/// `go_on` hears of each piece once it is written, and where it stands. Reads to the stream's end.
///
/// # Errors
/// As [`ReceiveError`] says; what `go_on` answers is [`ReceiveError::Disk`].
pub fn receive(
    from: impl Read,
    into: &File,
    begin: u64,
    limit: u64,
    mut go_on: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> Result<u64, ReceiveError> {
    let mut from = zstd::Decoder::new(from).map_err(ReceiveError::Stream)?;
    from.window_log_max(WINDOW_LOG).map_err(ReceiveError::Stream)?;
    let mut name = [0; NAME.len()];
    fill(&mut from, &mut name)?;
    if name != *NAME {
        return Err(ReceiveError::Malformed("it is in another form"));
    }
    let (mut end, mut buffer) = (begin, vec![0; PIECE_MAX]);
    let length = loop {
        match u8::from_be_bytes(number(&mut from)?) {
            DATA => {
                let offset = u64::from_be_bytes(number(&mut from)?);
                let count = u32::from_be_bytes(number(&mut from)?) as usize;
                if offset < end || count == 0 || count > PIECE_MAX {
                    return Err(ReceiveError::Malformed("a piece is out of order, or of an impossible length"));
                }
                end = offset.saturating_add(count as u64);
                if end > limit {
                    return Err(ReceiveError::TooLarge(limit));
                }
                fill(&mut from, &mut buffer[..count])?;
                write_sparse(into, offset, &buffer[..count]).map_err(ReceiveError::Disk)?;
                go_on(offset, &buffer[..count]).map_err(ReceiveError::Disk)?;
            }
            END => break u64::from_be_bytes(number(&mut from)?),
            _ => return Err(ReceiveError::Malformed("a piece is of an unknown kind")),
        }
    };
    if length > limit {
        return Err(ReceiveError::TooLarge(limit));
    }
    if length < end || from.read(&mut [0]).map_err(ReceiveError::Stream)? != 0 {
        return Err(ReceiveError::Malformed("it goes on after its end"));
    }
    into.set_len(length).map_err(ReceiveError::Disk)?;
    Ok(length)
}

fn fill(from: &mut impl Read, buffer: &mut [u8]) -> Result<(), ReceiveError> {
    from.read_exact(buffer).map_err(ReceiveError::Stream)
}

fn number<const N: usize>(from: &mut impl Read) -> Result<[u8; N], ReceiveError> {
    let mut bytes = [0; N];
    fill(from, &mut bytes)?;
    Ok(bytes)
}

/// Writes what is not zeros, in as few writes as there are stretches of it.
///
/// # Errors
/// The disk is full.
pub fn write_sparse(into: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let (mut from, mut at) = (0, 0);
    for block in bytes.chunks(BLOCK) {
        if *block == ZEROS[..block.len()] {
            if from < at {
                into.write_all_at(&bytes[from..at], offset + from as u64)?;
            }
            from = at + block.len();
        }
        at += block.len();
    }
    if from < at {
        into.write_all_at(&bytes[from..at], offset + from as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn received(bytes: &[u8], limit: u64) -> Result<(File, u64), ReceiveError> {
        let into = tempfile::tempfile().unwrap();
        receive(bytes, &into, 0, limit, |_, _| Ok(())).map(|length| (into, length))
    }

    fn sent(file: &File) -> Vec<u8> {
        let mut sender = Sender::new(Vec::new()).unwrap();
        let length = sender.file(file, |_| ()).unwrap();
        sender.finish(length).unwrap()
    }

    #[test]
    fn a_file_arrives_with_its_holes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len((64 << 20) + 5).unwrap();
        for at in [0, 20 << 20, (64 << 20) + 1] {
            file.write_all_at(&[7; 4], at).unwrap();
        }
        file.write_all_at(&[0; 1 << 20], 30 << 20).unwrap();
        let bytes = sent(&file);
        assert!(bytes.len() < 64 << 10, "{}", bytes.len());
        let (into, length) = received(&bytes, 1 << 30).unwrap();
        assert_eq!((length, into.metadata().unwrap().len()), ((64 << 20) + 5, (64 << 20) + 5));
        assert!(into.metadata().unwrap().blocks() * 512 < 1 << 20, "zeros were written");
        let mut four = [0; 4];
        into.read_exact_at(&mut four, (64 << 20) + 1).unwrap();
        assert_eq!(four, [7; 4]);
        assert!(matches!(received(&bytes, 64 << 20), Err(ReceiveError::TooLarge(_))));
    }

    #[test]
    fn what_is_written_arrives_in_order() {
        let mut sender = Sender::new(Vec::new()).unwrap();
        sender.write_all(&[1; PIECE_MAX + 3]).unwrap();
        sender.write_all(b"end").unwrap();
        let length = sender.written();
        let (into, length) = received(&sender.finish(length).unwrap(), 1 << 30).unwrap();
        let mut end = [0; 4];
        into.read_exact_at(&mut end, length - 4).unwrap();
        assert_eq!((length, &end), (PIECE_MAX as u64 + 6, b"\x01end"));
    }

    #[test]
    fn what_breaks_off_is_damaged_or_lies_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&(0..200_000u32).flat_map(u32::to_be_bytes).collect::<Vec<_>>(), 0).unwrap();
        let bytes = sent(&file);
        for end in [0, 1, 20, bytes.len() / 2, bytes.len() - 1] {
            assert!(matches!(received(&bytes[..end], 1 << 30), Err(ReceiveError::Stream(_))), "{end}");
        }
        let mut damaged = bytes.clone();
        damaged[bytes.len() / 2] ^= 1;
        assert!(received(&damaged, 1 << 30).is_err());
        assert!(received(&[&bytes[..], &bytes[..]].concat(), 1 << 30).is_err());
        let form = |bytes: &[u8]| zstd::encode_all(&[&NAME[..], bytes].concat()[..], 1).unwrap();
        let piece = |offset: u64, count: u32| [&[DATA][..], &offset.to_be_bytes(), &count.to_be_bytes()].concat();
        for lie in [
            [piece(5, 1), vec![1], piece(0, 1), vec![1]].concat(),
            piece(0, u32::MAX),
            piece(0, 0),
            vec![9],
            [piece(0, 2), vec![1, 1], vec![END], vec![0; 8]].concat(),
        ] {
            assert!(matches!(received(&form(&lie), 1 << 30), Err(ReceiveError::Malformed(_))), "{lie:?}");
        }
        assert!(matches!(received(&form(&piece(u64::MAX, 9)), 1 << 30), Err(ReceiveError::TooLarge(_))));
        let huge = [&[END][..], &u64::MAX.to_be_bytes()].concat();
        assert!(matches!(received(&form(&huge), 1 << 30), Err(ReceiveError::TooLarge(_))));
    }
}
