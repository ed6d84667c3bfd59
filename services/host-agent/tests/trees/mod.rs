//! What two trees are compared by.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::CString,
    fmt::Write as _,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    process::Command,
};

use sha2::{Digest, Sha256};

/// A mount that ends with the test.
pub struct Mounted(pub PathBuf);

impl Mounted {
    /// Of an ext4 image, for reading.
    pub fn new(image: &Path, at: PathBuf) -> Self {
        fs::create_dir(&at).unwrap();
        run("mount", &["-o", "loop,ro,noload", image.to_str().unwrap(), at.to_str().unwrap()]);
        Self(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(&self.0).status());
    }
}

/// Runs a tool that does well.
pub fn run(tool: &str, arguments: &[&str]) {
    let output = Command::new(tool).args(arguments).output().unwrap_or_else(|error| panic!("{tool}: {error}"));
    assert!(output.status.success(), "{tool} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// `getxattr` and its list, of links themselves.
fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let file = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut list = vec![0u8; 64 << 10];
    // SAFETY: the path ends with a zero, and the buffer is as long as it is said to be.
    let count = unsafe { libc::llistxattr(file.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    list.truncate(usize::try_from(count).unwrap_or(0));
    let mut all = BTreeMap::new();
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let key = CString::new(name).unwrap();
        let mut value = vec![0u8; 64 << 10];
        // SAFETY: both names end with a zero, and the buffer is as long as it is said to be.
        let count = unsafe { libc::lgetxattr(file.as_ptr(), key.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        value.truncate(usize::try_from(count).unwrap_or(0));
        all.insert(name.to_vec(), value);
    }
    all
}

/// Everything that can be seen of a tree, by path.
pub fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    let (mut all, mut inodes, mut left) = (BTreeMap::new(), HashMap::new(), vec![PathBuf::new()]);
    while let Some(relative) = left.pop() {
        let path = root.join(&relative);
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let mut text = format!("{:o} {}:{} ", meta.mode(), meta.uid(), meta.gid());
        if kind.is_dir() {
            for entry in fs::read_dir(&path).unwrap() {
                let below = relative.join(entry.unwrap().file_name());
                if below != Path::new("lost+found") {
                    left.push(below);
                }
            }
        } else {
            write!(text, "links {} ", meta.nlink()).unwrap();
        }
        if kind.is_file() {
            write!(text, "{} bytes {} ", meta.size(), hex::encode(Sha256::digest(fs::read(&path).unwrap()))).unwrap();
        } else if kind.is_symlink() {
            write!(text, "-> {:?} ", fs::read_link(&path).unwrap()).unwrap();
        } else if kind.is_char_device() || kind.is_block_device() {
            write!(text, "device {:x} ", meta.rdev()).unwrap();
        }
        write!(text, "{}.{:09} {:?}", meta.mtime(), meta.mtime_nsec(), xattrs(&path)).unwrap();
        if meta.nlink() > 1 && !kind.is_dir() {
            inodes.entry(meta.ino()).or_insert_with(Vec::new).push(relative.clone());
        }
        all.insert(relative, text);
    }
    // Which names are of one file.
    for mut names in inodes.into_values() {
        names.sort();
        for name in &names {
            write!(all.get_mut(name).unwrap(), " one of {names:?}").unwrap();
        }
    }
    all
}

/// That both have the same files, with all that can be seen of them.
pub fn assert_same([ours, theirs]: [BTreeMap<PathBuf, String>; 2]) {
    let mut differences = String::new();
    for path in ours.keys().chain(theirs.keys()).collect::<std::collections::BTreeSet<_>>() {
        let (one, other) = (ours.get(path), theirs.get(path));
        if one != other {
            writeln!(differences, "{}\n  warren {one:?}\n  theirs {other:?}", path.display()).unwrap();
        }
    }
    assert!(differences.is_empty(), "{differences}");
}
