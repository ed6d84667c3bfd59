//! OCI image **layouts** (image-spec 1.1): a directory on this host, or a plain tar archive of one, whose blobs are read where they lie.
//!
//! Whoever wrote a layout may have written anything: names become paths only as digests, and only regular files are read.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use contract::ApiError;

use super::{
    cache::{Check, as_io},
    layer::tar::{Kind, Reader},
    manifest::Descriptor,
    storage_error,
};

/// More members has no archive of an image that is meant as one.
const MEMBERS_MAX: usize = 100_000;
/// The most bytes of headers in an archive: two kilobytes for each member.
const BETWEEN_MAX: u64 = 200 << 20;
/// The longest name that is looked up, in bytes, with room to spare: a blob's has 77.
const NAME_MAX: usize = 255;

/// An open layout.
pub(super) enum Layout {
    Directory(PathBuf),
    /// Where its members' bytes lie, by name.
    Archive {
        path: PathBuf,
        file: Arc<File>,
        members: HashMap<String, (u64, u64)>,
    },
}

/// A member's bytes.
struct Member {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Layout {
    /// Opens a directory or an archive. Blocking.
    ///
    /// # Errors
    /// `not_found` for what is none, `invalid_argument` for what cannot be read as one.
    pub(super) fn open(path: &str) -> Result<Self, ApiError> {
        let dir = PathBuf::from(path);
        if !dir.is_absolute() {
            return Err(ApiError::invalid_argument(format!("the layout path {path:?} is not absolute")));
        }
        let none = || {
            ApiError::not_found(format!("{path} is no OCI image layout on this host")).hint(
                "an image layout is a directory with a file oci-layout and an index.json, or a tar archive of one",
            )
        };
        let layout = if dir.is_dir() {
            Self::Directory(dir)
        } else {
            let file = regular(&dir).map_err(|_| none())?;
            refuse_packed(path, &file)?;
            let members = members(path, &file)?;
            Self::Archive { path: dir, file: Arc::new(file), members }
        };
        layout.member("oci-layout").map_err(|_| none())?;
        Ok(layout)
    }

    /// A small file of it, no larger than `limit`. Blocking.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, ApiError> {
        let mut bytes = Vec::new();
        let member = self.member(name)?;
        member.take(limit + 1).read_to_end(&mut bytes).map_err(|error| storage_error(Path::new(name), &error))?;
        if bytes.len() as u64 > limit {
            return Err(ApiError::invalid_argument(format!("the layout's {name} has more than {limit} bytes")));
        }
        Ok(bytes)
    }

    /// A blob's bytes; the end is told of what was proven only.
    pub(super) fn blob(&self, blob: &Descriptor) -> Result<LayoutReader, ApiError> {
        let member = self.member(&format!("blobs/sha256/{}", blob.digest.trim_start_matches("sha256:")))?;
        let length = member.end - member.at;
        if length != blob.size {
            return Err(ApiError::failed_precondition(format!(
                "digest mismatch: the layout's {} has {length} bytes instead of {}",
                blob.digest, blob.size
            )));
        }
        Ok(LayoutReader { member, check: Check::new(&blob.digest, blob.size) })
    }

    fn member(&self, name: &str) -> Result<Member, ApiError> {
        let absent = |why: String| ApiError::not_found(format!("{name} is not in the layout {why}"));
        match self {
            Self::Directory(dir) => {
                let file = regular(&dir.join(name)).map_err(|error| absent(format!("{}: {error}", dir.display())))?;
                let end = file.metadata().map_err(|error| storage_error(dir, &error))?.len();
                Ok(Member { file: Arc::new(file), at: 0, end })
            }
            Self::Archive { path, file, members } => {
                let place = members.get(name).ok_or_else(|| absent(path.display().to_string()))?;
                Ok(Member { file: file.clone(), at: place.0, end: place.1 })
            }
        }
    }
}

/// Opens a regular file and nothing else: a fifo would never answer.
fn regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
}

fn refuse_packed(path: &str, file: &File) -> Result<(), ApiError> {
    let mut magic = [0; 6];
    let count = file.read_at(&mut magic, 0).map_err(|error| storage_error(Path::new(path), &error))?;
    let packed = match &magic[..count] {
        [0x1f, 0x8b, ..] => "gunzip",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "unzstd",
        [0xfd, b'7', b'z', b'X', b'Z', 0] => "unxz",
        _ => return Ok(()),
    };
    Err(ApiError::invalid_argument(format!("{path} is a compressed archive, which has no places to read from"))
        .hint(format!("unpack it with {packed}; its layers are compressed themselves")))
}

/// Where an archive's members lie. What lies between them is read, and is bounded; they themselves are jumped over.
fn members(path: &str, file: &File) -> Result<HashMap<String, (u64, u64)>, ApiError> {
    let malformed = |why: String| ApiError::not_found(format!("{path} is no tar archive of a layout: {why}"));
    let unreadable = |error: io::Error| storage_error(Path::new(path), &error);
    let size = file.metadata().map_err(unreadable)?.len();
    let (mut members, mut count, mut between, mut end) = (HashMap::new(), 0, 0, 0);
    let mut archive = Reader::new(BufReader::new(file));
    while let Some(member) = archive.next().map_err(|error| malformed(error.to_string()))? {
        let rest = archive.jump();
        let begin = rest.input.stream_position().map_err(unreadable)?;
        count += 1;
        between += begin - end;
        if count > MEMBERS_MAX || between > BETWEEN_MAX {
            return Err(ApiError::invalid_argument(format!(
                "{path} has more than {MEMBERS_MAX} members, or more than {BETWEEN_MAX} bytes around them"
            )));
        }
        let name = String::from_utf8_lossy(&member.path).trim_start_matches("./").to_owned();
        end = begin.checked_add(rest.stored).filter(|end| *end <= size).ok_or_else(|| {
            ApiError::invalid_argument(format!(
                "{path} is cut off within {:?}",
                &name.chars().take(NAME_MAX).collect::<String>()
            ))
        })?;
        if member.kind == Kind::File && name.len() <= NAME_MAX {
            if rest.sparse {
                return Err(ApiError::invalid_argument(format!("{path} has {name:?} without its holes"))
                    .hint("pack it without --sparse"));
            }
            members.insert(name, (begin, end));
        }
        end = end.saturating_add(rest.filling);
        rest.input.seek(SeekFrom::Start(end)).map_err(unreadable)?;
    }
    Ok(members)
}

impl Read for Member {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..length], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// A blob of a layout.
pub(super) struct LayoutReader {
    member: Member,
    check: Check,
}

impl Read for LayoutReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.member.read(buffer)?;
        self.check.update(&buffer[..count]);
        if count == 0 && !buffer.is_empty() {
            self.check.finish().map_err(as_io)?;
        }
        Ok(count)
    }
}
