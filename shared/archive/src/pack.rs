//! Packing: a file or a directory becomes an archive.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{PROC_SUPER_MAGIC, SYSFS_MAGIC, statfs};
use tar::Builder;

/// The most entries that are left out and named; more are only counted.
const WARNINGS_MAX: usize = 64;
/// The most bytes of a file of the kernel's, which has no end of its own.
const KERNEL_FILE_MAX: u64 = 1 << 20;

/// Writes a file or a directory as an archive whose entries begin with its last name, or with nothing for a directory's mere
/// `contents`; with `follow` what symbolic links lead to instead of them. Gives what was left out. Blocking.
///
/// # Errors
/// It cannot be read, or nobody takes the archive any more.
pub fn pack(path: &Path, contents: bool, follow: bool, to: impl Write) -> io::Result<Vec<String>> {
    // `/etc/..` has no last name of its own, nor has `/`.
    let own = path.file_name().filter(|_| !contents);
    let top = own.map_or_else(|| PathBuf::from("."), PathBuf::from);
    let mut archive = Builder::new(to);
    archive.follow_symlinks(follow);
    archive.sparse(false);
    let mut left_out = LeftOut::default();
    add(&mut archive, path, &top, follow, &mut left_out)?;
    archive.into_inner()?.flush()?;
    Ok(left_out.warnings())
}

#[derive(Default)]
struct LeftOut {
    named: Vec<String>,
    more: usize,
}

impl LeftOut {
    /// Notes one; that is no reason to stop.
    fn add(&mut self, path: &Path, why: &str) -> io::Result<()> {
        if self.named.len() < WARNINGS_MAX {
            self.named.push(format!("{} was left out: {why}", path.display()));
        } else {
            self.more += 1;
        }
        Ok(())
    }

    fn warnings(self) -> Vec<String> {
        let more = (self.more > 0).then(|| format!("{} more were left out", self.more));
        self.named.into_iter().chain(more).collect()
    }
}

/// Adds a path and all below it. What vanishes meanwhile was not there; sockets have no place in an archive.
fn add(archive: &mut Builder<impl Write>, path: &Path, name: &Path, follow: bool, out: &mut LeftOut) -> io::Result<()> {
    let metadata = if follow { fs::metadata(path) } else { fs::symlink_metadata(path) };
    let metadata = match metadata {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return out.add(path, &error.to_string()),
    };
    if metadata.file_type().is_socket() {
        return out.add(path, "it is a socket");
    }
    if metadata.is_dir() && is_kernels(path) {
        return out.add(path, "what is below it is the kernel's, not files");
    }
    if metadata.is_dir() {
        archive.append_dir(name, path)?;
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) => return out.add(path, &error.to_string()),
        };
        let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        for entry in names {
            add(archive, &path.join(&entry), &name.join(&entry), follow, out)?;
        }
        return Ok(());
    }
    if !metadata.is_file() {
        return archive.append_path_with_name(path, name);
    }
    match File::open(path) {
        Ok(file) if is_kernels(path) => append_read(archive, name, file),
        Ok(file) => {
            if append(archive, name, file)? {
                return out.add(path, "its end: it became shorter while it was read");
            }
            Ok(())
        }
        Err(error) => out.add(path, &error.to_string()),
    }
}

/// Whether a path is in /proc or /sys, whose files have other lengths than they say.
fn is_kernels(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| [PROC_SUPER_MAGIC, SYSFS_MAGIC].contains(&stat.filesystem_type()))
}

/// Adds a file of the kernel's with the bytes it gives.
fn append_read(archive: &mut Builder<impl Write>, name: &Path, file: File) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_metadata(&file.metadata()?);
    let mut bytes = Vec::new();
    file.take(KERNEL_FILE_MAX).read_to_end(&mut bytes)?;
    header.set_size(bytes.len() as u64);
    archive.append_data(&mut header, name, &bytes[..])
}

/// Adds a file with the length it has now: one that grows is cut there, one that shrinks is filled up with zeros, as the
/// archive says its length before its bytes; whether it did.
fn append(archive: &mut Builder<impl Write>, name: &Path, file: File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    let mut header = tar::Header::new_gnu();
    header.set_metadata(&metadata);
    let mut exactly = Exactly { file, left: metadata.len(), short: false };
    archive.append_data(&mut header, name, &mut exactly)?;
    Ok(exactly.short)
}

/// A file of exactly so many bytes.
struct Exactly {
    file: File,
    left: u64,
    short: bool,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let mut count = if self.short { 0 } else { self.file.read(&mut buffer[..wanted])? };
        if count == 0 && wanted > 0 {
            self.short = true;
            buffer[..wanted].fill(0);
            count = wanted;
        }
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::*;

    #[test]
    fn a_tree_is_packed_with_its_links_and_without_its_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir_all(top.join("sub")).unwrap();
        fs::write(top.join("sub/file"), "hello").unwrap();
        symlink("sub/file", top.join("link")).unwrap();
        let _socket = UnixListener::bind(top.join("socket")).unwrap();
        let names = |contents| {
            let mut bytes = Vec::new();
            let warnings = pack(&top, contents, false, &mut bytes).unwrap();
            assert!(warnings.len() == 1 && warnings[0].contains("socket"), "{warnings:?}");
            let mut archive = tar::Archive::new(&bytes[..]);
            let entries = archive.entries().unwrap();
            entries.map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(false), ["top", "top/link", "top/sub", "top/sub/file"]);
        assert_eq!(names(true), [".", "link", "sub", "sub/file"]);
        let mut bytes = Vec::new();
        assert!(pack(Path::new("/proc/self/comm"), false, false, &mut bytes).unwrap().is_empty());
        assert!(tar::Archive::new(&bytes[..]).entries().unwrap().next().unwrap().unwrap().size() > 0);
        assert_eq!(pack(Path::new("/proc/self"), false, true, io::sink()).unwrap().len(), 1);
        let mut exactly = Exactly { file: File::open(top.join("sub/file")).unwrap(), left: 8, short: false };
        let mut text = Vec::new();
        exactly.read_to_end(&mut text).unwrap();
        assert_eq!((&text[..], exactly.short), (&b"hello\0\0\0"[..], true));
        assert!(pack(&top.join("none"), false, false, io::sink()).unwrap().is_empty());
    }
}
