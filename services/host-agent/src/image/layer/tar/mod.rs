//! A streaming reader of tar archives as image layers are: ustar, pax, GNU's long names, base-256 numbers and sparse
//! files (old, 0.0, 0.1, 1.0). Names are bytes. What it holds in memory is one entry's description.

mod header;
mod pax;
mod sparse;

use std::{
    fmt,
    io::{self, BufRead, Read},
};

use header::Header;
use pax::Extended;
pub(crate) use sparse::Piece;

/// The unit of a tar archive, in bytes.
pub(crate) const BLOCK: usize = 512;
/// The most bytes of all that stands between two entries, headers counted: extended attributes of some kilobytes fit many times.
const EXTENDED_MAX: u64 = 1 << 20;

/// Why an archive cannot be read on.
#[derive(Debug)]
pub(crate) enum Error {
    /// What it comes from failed.
    Io(io::Error),
    /// It is none.
    Malformed(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Malformed(why) => f.write_str(why),
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn malformed(why: impl Into<String>) -> Error {
    Error::Malformed(why.into())
}

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    Link,
    Character,
    Block,
    Fifo,
}

/// An entry's description.
#[derive(Debug)]
pub(crate) struct Member {
    pub kind: Kind,
    pub path: Vec<u8>,
    /// A symlink's or hard link's target.
    pub link: Vec<u8>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    pub device: (u32, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// A file's bytes, holes counted.
    pub size: u64,
}

/// A stretch of a file's contents.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    Data(&'a [u8]),
    /// So many zeros that the archive does not hold.
    Hole(u64),
}

/// Reads entry by entry.
pub(crate) struct Reader<R> {
    input: R,
    /// What is left of the current entry's stored bytes, and the filling after them.
    stored: u64,
    filling: u64,
    size: u64,
    pieces: Option<Vec<Piece>>,
}

/// The stored bytes of an entry that are still to come, for whoever jumps over them.
pub(crate) struct Rest<'a, R> {
    pub input: &'a mut R,
    pub stored: u64,
    /// What fills up the last block.
    pub filling: u64,
    /// They are a sparse file's data, without its holes.
    pub sparse: bool,
}

impl<R: BufRead> Reader<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, stored: 0, filling: 0, size: 0, pieces: None }
    }

    /// Passes over what follows the archive's end, which is part of the layer's digest.
    pub(crate) fn drain(&mut self) -> Result<(), Error> {
        loop {
            let count = self.input.fill_buf()?.len();
            if count == 0 {
                return Ok(());
            }
            self.input.consume(count);
        }
    }

    /// Leaves the rest of the current entry to the caller: the next header is read where the input stands then.
    pub(crate) fn jump(&mut self) -> Rest<'_, R> {
        let (stored, filling) = (std::mem::take(&mut self.stored), std::mem::take(&mut self.filling));
        Rest { stored, filling, sparse: self.pieces.take().is_some(), input: &mut self.input }
    }

    /// The next entry, what is left of the one before passed over; none at the archive's end.
    pub(crate) fn next(&mut self) -> Result<Option<Member>, Error> {
        self.skip()?;
        let mut extended = Extended::default();
        let (mut long_path, mut long_link, mut left) = (None, None, EXTENDED_MAX);
        loop {
            let Some(block) = self.header()? else { return Ok(None) };
            let header = Header::read(&block)?;
            match header.kind() {
                b'x' | b'X' => {
                    // The last one counts, as it does for other readers: none sees another entry than this one.
                    extended = Extended::default();
                    extended.read(&self.extension(&header, &mut left)?)?;
                }
                b'L' => long_path = Some(zero_ended(self.extension(&header, &mut left)?)),
                b'K' => long_link = Some(zero_ended(self.extension(&header, &mut left)?)),
                // What is said of the whole archive (commit ids and the like) is passed over, as the tools that make images do.
                b'g' | b'V' => {
                    (self.stored, self.filling) = (header.size()?, filling(header.size()?));
                    self.skip()?;
                }
                _ => return self.member(&header, extended, long_path, long_link).map(Some),
            }
        }
    }

    /// Hands the current file's contents on, in order and to the last byte.
    pub(crate) fn content<E: From<Error>>(&mut self, mut take: impl FnMut(Part<'_>) -> Result<(), E>) -> Result<(), E> {
        let Some(pieces) = self.pieces.take() else {
            return self.data(self.stored, &mut take);
        };
        let mut at = 0;
        for piece in pieces.iter().filter(|piece| piece.length > 0) {
            if piece.offset > at {
                take(Part::Hole(piece.offset - at))?;
            }
            self.data(piece.length, &mut take)?;
            at = piece.end();
        }
        if self.size > at { take(Part::Hole(self.size - at)) } else { Ok(()) }
    }

    fn data<E: From<Error>>(
        &mut self,
        mut length: u64,
        take: &mut impl FnMut(Part<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while length > 0 {
            let buffer = self.input.fill_buf().map_err(Error::from)?;
            if buffer.is_empty() {
                return Err(malformed("it ends in the middle of a file").into());
            }
            let count = buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            take(Part::Data(&buffer[..count]))?;
            self.input.consume(count);
            length -= count as u64;
            self.stored -= count as u64;
        }
        Ok(())
    }

    fn skip(&mut self) -> Result<(), Error> {
        let mut left = self.stored.saturating_add(self.filling);
        while left > 0 {
            let count = self.input.fill_buf()?.len();
            if count == 0 {
                return Err(malformed("it ends in the middle of an entry"));
            }
            let count = count.min(usize::try_from(left).unwrap_or(usize::MAX));
            self.input.consume(count);
            left -= count as u64;
        }
        (self.stored, self.filling, self.pieces) = (0, 0, None);
        Ok(())
    }

    /// A header block; none at the end, which two blocks of zeros mark, or nothing.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        let mut block = [0; BLOCK];
        if self.input.fill_buf()?.is_empty() {
            return Ok(None);
        }
        exact(&mut self.input, &mut block)?;
        if block != [0; BLOCK] {
            return Ok(Some(block));
        }
        if !self.input.fill_buf()?.is_empty() {
            exact(&mut self.input, &mut block)?;
            if block != [0; BLOCK] {
                return Err(malformed("entries follow its end"));
            }
        }
        Ok(None)
    }

    /// The contents of an entry that is about the next one, of which so many bytes are `left`.
    fn extension(&mut self, header: &Header<'_>, left: &mut u64) -> Result<Vec<u8>, Error> {
        let size = header.size()?;
        let more = left.checked_sub(BLOCK as u64).and_then(|left| left.checked_sub(size));
        *left = more.ok_or_else(|| {
            malformed(format!("the extended headers of an entry have more than {EXTENDED_MAX} bytes"))
        })?;
        let mut bytes = Vec::new();
        (&mut self.input).take(size).read_to_end(&mut bytes)?;
        // Of an archive that ends here, what is missing is found missing by this.
        (self.stored, self.filling) = (size - bytes.len() as u64, filling(size));
        self.skip()?;
        Ok(bytes)
    }

    fn member(
        &mut self,
        header: &Header<'_>,
        extended: Extended,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Member, Error> {
        // Of a file without a map this name says nothing: other readers do not look at it.
        let sparse = extended.sparse.name.clone().filter(|_| extended.sparse.is_map());
        let path = sparse.or(extended.path.clone()).or(long_path).unwrap_or_else(|| header.path());
        let kind = kind(header.kind(), &path)?;
        let said = match extended.size {
            Some(size) => size,
            None => header.size()?,
        };
        // Links, directories and devices have no contents, whatever their size says.
        let stored = if kind == Kind::File { said } else { 0 };
        (self.stored, self.filling, self.size) = (stored, filling(stored), stored);
        if kind == Kind::File {
            self.sparse(header, &extended)?;
        }
        let id = |said: Option<u64>, at, what| {
            let id = match said {
                Some(id) => id,
                None => header.number(at, 8, what)?.try_into().unwrap_or(u64::MAX),
            };
            // The last number stands for nobody.
            u32::try_from(id)
                .ok()
                .filter(|id| *id < u32::MAX)
                .ok_or_else(|| malformed(format!("an entry's {what} is no user or group")))
        };
        Ok(Member {
            kind,
            link: extended.link.or(long_link).unwrap_or_else(|| header.link()),
            mode: (header.number(100, 8, "mode")? & 0o7777) as u16,
            uid: id(extended.uid, 108, "uid")?,
            gid: id(extended.gid, 116, "gid")?,
            mtime: match extended.mtime {
                Some(mtime) => mtime,
                None => (header.number(136, 12, "time")?, 0),
            },
            device: if matches!(kind, Kind::Character | Kind::Block) { header.device()? } else { (0, 0) },
            xattrs: extended.xattrs,
            size: self.size,
            path,
        })
    }

    /// Reads the map of a sparse file, if it is one.
    fn sparse(&mut self, header: &Header<'_>, extended: &Extended) -> Result<(), Error> {
        let said = &extended.sparse;
        let (pieces, real_size) = if header.kind() == b'S' {
            let real =
                u64::try_from(header.number(483, 12, "real size")?).map_err(|_| malformed("a size is negative"))?;
            (self.old_map(header)?, real)
        } else if said.major == Some(1) {
            let real = said.real_size.ok_or_else(|| malformed("a sparse file has no size"))?;
            (self.map_before_data()?, real)
        } else if said.mapped {
            (said.pieces.clone(), said.real_size.ok_or_else(|| malformed("a sparse file has no size"))?)
        } else {
            return Ok(());
        };
        if sparse::data(&pieces, real_size)? != self.stored {
            return Err(malformed("a sparse map speaks of other data than there is"));
        }
        (self.pieces, self.size) = (Some(pieces), real_size);
        Ok(())
    }

    /// The old format: four pieces in the header, and 21 in each block after it.
    fn old_map(&mut self, header: &Header<'_>) -> Result<Vec<Piece>, Error> {
        let mut pieces = Vec::new();
        let mut take = |field: &[u8]| -> Result<(), Error> {
            let wrong = || malformed("a sparse map has what is no number");
            let part =
                |field: &[u8]| header::number(field).and_then(|number| u64::try_from(number).ok()).ok_or_else(wrong);
            // An unused place is all zeros.
            if field.iter().all(|byte| *byte == 0) {
                Ok(())
            } else {
                Piece::push(&mut pieces, part(&field[..12])?, part(&field[12..])?)
            }
        };
        for field in header.bytes(386, 4 * 24).chunks(24) {
            take(field)?;
        }
        let mut more = header.bytes(482, 1)[0] != 0;
        while more {
            let mut block = [0; BLOCK];
            exact(&mut self.input, &mut block)?;
            for field in block[..21 * 24].chunks(24) {
                take(field)?;
            }
            more = block[504] != 0;
        }
        Ok(pieces)
    }

    /// Format 1.0: decimal numbers, one a line, in blocks before the data.
    fn map_before_data(&mut self) -> Result<Vec<Piece>, Error> {
        let mut used = 0u64;
        let mut number = |stored: u64| -> Result<u64, Error> {
            let mut value = 0u64;
            for _ in 0..=20 {
                if used == stored {
                    return Err(malformed("a sparse map does not end"));
                }
                let mut byte = [0];
                exact(&mut self.input, &mut byte)?;
                used += 1;
                match byte[0] {
                    b'\n' => return Ok(value),
                    digit @ b'0'..=b'9' => {
                        let next = value.checked_mul(10).and_then(|value| value.checked_add(u64::from(digit - b'0')));
                        value = next.ok_or_else(|| malformed("a sparse map has too large a number"))?;
                    }
                    _ => break,
                }
            }
            Err(malformed("a sparse map has what is no number"))
        };
        let mut pieces = Vec::new();
        for _ in 0..number(self.stored)? {
            let (offset, length) = (number(self.stored)?, number(self.stored)?);
            Piece::push(&mut pieces, offset, length)?;
        }
        let rest = filling(used);
        if used + rest > self.stored {
            return Err(malformed("a sparse map does not end"));
        }
        self.stored -= used;
        exact(&mut self.input, &mut [0; BLOCK][..rest as usize])?;
        self.stored -= rest;
        Ok(pieces)
    }
}

/// Fills a buffer, of an archive that does not end here.
fn exact(input: &mut impl BufRead, mut into: &mut [u8]) -> Result<(), Error> {
    while !into.is_empty() {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            return Err(malformed("it ends in the middle of an entry"));
        }
        let count = buffer.len().min(into.len());
        into[..count].copy_from_slice(&buffer[..count]);
        input.consume(count);
        into = &mut into[count..];
    }
    Ok(())
}

/// What an entry's type makes.
fn kind(kind: u8, path: &[u8]) -> Result<Kind, Error> {
    Ok(match kind {
        // Before there were types, directories had a slash at the end.
        0 if path.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' | b'S' => Kind::File,
        b'1' => Kind::Link,
        b'2' => Kind::Symlink,
        b'3' => Kind::Character,
        b'4' => Kind::Block,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => return Err(malformed(format!("an entry is of the unknown type {:?}", char::from(other)))),
    })
}

/// How many bytes fill up the last block.
fn filling(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

/// A long name ends with a zero.
fn zero_ended(mut name: Vec<u8>) -> Vec<u8> {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    name.truncate(end);
    name
}

#[cfg(test)]
mod tests;
