//! **Packages** as distributions make them, read from front to back: the archive inside is walked, and each regular file is handed on
//! with its path. What the package says beside that is not looked at.

use std::io::{self, BufRead, BufReader, Read};

use super::{
    offer::{OfferError, failed, refuse},
    packed,
};

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

/// Bytes up to a budget. More of them are an error, not an end: an archive must not lose its tail to a limit unnoticed.
pub(super) struct Budget<R> {
    inner: R,
    left: u64,
}

impl<R> Budget<R> {
    /// That many at the most.
    pub fn new(inner: R, bytes: u64) -> Self {
        Self { inner, left: bytes }
    }
}

impl<R: Read> Read for Budget<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| io::Error::other("it unpacks to too much"))?;
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

/// Debian's: an ar archive with `data.tar.*` (deb(5)).
pub(super) fn deb(bytes: impl Read, budget: u64, take: &mut Take<'_>) -> Result<(), OfferError> {
    let mut archive = ar::Archive::new(bytes);
    while let Some(member) = archive.next_entry() {
        let member = member.map_err(failed("the .deb package is damaged"))?;
        if !member.header().identifier().starts_with(b"data.tar") {
            continue;
        }
        let unpacked = packed::open(BufReader::new(member)).map_err(failed("the .deb package is damaged"))?;
        return tar(Budget::new(unpacked, budget), take);
    }
    refuse("the .deb package has no data")
}

/// Fedora's: a lead, two headers, and a cpio archive.
pub(super) fn rpm(mut bytes: impl BufRead, budget: u64, take: &mut Take<'_>) -> Result<(), OfferError> {
    let damaged = || failed("the .rpm package is damaged");
    skip(&mut bytes, RPM_LEAD).map_err(damaged())?;
    // The signatures are padded to eight bytes, the header is not.
    rpm_header(&mut bytes, 8)?;
    rpm_header(&mut bytes, 1)?;
    let mut unpacked = Budget::new(packed::open(bytes).map_err(damaged())?, budget);
    loop {
        let mut entry = cpio::newc::Reader::new(&mut unpacked).map_err(damaged())?;
        if entry.entry().is_trailer() {
            return Ok(());
        }
        // S_IFMT and S_IFREG of inode(7).
        let (mode, name) = (entry.entry().mode(), entry.entry().name().to_owned());
        if mode & 0o170_000 == 0o100_000 {
            take(&name, &mut entry)?;
        }
        entry.finish().map_err(damaged())?;
    }
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
                // Whoever reads it sees an archive that was cut short only as a file that ends.
                io::copy(&mut file, &mut io::sink()).map_err(damaged())?;
                if file.read != size {
                    return refuse("the archive is cut short");
                }
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
