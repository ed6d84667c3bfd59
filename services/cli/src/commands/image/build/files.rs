//! The **files** of a step as an archive that is the same whenever its files are: sorted, without times and owners.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use contract::{
    ApiError,
    image::{BuildFiles, WORK_DIR},
};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};
use tokio::io::AsyncReadExt;
use uuid::Uuid;

use crate::{client::Client, failure::Failure};

/// The object store that archives too large for a request go through.
const BUCKET: &str = "warren-build";
/// How long an archive stays there at the most, should nobody remove it: longer than a build takes.
const KEPT: Duration = Duration::from_secs(48 * 3600);

/// An archive, in a file that nobody else sees.
#[derive(Debug)]
pub struct Files {
    file: File,
    bytes: u64,
}

/// One that was put into the object store.
#[derive(Debug)]
pub struct Stored {
    name: String,
    sha256: String,
}

impl Files {
    /// Packs what `--file SRC:DST` gives, in its order.
    ///
    /// # Errors
    /// A file cannot be read or is of no kind that can be packed, or a destination leads out of the VM's root.
    pub fn pack(given: &[&str]) -> Result<Self, ApiError> {
        let broken = |error: &io::Error| ApiError::failed_precondition(format!("the files cannot be packed: {error}"));
        let file = tempfile::tempfile().map_err(|error| broken(&error))?;
        let mut archive = Builder::new(io::BufWriter::new(file));
        for text in given {
            let (source, target) = split(text)?;
            add(&mut archive, &source, &target)?;
        }
        let finished = || -> io::Result<Self> {
            let mut file = archive.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.flush()?;
            let bytes = file.stream_position()?;
            file.rewind()?;
            Ok(Self { file, bytes })
        };
        finished().map_err(|error| broken(&error))
    }

    /// How many bytes it has in a request.
    pub fn encoded(&self) -> usize {
        usize::try_from(self.bytes.div_ceil(3) * 4).unwrap_or(usize::MAX)
    }

    /// It as a request has it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn inline(mut self) -> Result<String, ApiError> {
        use base64::{Engine, prelude::BASE64_STANDARD};
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
        Ok(BASE64_STANDARD.encode(bytes))
    }
}

/// SHA-256 of a file from its beginning, in hexadecimal; it stands at its beginning again.
fn digest(file: &mut File) -> io::Result<String> {
    let (mut hash, mut piece) = (Sha256::new(), vec![0; 64 * 1024]);
    loop {
        match file.read(&mut piece)? {
            0 => break,
            count => hash.update(&piece[..count]),
        }
    }
    file.rewind()?;
    Ok(hex::encode(hash.finalize()))
}

fn unreadable(error: &io::Error) -> ApiError {
    ApiError::failed_precondition(format!("the packed files cannot be read: {error}"))
}

impl Stored {
    /// Puts an archive into the object store.
    ///
    /// # Errors
    /// It cannot be read, or JetStream does not take it.
    pub async fn put(client: &Client, mut files: Files) -> Result<Self, Failure> {
        use async_nats::jetstream::object_store::Config;
        let refused = |error: &dyn std::fmt::Display| {
            ApiError::unavailable(format!("the files cannot be put into the object store {BUCKET}: {error}"))
                .hint("JetStream has to have room for them")
        };
        let sha256 = digest(&mut files.file).map_err(|error| unreadable(&error))?;
        let jetstream = client.bus().jetstream();
        let store = match jetstream.get_object_store(BUCKET).await {
            Ok(store) => store,
            Err(_) => {
                let description = Some("files on their way into builds of images".to_owned());
                let config = Config { bucket: BUCKET.to_owned(), description, max_age: KEPT, ..Config::default() };
                jetstream.create_object_store(config).await.map_err(|error| refused(&error))?
            }
        };
        let name = format!("{sha256}-{}", Uuid::now_v7());
        let mut reader = tokio::fs::File::from_std(files.file).take(files.bytes);
        store.put(name.as_str(), &mut reader).await.map_err(|error| refused(&error))?;
        Ok(Self { name, sha256 })
    }

    /// How a request names it.
    pub fn files(&self) -> BuildFiles {
        BuildFiles::Object { object: format!("{BUCKET}/{}", self.name), sha256: self.sha256.clone() }
    }

    /// Removes it; one that stays goes by itself.
    pub async fn remove(self, client: &Client) {
        let removed = async {
            let store = client.bus().jetstream().get_object_store(BUCKET).await.ok()?;
            store.delete(&self.name).await.ok()
        };
        if removed.await.is_none() {
            tracing::debug!(object = self.name, "an archive stays in the object store until it is old");
        }
    }
}

/// The path here, and the one in the archive.
fn split(text: &str) -> Result<(PathBuf, PathBuf), ApiError> {
    let refuse = |why: &str| {
        ApiError::invalid_argument(format!("--file {text:?} {why}"))
            .hint("write SRC:DST, such as ./nginx.conf:/etc/nginx/nginx.conf, or ./src:src for the script only")
    };
    let (source, target) = text.rsplit_once(':').ok_or_else(|| refuse("has no `:`"))?;
    if source.is_empty() || target.is_empty() {
        return Err(refuse("lacks a path"));
    }
    let source = PathBuf::from(source);
    let mut whole = Path::new(WORK_DIR).join(target);
    if target.ends_with('/') || target == "." {
        let name =
            source.file_name().ok_or_else(|| refuse("names a directory to put into, and nothing that has a name"))?;
        whole.push(name);
    }
    let mut inside = PathBuf::new();
    for part in whole.components() {
        match part {
            Component::Normal(part) => inside.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(refuse("holds `..`")),
        }
    }
    if inside.as_os_str().is_empty() && !source.is_dir() {
        return Err(refuse("would replace the root directory"));
    }
    Ok((source, inside))
}

fn add(archive: &mut Builder<impl Write>, source: &Path, target: &Path) -> Result<(), ApiError> {
    // The link that is named is followed; those below a directory stay what they are.
    let metadata = fs::metadata(source).map_err(|error| cannot(source, &error))?;
    if !metadata.is_dir() {
        return entry(archive, source, target, &metadata);
    }
    // A directory's own mode is not touched where it is there already.
    contents(archive, source, target)
}

fn contents(archive: &mut Builder<impl Write>, source: &Path, target: &Path) -> Result<(), ApiError> {
    let listed = fs::read_dir(source).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
    let mut names: Vec<_> =
        listed.map_err(|error| cannot(source, &error))?.iter().map(fs::DirEntry::file_name).collect();
    names.sort();
    for name in names {
        let (from, to) = (source.join(&name), target.join(&name));
        let metadata = fs::symlink_metadata(&from).map_err(|error| cannot(&from, &error))?;
        entry(archive, &from, &to, &metadata)?;
        if metadata.is_dir() {
            contents(archive, &from, &to)?;
        }
    }
    Ok(())
}

fn entry(
    archive: &mut Builder<impl Write>,
    source: &Path,
    target: &Path,
    metadata: &fs::Metadata,
) -> Result<(), ApiError> {
    let mut header = Header::new_gnu();
    header.set_mode(metadata.permissions().mode() & 0o7777);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    let kind = metadata.file_type();
    let written = if kind.is_file() {
        header.set_entry_type(EntryType::Regular);
        header.set_size(metadata.len());
        File::open(source).and_then(|file| {
            let mut exactly = Exactly { file, left: metadata.len() };
            archive.append_data(&mut header, target, &mut exactly)
        })
    } else if kind.is_dir() {
        header.set_entry_type(EntryType::Directory);
        archive.append_data(&mut header, target, io::empty())
    } else if kind.is_symlink() {
        header.set_entry_type(EntryType::Symlink);
        fs::read_link(source).and_then(|to| archive.append_link(&mut header, target, to))
    } else {
        return Err(ApiError::invalid_argument(format!(
            "{} is neither a file, a directory nor a link",
            source.display()
        ))
        .hint("leave it out, and have the script make it"));
    };
    written.map_err(|error| cannot(source, &error))
}

fn cannot(path: &Path, error: &io::Error) -> ApiError {
    ApiError::invalid_argument(format!("{} cannot be read: {error}", path.display()))
}

/// A file of exactly so many bytes: one that changes while it is read would make an archive of something that never was.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read(&mut buffer[..most])?;
        if count == 0 && most > 0 {
            return Err(io::Error::other("it became shorter while it was read"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(given: &str) -> Vec<String> {
        let files = Files::pack(&[given]).unwrap();
        let mut archive = tar::Archive::new(files.file);
        let entries = archive.entries().unwrap();
        entries.map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect()
    }

    #[test]
    fn files_and_directories_go_where_they_are_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir_all(top.join("sub")).unwrap();
        fs::write(top.join("sub/b"), "b").unwrap();
        fs::write(top.join("a"), "a").unwrap();
        symlink("a", top.join("link")).unwrap();
        let top = top.to_str().unwrap();
        assert_eq!(names(&format!("{top}/a:/etc/x")), ["etc/x"]);
        assert_eq!(names(&format!("{top}/a:/etc/")), ["etc/a"]);
        assert_eq!(names(&format!("{top}/link:y")), [".warren-build/work/y"]);
        assert_eq!(names(&format!("{top}:/srv/web")), ["srv/web/a", "srv/web/link", "srv/web/sub", "srv/web/sub/b"]);
        assert_eq!(names(&format!("{top}/sub:/")), ["sub/b"]);
        for wrong in ["a", ":b", "a:", "a:/../b", "a:..", "/:/x/.."] {
            assert!(split(wrong).is_err(), "{wrong}");
        }
        assert!(Files::pack(&[&format!("{top}/none:/x")]).is_err());
    }

    #[test]
    fn the_same_files_are_the_same_archive_whenever_they_were_written() {
        let bytes = || {
            let dir = tempfile::tempdir().unwrap();
            for name in ["b", "a", "c"] {
                fs::write(dir.path().join(name), name).unwrap();
            }
            let file = File::open(dir.path().join("a")).unwrap();
            file.set_modified(std::time::SystemTime::now() - Duration::from_secs(rand::random::<u32>().into()))
                .unwrap();
            let given = format!("{}:/x", dir.path().display());
            Files::pack(&[&given]).unwrap().inline().unwrap()
        };
        assert_eq!(bytes(), bytes());
    }
}
