//! Layers as archives made entry by entry, with what testkit's cannot say: names that are no text, attributes, times.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use tar::{Builder, EntryType, Header};

/// A layer's archive, entry by entry, with what headers alone cannot say.
pub struct Tar(Builder<Vec<u8>>);

/// What is special of an entry.
#[derive(Default)]
pub struct With<'a> {
    pub owner: (u64, u64),
    pub xattrs: &'a [(&'a str, &'a [u8])],
    pub mtime: &'a str,
    pub device: (u32, u32),
}

impl Tar {
    pub fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    pub fn add(mut self, path: &[u8], kind: EntryType, mode: u32, content: &[u8], with: &With<'_>) -> Self {
        let mtime = if with.mtime.is_empty() { "1600000000.123456789" } else { with.mtime };
        let mut records = vec![("mtime".to_owned(), mtime.as_bytes().to_vec())];
        records.extend(with.xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.to_vec())));
        records.push(("path".to_owned(), path.to_vec()));
        let link = matches!(kind, EntryType::Symlink | EntryType::Link);
        if link {
            records.push(("linkpath".to_owned(), content.to_vec()));
        }
        self.0.append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), value.as_slice()))).unwrap();
        let mut header = Header::new_ustar();
        header.set_path("in-the-extended-header").unwrap();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(with.owner.0);
        header.set_gid(with.owner.1);
        header.set_mtime(1_600_000_000);
        header.set_device_major(with.device.0).unwrap();
        header.set_device_minor(with.device.1).unwrap();
        header.set_size(if link { 0 } else { content.len() as u64 });
        header.set_cksum();
        self.0.append(&header, if link { &[] } else { content }).unwrap();
        self
    }

    /// An empty file whose header says all.
    pub fn plain(mut self, path: &str) -> Self {
        let mut header = Header::new_ustar();
        header.set_path(path).unwrap();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        header.set_cksum();
        self.0.append(&header, &[][..]).unwrap();
        self
    }

    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.add(path.as_bytes(), EntryType::Directory, mode, b"", &With::default())
    }

    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.add(path.as_bytes(), EntryType::Regular, mode, content, &With::default())
    }

    pub fn link(self, path: &str, kind: EntryType, target: &str) -> Self {
        self.add(path.as_bytes(), kind, 0o777, target.as_bytes(), &With::default())
    }

    pub fn write(self, path: &Path) -> PathBuf {
        fs::write(path, self.0.into_inner().unwrap()).unwrap();
        path.to_owned()
    }

    /// The archive's bytes.
    pub fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}
