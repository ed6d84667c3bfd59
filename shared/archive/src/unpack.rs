//! Unpacking: an archive becomes files. What is to have another name than in the archive is unpacked beside its place and
//! renamed, so that it is there whole or not at all.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::{PermissionsExt, lchown},
    path::{Component, Path, PathBuf},
};

/// Whose the files become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// As the archive says; needs root.
    Archived,
    /// This user's and group's; needs root.
    These(u32, u32),
    /// Whoever unpacks.
    Own,
}

/// Why files cannot go there.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The path does not begin at the root.
    #[error("{0:?} is not an absolute path")]
    NotAbsolute(PathBuf),
    /// It ends without a name, as `/..` does.
    #[error("{0:?} names no file")]
    NoName(PathBuf),
    /// A directory is missing.
    #[error("there is no directory {}", .0.display())]
    NoDirectory(PathBuf),
    /// A directory cannot be made.
    #[error("{} cannot be made", path.display())]
    Make {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Where the files go.
#[derive(Clone, Debug)]
pub struct Place {
    /// The directory that is unpacked into.
    root: PathBuf,
    /// The name of the only top entry, where it is another than in the archive.
    name: Option<PathBuf>,
    owner: Owner,
}

impl Place {
    /// Where an archive that is to be `path` goes: into it where it is a directory, or will be because the archive is one's mere
    /// `contents`; else beside it, to be renamed.
    ///
    /// # Errors
    /// See the variants.
    pub fn find(path: &str, contents: bool, owner: Owner) -> Result<Self, PlaceError> {
        let (slash, path) = (path.ends_with('/'), Path::new(path));
        if !path.is_absolute() {
            return Err(PlaceError::NotAbsolute(path.to_owned()));
        }
        if contents {
            fs::create_dir_all(path).map_err(|source| PlaceError::Make { path: path.to_owned(), source })?;
        }
        if path.is_dir() {
            return Ok(Self { root: path.to_owned(), name: None, owner });
        }
        if slash {
            return Err(PlaceError::NoDirectory(path.to_owned()));
        }
        let (Some(root), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(PlaceError::NoName(path.to_owned()));
        };
        if !root.is_dir() {
            return Err(PlaceError::NoDirectory(root.to_owned()));
        }
        Ok(Self { root: root.to_owned(), name: Some(name.into()), owner })
    }

    /// Unpacks. `whole` is asked when all has been read: what is renamed only is where it says so. Blocking.
    ///
    /// # Errors
    /// The archive is damaged or cut off, leads elsewhere, or cannot be written; with a rename nothing has changed then.
    pub fn unpack(&self, reader: impl Read, whole: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let Some(name) = &self.name else {
            self.unpack_into(reader, &self.root)?;
            return whole();
        };
        // On the same filesystem, so that the rename is one step.
        let aside = Aside::new(&self.root)?;
        let tops = self.unpack_into(reader, &aside.0)?;
        whole()?;
        let [top] = &tops[..] else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the archive does not hold one file or directory"));
        };
        fs::rename(aside.0.join(top), self.root.join(name))
    }

    /// Unpacks, never outside of `root`; the top entries.
    fn unpack_into(&self, reader: impl Read, root: &Path) -> io::Result<Vec<PathBuf>> {
        let mut archive = tar::Archive::new(reader);
        archive.set_preserve_permissions(true);
        // What comes from elsewhere and becomes one's own gives nobody one's rights: no set-id bits, no capabilities.
        archive.set_unpack_xattrs(self.owner != Owner::Own);
        archive.set_mask(if self.owner == Owner::Own { 0o7000 } else { 0 });
        archive.set_preserve_ownerships(self.owner == Owner::Archived);
        let (mut tops, mut directories) = (Vec::new(), Vec::new());
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = inside(&entry.path()?)?;
            if let Some(top) = path.components().next().map(|top| PathBuf::from(top.as_os_str()))
                && !tops.contains(&top)
            {
                tops.push(top);
            }
            if entry.header().entry_type().is_dir() {
                // Its mode and time are its own once nothing is put into it any more; until then it is made as files need it.
                directories.push((path, entry));
                continue;
            }
            self.place(&mut entry, root, &path)?;
        }
        directories.sort_by(|(one, _), (other, _)| other.cmp(one));
        for (path, mut entry) in directories {
            self.place(&mut entry, root, &path)?;
        }
        // The archive's padding is read too, so that the host can send all of it.
        io::copy(&mut archive.into_inner(), &mut io::sink())?;
        Ok(tops)
    }

    fn place(&self, entry: &mut tar::Entry<'_, impl Read>, root: &Path, path: &Path) -> io::Result<()> {
        if !entry.unpack_in(root)? {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} leads elsewhere", path.display())));
        }
        match self.owner {
            Owner::These(uid, gid) => lchown(root.join(path), Some(uid), Some(gid)),
            Owner::Archived | Owner::Own => Ok(()),
        }
    }
}

/// The path of an entry, if it is one below where it is unpacked.
fn inside(path: &Path) -> io::Result<PathBuf> {
    let mut inside = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => inside.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} leads elsewhere", path.display())));
            }
        }
    }
    Ok(inside)
}

/// Makes a directory that was unpacked and what is in it removable, whatever modes came with the archive. Blocking.
pub fn make_removable(dir: &Path) {
    let Ok(entries) = fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).and_then(|()| fs::read_dir(dir))
    else {
        return;
    };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        make_removable(&entry.path());
    }
}

/// A hidden directory that goes with its scope.
struct Aside(PathBuf);

impl Aside {
    fn new(parent: &Path) -> io::Result<Self> {
        for attempt in 0u32.. {
            let path = parent.join(format!(".warren-cp-{}-{attempt}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        make_removable(&self.0);
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!("{} stays behind: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in entries {
            let mut header = tar::Header::new_gnu();
            // Written as it is: the builder would refuse what an attacker would not.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(content.len() as u64);
            header.set_mode(0o640);
            header.set_cksum();
            builder.append(&header, content.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn find(path: &Path, contents: bool) -> Result<Place, PlaceError> {
        Place::find(path.to_str().unwrap(), contents, Owner::Own)
    }

    fn unpack(path: &Path, contents: bool, bytes: &[u8]) -> io::Result<()> {
        find(path, contents).unwrap().unpack(bytes, || Ok(()))
    }

    #[test]
    fn a_file_gets_its_new_name_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        unpack(&target, false, &archive(&[("source", "one")])).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "one");
        let whole = archive(&[("source", "a longer text than that")]);
        unpack(&target, false, &whole[..520]).unwrap_err();
        find(&target, false).unwrap().unpack(&whole[..], || Err(io::Error::other("cut"))).unwrap_err();
        assert_eq!(fs::read_to_string(&target).unwrap(), "one");
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "nothing is left beside it");
        // Into a directory it keeps its name.
        unpack(dir.path(), false, &whole).unwrap();
        assert!(dir.path().join("source").exists());
        unpack(&dir.path().join("new/deep"), true, &whole).unwrap();
        assert!(dir.path().join("new/deep/source").exists());
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("inside");
        fs::create_dir(&inside).unwrap();
        let error = unpack(&inside, false, &archive(&[("../escaped", "x")])).unwrap_err();
        assert!(error.to_string().contains("leads elsewhere"), "{error}");
        assert!(!dir.path().join("escaped").exists());
        // Also where only its owner would be another's.
        let outside = dir.path().join("outside");
        fs::write(&outside, "").unwrap();
        let place = Place::find(inside.to_str().unwrap(), false, Owner::These(1234, 1234)).unwrap();
        let absolute = archive(&[(outside.to_str().unwrap(), "x")]);
        assert!(place.unpack(&absolute[..], || Ok(())).unwrap_err().to_string().contains("leads elsewhere"));
        assert_ne!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(&outside).unwrap()), 1234);
        assert!(find(Path::new("relative"), false).unwrap_err().to_string().contains("absolute"));
        assert!(find(&inside.join("no/such"), false).unwrap_err().to_string().contains("no directory"));
    }

    #[test]
    fn directories_get_their_modes_last_and_set_id_bits_are_not_ones_own() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        fs::create_dir_all(source.join("closed")).unwrap();
        fs::write(source.join("closed/program"), "x").unwrap();
        fs::set_permissions(source.join("closed/program"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::set_permissions(source.join("closed"), fs::Permissions::from_mode(0o555)).unwrap();
        let mut bytes = Vec::new();
        crate::pack(&source, false, false, &mut bytes).unwrap();
        let target = dir.path().join("target");
        unpack(&target, false, &bytes).unwrap();
        let mode = |path: &str| fs::metadata(target.join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("closed"), mode("closed/program")), (0o555, 0o755));
    }
}
