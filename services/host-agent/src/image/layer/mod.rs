//! A layer: unpacked once to a spool file while its digest is checked, then read as a list of entries whose
//! contents are places in that file.

#[expect(dead_code, reason = "the layer applier that streams is still to come")]
mod tar;

use std::{
    fs::File,
    io::{self, BufReader, Read, Write},
    path::Path,
};

use ::tar::{Archive, EntryType};
use contract::ApiError;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::{cache::told, limits::Limits, manifest::Descriptor, progress::Reporter, source::mismatch, storage_error};

/// The longest path, in bytes (Linux's PATH_MAX).
const PATH_MAX: usize = 4096;
/// The longest name, in bytes (Linux's NAME_MAX).
const NAME_MAX: usize = 255;

/// What a tar entry makes.
#[derive(Debug)]
pub(super) enum Content {
    Directory,
    /// So many bytes of the layer's spool from that offset on.
    File {
        offset: u64,
        length: u64,
    },
    Symlink(String),
    /// Another name of an earlier path.
    Link(Vec<String>),
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
    /// Hides that name of lower layers.
    Whiteout,
    /// Hides all lower layers' names in its directory.
    Opaque,
}

/// One entry of a layer.
#[derive(Debug)]
pub(super) struct Entry {
    /// The components of its path; none for the root itself.
    pub path: Vec<String>,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub xattrs: Vec<(String, Vec<u8>)>,
    pub content: Content,
}

/// Unpacks a layer to `spool`, checking the digest of what comes out; gives its length.
pub(super) fn unpack(
    packed: impl Read + 'static,
    layer: &(Descriptor, String),
    spool: &Path,
    budget: u64,
    limits: &Limits,
    progress: &Reporter,
    cancel: &CancellationToken,
) -> Result<u64, ApiError> {
    let (descriptor, diff_id) = layer;
    let fail = |error: io::Error| {
        told(&error).unwrap_or_else(|| {
            ApiError::invalid_argument(format!("the layer {} cannot be unpacked: {error}", descriptor.digest))
        })
    };
    let mut input = BufReader::with_capacity(1 << 20, packed);
    let mut magic = Vec::new();
    input.by_ref().take(4).read_to_end(&mut magic).map_err(fail)?;
    let (kind, input) = (magic.clone(), BufReader::with_capacity(1 << 20, io::Cursor::new(magic).chain(input)));
    // What the bytes are decides, not what the media type says; they must agree with the diff id anyway.
    let mut reader: Box<dyn Read> = match &kind[..] {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::with_buffer(input).map_err(fail)?),
        _ => Box::new(input),
    };
    let mut output = File::create(spool).map_err(|error| storage_error(spool, &error))?;
    let (mut hasher, mut length, mut buffer) = (Sha256::new(), 0u64, vec![0; 1 << 20]);
    loop {
        if cancel.is_cancelled() {
            return Err(ApiError::cancelled("the staging was discarded"));
        }
        let count = match reader.read(&mut buffer).map_err(fail)? {
            0 => break,
            count => count,
        };
        length += count as u64;
        let bomb = length > limits.ratio_from && length / limits.ratio > descriptor.size.max(1);
        if length > budget || bomb {
            return Err(ApiError::invalid_argument(format!(
                "the layer {} unpacks to too much: {length} bytes and more from {}",
                descriptor.digest, descriptor.size
            )));
        }
        hasher.update(&buffer[..count]);
        output.write_all(&buffer[..count]).map_err(|error| storage_error(spool, &error))?;
        progress.add(count as u64);
    }
    let digest = format!("sha256:{}", hex::encode(hasher.finalize()));
    if digest == *diff_id { Ok(length) } else { Err(mismatch("an unpacked layer", diff_id, &digest)) }
}

/// Reads a spool's entries one after the other.
pub(super) fn entries(
    spool: &Path,
    digest: &str,
    mut take: impl FnMut(Entry) -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    let malformed =
        |error: io::Error| ApiError::invalid_argument(format!("the layer {digest} is no tar archive: {error}"));
    let file = File::open(spool).map_err(|error| storage_error(spool, &error))?;
    let mut archive = Archive::new(file);
    for entry in archive.entries_with_seek().map_err(malformed)? {
        let mut entry = entry.map_err(malformed)?;
        let raw = entry.path_bytes().into_owned();
        let path = components(&raw).map_err(|why| refused(digest, &raw, &why))?;
        if let Some(parsed) = parse(&mut entry, path).map_err(|why| refused(digest, &raw, &why))? {
            take(parsed)?;
        }
    }
    Ok(())
}

/// The error of an entry that a host does not take.
pub(super) fn refused(digest: &str, path: &[u8], why: &str) -> ApiError {
    let path: String = String::from_utf8_lossy(path).chars().take(200).collect();
    ApiError::invalid_argument(format!("the layer {digest} has an entry {path:?} that {why}"))
}

/// A path's components: never `..`, never absolute, never too long.
fn components(path: &[u8]) -> Result<Vec<String>, String> {
    if path.len() > PATH_MAX {
        return Err(format!("has a path of more than {PATH_MAX} bytes"));
    }
    let text =
        std::str::from_utf8(path).map_err(|_| "has a name that is not UTF-8, which is not supported".to_owned())?;
    let mut parts = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err("leads out of its directory".to_owned()),
            part if part.len() > NAME_MAX || part.contains('\0') => {
                return Err("has a name no filesystem takes".to_owned());
            }
            part => parts.push(part.to_owned()),
        }
    }
    Ok(parts)
}

fn parse<R: Read>(entry: &mut ::tar::Entry<'_, R>, mut path: Vec<String>) -> Result<Option<Entry>, String> {
    let broken = |error: io::Error| format!("cannot be read: {error}");
    let kind = entry.header().entry_type();
    let (mtime, xattrs) = extensions(entry)?;
    let header = entry.header();
    let mode = (header.mode().map_err(broken)? & 0o7777) as u16;
    let id = |id: io::Result<u64>| {
        u32::try_from(id.map_err(broken)?).map_err(|_| "has an owner no filesystem takes".to_owned())
    };
    let (uid, gid) = (id(header.uid())?, id(header.gid())?);
    let seconds = i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0);
    let device = || -> Result<(u32, u32), String> {
        let major = header.device_major().map_err(broken)?.unwrap_or(0);
        Ok((major, header.device_minor().map_err(broken)?.unwrap_or(0)))
    };
    let target =
        || -> Result<Vec<u8>, String> { Ok(entry.link_name_bytes().ok_or("is a link to nothing")?.into_owned()) };
    let content = match kind {
        EntryType::Directory => Content::Directory,
        EntryType::Regular | EntryType::Continuous => {
            Content::File { offset: entry.raw_file_position(), length: entry.size() }
        }
        EntryType::Symlink => {
            let target =
                String::from_utf8(target()?).map_err(|_| "has a target that is not UTF-8, which is not supported")?;
            if target.is_empty() || target.len() >= PATH_MAX {
                return Err("has a target no filesystem takes".to_owned());
            }
            Content::Symlink(target)
        }
        EntryType::Link => Content::Link(components(&target()?)?),
        EntryType::Char => device().map(|(major, minor)| Content::Character(major, minor))?,
        EntryType::Block => device().map(|(major, minor)| Content::Block(major, minor))?,
        EntryType::Fifo => Content::Fifo,
        EntryType::GNUSparse => return Err("is a GNU sparse file, which is not supported".to_owned()),
        // Archive-wide headers and vendors' notes make nothing.
        _ => return Ok(None),
    };
    let content = match path.last().and_then(|name| name.strip_prefix(".wh.")) {
        Some(".wh..opq") => {
            path.pop();
            Content::Opaque
        }
        // AUFS' own notes.
        Some(name) if name.starts_with(".wh.") => return Ok(None),
        Some("") | Some("." | "..") => return Err("hides nothing".to_owned()),
        Some(name) => {
            let name = name.to_owned();
            path.pop();
            path.push(name);
            Content::Whiteout
        }
        None => content,
    };
    let mtime = mtime.unwrap_or((seconds, 0));
    Ok(Some(Entry { path, mode, uid, gid, mtime, xattrs, content }))
}

type Extensions = (Option<(i64, u32)>, Vec<(String, Vec<u8>)>);

/// A pax header's time and extended attributes.
fn extensions<R: Read>(entry: &mut ::tar::Entry<'_, R>) -> Result<Extensions, String> {
    let (mut mtime, mut xattrs) = (None, Vec::new());
    let broken = |error: io::Error| format!("has an unreadable extended header: {error}");
    for extension in entry.pax_extensions().map_err(broken)?.into_iter().flatten() {
        let extension = extension.map_err(broken)?;
        let Ok(key) = extension.key() else { continue };
        if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
            xattrs.push((name.to_owned(), extension.value_bytes().to_vec()));
        } else if key == "mtime" {
            mtime = extension.value().ok().and_then(decimal);
        }
    }
    Ok((mtime, xattrs))
}

/// Seconds with a fraction, e.g. `1700000000.25`.
fn decimal(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanoseconds: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    Some((whole.parse().ok()?, nanoseconds.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        assert_eq!(components(b"./usr//bin/./sh").unwrap(), ["usr", "bin", "sh"]);
        assert_eq!(components(b"/etc/passwd").unwrap(), ["etc", "passwd"]);
        assert!(components(b"a/../../etc").is_err());
        assert!(components(&[b'a'; 256]).is_err());
        assert!(components(b"\xff").is_err());
    }

    #[test]
    fn times_have_nanoseconds() {
        assert_eq!(decimal("12.25"), Some((12, 250_000_000)));
        assert_eq!(decimal("12"), Some((12, 0)));
        assert_eq!(decimal("x"), None);
    }
}
