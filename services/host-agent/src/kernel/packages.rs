//! **Packages** as distributions make them, read from front to back: the archive inside is walked, and each regular file is handed on
//! with its path. What the package says beside that is not looked at.

use std::{
    cell::Cell,
    io::{self, BufRead, Read},
    rc::Rc,
};

use tokio_util::sync::CancellationToken;

use super::{
    offer::{OfferError, failed, refuse},
    packed,
};

/// The bytes an ar archive begins with, and those of each member's header.
const AR_MAGIC: u64 = 8;
const AR_HEADER: usize = 60;
/// The bytes of a cpio entry's header, before its name, and the name that ends an archive.
const CPIO_HEADER: usize = 110;
const CPIO_END: &[u8] = b"TRAILER!!!";
/// How an RPM begins (RPM file format, "Lead").
pub(super) const RPM_MAGIC: [u8; 4] = [0xed, 0xab, 0xee, 0xdb];
/// The lead's size, in bytes.
const RPM_LEAD: u64 = 96;
/// How a header of an RPM begins, with its version.
const RPM_HEADER: [u8; 4] = [0x8e, 0xad, 0xe8, 0x01];
/// The most entries and bytes of an RPM's header, as rpm itself takes them.
const RPM_ENTRIES_MAX: u64 = 0xffff;
const RPM_DATA_MAX: u64 = 256 << 20;
/// The longest path an archive may announce ahead of an entry, in bytes.
const LONG_NAME_MAX: u64 = 4096;
/// The longest attributes of an entry (pax), in bytes.
const PAX_MAX: u64 = 64 * 1024;

/// What a file in a package is to a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inside<'a> {
    /// The kernel itself; of which release, where its path tells.
    Image {
        /// The release.
        release: Option<&'a str>,
    },
    /// A module or a list of modules.
    Module {
        /// The release.
        release: &'a str,
        /// Its path below the release's directory.
        below: &'a str,
    },
}

/// How many bytes may still be unpacked, of all that is read for one offer, and whether to go on at all.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    left: Rc<Cell<u64>>,
    cancel: CancellationToken,
}

impl Budget {
    /// That many at the most, until that is cancelled.
    pub fn new(bytes: u64, cancel: CancellationToken) -> Self {
        Self { left: Rc::new(Cell::new(bytes)), cancel }
    }

    /// Bytes that count. More of them are an error, not an end: an archive must not lose its tail to a limit unnoticed.
    pub fn of<R: Read>(&self, inner: R) -> Counting<R> {
        Counting { inner, budget: self.clone() }
    }
}

/// What is read within a [`Budget`].
pub(super) struct Counting<R> {
    inner: R,
    budget: Budget,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.budget.cancel.is_cancelled() {
            return Err(io::Error::other("told to end"));
        }
        let read = self.inner.read(buffer)?;
        let left = self.budget.left.get().checked_sub(read as u64);
        self.budget.left.set(left.ok_or_else(|| io::Error::other("it unpacks to too much"))?);
        Ok(read)
    }
}

/// Counts what is read through it.
struct Counted<R> {
    inner: R,
    read: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.read += read as u64;
        Ok(read)
    }
}

/// Takes one regular file.
pub(super) type Take<'a> = dyn FnMut(&str, &mut dyn Read) -> Result<(), OfferError> + 'a;

/// Debian's: an ar archive with `data.tar.*` (deb(5)). Whatever stands before that is read over.
pub(super) fn deb(mut bytes: impl BufRead, budget: &Budget, take: &mut Take<'_>) -> Result<(), OfferError> {
    let damaged = || failed("the .deb package is damaged");
    skip(&mut bytes, AR_MAGIC).map_err(damaged())?;
    loop {
        if bytes.fill_buf().map_err(damaged())?.is_empty() {
            return refuse("the .deb package has no data");
        }
        let mut header = [0; AR_HEADER];
        bytes.read_exact(&mut header).map_err(damaged())?;
        let size = std::str::from_utf8(&header[48..58]).ok().and_then(|size| size.trim().parse::<u64>().ok());
        let Some(size) = size.filter(|_| header.ends_with(b"`\n")) else {
            return refuse("the .deb package is damaged: one of its headers is none");
        };
        if header.starts_with(b"data.tar") {
            let unpacked = packed::open((&mut bytes).take(size)).map_err(damaged())?;
            return tar(budget.of(unpacked), take);
        }
        skip(&mut bytes, size.next_multiple_of(2)).map_err(damaged())?;
    }
}

/// Fedora's: a lead, two headers, and a cpio archive.
pub(super) fn rpm(mut bytes: impl BufRead, budget: &Budget, take: &mut Take<'_>) -> Result<(), OfferError> {
    let damaged = || failed("the .rpm package is damaged");
    skip(&mut bytes, RPM_LEAD).map_err(damaged())?;
    // The signatures are padded to eight bytes, the header is not.
    rpm_header(&mut bytes, 8)?;
    rpm_header(&mut bytes, 1)?;
    let mut unpacked = budget.of(packed::open(bytes).map_err(damaged())?);
    while let Some(entry) = CpioEntry::read(&mut unpacked)? {
        let mut file = Counted { inner: (&mut unpacked).take(entry.size), read: 0 };
        // A name that is no text is none of a kernel's.
        if let Some(name) = String::from_utf8(entry.name).ok().filter(|_| entry.regular) {
            take(&name, &mut file)?;
        }
        rest(file, entry.size, "the .rpm package")?;
        skip(&mut unpacked, padding(entry.size)).map_err(damaged())?;
    }
    Ok(())
}

/// What a cpio archive (newc, Linux Documentation/driver-api/early-userspace/buffer-format.rst) says before a file's bytes.
struct CpioEntry {
    name: Vec<u8>,
    regular: bool,
    size: u64,
}

impl CpioEntry {
    /// The next entry; none at the archive's end.
    fn read(bytes: &mut impl Read) -> Result<Option<Self>, OfferError> {
        let damaged = || failed("the .rpm package is damaged");
        let mut header = [0; CPIO_HEADER];
        bytes.read_exact(&mut header).map_err(damaged())?;
        let field = |number: usize| {
            let digits = std::str::from_utf8(&header[6 + 8 * number..][..8]).ok()?;
            u32::from_str_radix(digits, 16).ok().map(u64::from)
        };
        let magic = header.starts_with(b"070701") || header.starts_with(b"070702");
        let (Some(mode), Some(size), Some(length)) = (field(1), field(6), field(11).filter(|_| magic)) else {
            return refuse("the .rpm package is damaged: one of its files has no header");
        };
        if length > LONG_NAME_MAX {
            return refuse("the .rpm package has a name that is too long");
        }
        let mut name = vec![0; length as usize];
        bytes.read_exact(&mut name).map_err(damaged())?;
        skip(bytes, padding(CPIO_HEADER as u64 + length)).map_err(damaged())?;
        name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
        // S_IFMT and S_IFREG of inode(7).
        let entry = Self { regular: mode & 0o170_000 == 0o100_000, size, name };
        Ok((entry.name != CPIO_END).then_some(entry))
    }
}

/// How many bytes fill up to the next multiple of four, as cpio has it.
fn padding(length: u64) -> u64 {
    length.wrapping_neg() % 4
}

/// Reads over what is left of a file: whoever read it sees an archive that was cut short only as a file that ends.
fn rest(mut file: Counted<impl Read>, size: u64, what: &str) -> Result<(), OfferError> {
    io::copy(&mut file, &mut io::sink()).map_err(failed(format!("{what} is damaged")))?;
    if file.read == size { Ok(()) } else { refuse(format!("{what} is cut short")) }
}

fn rpm_header(bytes: &mut impl Read, align: u64) -> Result<(), OfferError> {
    let damaged = || failed("the .rpm package is damaged");
    let mut start = [0; 16];
    bytes.read_exact(&mut start).map_err(damaged())?;
    let word = |at: usize| u64::from(u32::from_be_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]]));
    let (entries, data) = (word(8), word(12));
    if start[..4] != RPM_HEADER || entries > RPM_ENTRIES_MAX || data > RPM_DATA_MAX {
        return refuse("the .rpm package is damaged: one of its headers is none");
    }
    let length = entries * 16 + data;
    skip(bytes, length.next_multiple_of(align)).map_err(damaged())
}

fn skip(bytes: &mut impl Read, count: u64) -> io::Result<()> {
    match io::copy(&mut bytes.take(count), &mut io::sink())? {
        read if read == count => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A tar archive. Long names are read here, because what they announce is bounded here.
pub(super) fn tar(bytes: impl Read, take: &mut Take<'_>) -> Result<(), OfferError> {
    let damaged = || failed("the archive is damaged");
    let mut archive = ::tar::Archive::new(bytes);
    let mut long: Option<Vec<u8>> = None;
    for entry in archive.entries().map_err(damaged())?.raw(true) {
        let mut entry = entry.map_err(damaged())?;
        match entry.header().entry_type() {
            ::tar::EntryType::GNULongName => {
                let mut name = announced(&mut entry, LONG_NAME_MAX)?;
                name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
                long = Some(name);
            }
            ::tar::EntryType::XHeader => {
                let attributes = announced(&mut entry, PAX_MAX)?;
                let path = ::tar::PaxExtensions::new(&attributes)
                    .filter_map(Result::ok)
                    .find(|attribute| attribute.key_bytes() == b"path")
                    .map(|attribute| attribute.value_bytes().to_vec());
                long = path.or(long);
            }
            ::tar::EntryType::Regular | ::tar::EntryType::Continuous => {
                let name = long.take().unwrap_or_else(|| entry.path_bytes().into_owned());
                // A name that is no text is none of a kernel's.
                let size = entry.size();
                let mut file = Counted { inner: &mut entry, read: 0 };
                if let Ok(name) = String::from_utf8(name) {
                    take(&name, &mut file)?;
                }
                rest(file, size, "the archive")?;
            }
            ::tar::EntryType::XGlobalHeader | ::tar::EntryType::GNULongLink => {}
            _ => long = None,
        }
    }
    Ok(())
}

fn announced(entry: &mut impl Read, max: u64) -> Result<Vec<u8>, OfferError> {
    let mut bytes = Vec::new();
    entry.take(max + 1).read_to_end(&mut bytes).map_err(failed("the archive is damaged"))?;
    if bytes.len() as u64 > max {
        return refuse("the archive announces a name that is too long");
    }
    Ok(bytes)
}
