//! The **identity** of a kernel: the SHA-256 of a canonical JSON document of what it consists of. Nothing of when, where or by whom it was
//! imported is in it, nor how its modules were packed; what is handed in as a package on one host and as an archive on another is one kernel.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use serde::Serialize;
use sha2::{Digest, Sha256};

/// How much is read at once.
const PIECE: usize = 256 * 1024;

/// What a kernel is. The order of the fields is part of the format: it is how they are written.
#[derive(Debug, Serialize)]
struct Document<'a> {
    release: &'a str,
    architecture: &'a str,
    /// SHA-256 of its file as it was handed in.
    kernel: String,
    /// SHA-256 of the list of its module files: a line each, `<sha256>  <path below the release's directory>`, sorted by path, as sha256sum
    /// prints it. Left out where it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    modules: Option<String>,
}

/// The digest of a kernel in parts, and the bytes of all its files. Blocking.
///
/// # Errors
/// A file cannot be read.
pub(super) fn of<'a>(
    release: &str,
    architecture: &str,
    image: &Path,
    modules_dir: &Path,
    modules: impl Iterator<Item = &'a str>,
) -> io::Result<(String, u64)> {
    let (kernel, mut bytes) = file(image)?;
    let (mut list, mut some) = (Sha256::new(), false);
    for path in modules {
        let (digest, length) = file(&modules_dir.join(path))?;
        list.update(format!("{digest}  {path}\n"));
        (bytes, some) = (bytes + length, true);
    }
    let modules = some.then(|| hex::encode(list.finalize()));
    let document = serde_json::to_vec(&Document { release, architecture, kernel, modules })?;
    Ok((format!("sha256:{}", hex::encode(Sha256::digest(document))), bytes))
}

/// The SHA-256 of a file, and its length.
fn file(path: &Path) -> io::Result<(String, u64)> {
    let (mut file, mut hasher, mut piece, mut length) = (File::open(path)?, Sha256::new(), vec![0; PIECE], 0);
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok((hex::encode(hasher.finalize()), length)),
            Ok(read) => {
                hasher.update(&piece[..read]);
                length += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The files below a directory, by their path below it, sorted bytewise; links and all else are left out.
pub(super) fn files_below(dir: &Path) -> io::Result<Vec<String>> {
    fn walk(dir: &Path, below: &str, files: &mut Vec<String>) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().into_string().map_err(|name| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{} is not UTF-8", name.to_string_lossy()))
            })?;
            let path = if below.is_empty() { name } else { format!("{below}/{name}") };
            match entry.file_type()? {
                kind if kind.is_dir() => walk(&entry.path(), &path, files)?,
                kind if kind.is_file() => files.push(path),
                _ => {}
            }
        }
        Ok(())
    }
    let mut files = Vec::new();
    walk(dir, "", &mut files)?;
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_has_one_digest_and_each_of_its_parts_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let (image, modules) = (dir.path().join("image"), dir.path().join("modules"));
        fs::create_dir_all(modules.join("kernel/a")).unwrap();
        fs::write(&image, "kernel").unwrap();
        fs::write(modules.join("kernel/a/b.ko"), "b").unwrap();
        fs::write(modules.join("modules.builtin"), "").unwrap();
        let files = files_below(&modules).unwrap();
        assert_eq!(files, ["kernel/a/b.ko", "modules.builtin"]);
        let of = |release: &str, files: &[String]| {
            of(release, "amd64", &image, &modules, files.iter().map(String::as_str)).unwrap()
        };
        let (digest, bytes) = of("6.1", &files);
        assert_eq!(bytes, 7);
        // Whoever changes the format gives every kernel another digest.
        let sha = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
        let list = format!("{}  kernel/a/b.ko\n{}  modules.builtin\n", sha(b"b"), sha(b""));
        let document = format!(
            r#"{{"release":"6.1","architecture":"amd64","kernel":"{}","modules":"{}"}}"#,
            sha(b"kernel"),
            sha(list.as_bytes())
        );
        assert_eq!(digest, format!("sha256:{}", sha(document.as_bytes())));
        assert_ne!(of("6.2", &files).0, digest);
        assert_ne!(of("6.1", &files[..1]).0, digest);
        assert_ne!(of("6.1", &[]).0, digest);
        fs::write(modules.join("kernel/a/b.ko"), "c").unwrap();
        assert_ne!(of("6.1", &files).0, digest);
    }
}
