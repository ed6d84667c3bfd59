//! The **content** of what stands at a path of a workspace now, as rows describe it.

use contract::FileName;

use crate::{
    BlobHasher, GuestError, Transfer,
    files::{Root, Stat},
    row::Kind,
    scan::is_gone,
};

/// Whether what is there has the kind, mode and content that a row says.
pub(crate) fn is_equal(root: &Root, path: &[u8], kind: &Kind, stat: &Stat) -> Result<bool, GuestError> {
    Ok(match kind {
        Kind::Directory { mode } => stat.is_dir() && stat.bits() == *mode,
        Kind::Symlink { target } => stat.is_symlink() && root.link(path).is_ok_and(|now| now == *target),
        Kind::File { mode, size, digest } => {
            stat.is_file()
                && stat.bits() == *mode
                && stat.size == *size
                && hash(root, path)?.is_some_and(|(now, length)| now == *digest && length == *size)
        }
    })
}

/// What stands at a path now; none when it has gone since.
pub(crate) fn describe(
    root: &Root,
    path: &[u8],
    stat: &Stat,
    watch: &Transfer,
) -> Result<Option<(Kind, Stat)>, GuestError> {
    if watch.is_aborted() {
        return Err(GuestError::Aborted);
    }
    let kind = if stat.is_dir() {
        Kind::Directory { mode: stat.bits() }
    } else if stat.is_symlink() {
        match root.link(path) {
            Ok(target) => Kind::Symlink { target },
            Err(_) => return Ok(None),
        }
    } else if stat.is_file() {
        let Some((digest, size)) = hash(root, path)? else { return Ok(None) };
        Kind::File { mode: stat.bits(), size, digest }
    } else {
        return Ok(None);
    };
    Ok(Some((kind, *stat)))
}

/// A file's digest and length; none when it is no file that can be read as one any more.
fn hash(root: &Root, path: &[u8]) -> Result<Option<([u8; 20], u64)>, GuestError> {
    let changed = || GuestError::Changed(FileName(path.to_vec()));
    let mut file = match root.file(path) {
        Ok(file) => file,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(source) => return Err(GuestError::Files { what: format!("reading {}", FileName(path.to_vec())), source }),
    };
    let size = file.metadata().map_err(GuestError::files("looking at a file"))?.len();
    let mut hash = BlobHasher::new(size);
    let length = std::io::copy(&mut file, &mut HashSink(&mut hash)).map_err(GuestError::files("reading a file"))?;
    if length != size {
        return Err(changed());
    }
    Ok(Some((hash.finish(), size)))
}

struct HashSink<'a>(&'a mut BlobHasher);

impl std::io::Write for HashSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
