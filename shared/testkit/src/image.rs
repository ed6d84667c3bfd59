//! Small OCI images made in the test.

use std::{fs, io, io::Write, path::Path, process::Command};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, GnuHeader, Header};

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
    /// Not at all.
    Plain,
}

/// One layer: a tar archive in the making.
pub struct Layer {
    tar: Builder<Vec<u8>>,
    packing: Packing,
}

impl Default for Layer {
    fn default() -> Self {
        Self { tar: Builder::new(Vec::new()), packing: Packing::Gzip }
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header
}

impl Layer {
    /// An empty layer.
    pub fn new(packing: Packing) -> Self {
        Self { packing, ..Self::default() }
    }

    /// A layer of a whole tar archive, packed with gzip.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn from_tar(path: &Path) -> io::Result<Self> {
        let mut bytes = fs::read(path)?;
        // What ends an archive is written again by `finish`; zeros before that may be a file's own.
        let end = end_of_entries(&bytes)?;
        bytes.truncate(end);
        Ok(Self { tar: Builder::new(bytes), packing: Packing::Gzip })
    }

    /// A layer of an archive in the making.
    pub fn from_builder(tar: Builder<Vec<u8>>, packing: Packing) -> Self {
        Self { tar, packing }
    }

    /// Adds a file.
    #[must_use]
    pub fn file(mut self, path: &str, mode: u32, content: &[u8]) -> Self {
        let mut header = header(EntryType::Regular, mode, content.len() as u64);
        self.tar.append_data(&mut header, path, content).expect("memory takes it");
        self
    }

    /// Adds a directory.
    #[must_use]
    pub fn dir(mut self, path: &str, mode: u32) -> Self {
        self.tar.append_data(&mut header(EntryType::Directory, mode, 0), path, io::empty()).expect("memory takes it");
        self
    }

    /// Adds a symlink.
    #[must_use]
    pub fn symlink(mut self, path: &str, target: &str) -> Self {
        self.tar.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, target).expect("memory takes it");
        self
    }

    /// Adds a hard link.
    #[must_use]
    pub fn hardlink(mut self, path: &str, target: &str) -> Self {
        self.tar.append_link(&mut header(EntryType::Link, 0o644, 0), path, target).expect("memory takes it");
        self
    }

    /// Adds an entry whose name is taken as it is, however hostile.
    #[must_use]
    pub fn raw(mut self, name: &[u8], content: &[u8]) -> Self {
        let mut header = header(EntryType::Regular, 0o644, content.len() as u64);
        header.as_gnu_mut().expect("a GNU header").name[..name.len()].copy_from_slice(name);
        header.set_cksum();
        self.tar.append(&header, content).expect("memory takes it");
        self
    }

    /// Adds a character device.
    #[must_use]
    pub fn device(mut self, path: &str, major: u32, minor: u32) -> Self {
        let mut header = header(EntryType::Char, 0o600, 0);
        header.set_device_major(major).expect("a small number");
        header.set_device_minor(minor).expect("a small number");
        self.tar.append_data(&mut header, path, io::empty()).expect("memory takes it");
        self
    }

    /// Its bytes, packed, with the digest of the unpacked ones.
    fn finish(self) -> io::Result<(Vec<u8>, String)> {
        let tar = self.tar.into_inner()?;
        let diff_id = digest(&tar);
        let packed = match self.packing {
            Packing::Plain => tar,
            Packing::Zstd => zstd::encode_all(&tar[..], 1)?,
            Packing::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&tar)?;
                encoder.finish()?
            }
        };
        Ok((packed, diff_id))
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// An image layout in the making.
#[derive(Default)]
pub struct Layout {
    layers: Vec<Layer>,
    config: Value,
}

impl Layout {
    /// An image of these layers, lowest first.
    pub fn new(layers: Vec<Layer>) -> Self {
        Self { layers, config: json!({}) }
    }

    /// Sets the execution parameters (OCI `config`).
    #[must_use]
    pub fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    /// Writes it as an OCI image layout directory, with an index that names another platform's manifest too.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn write(self, dir: &Path) -> io::Result<()> {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let put = |bytes: &[u8]| -> io::Result<Value> {
            let digest = digest(bytes);
            fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes)?;
            Ok(json!({ "digest": digest, "size": bytes.len() }))
        };
        let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
        for layer in self.layers {
            let media = match layer.packing {
                Packing::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
                Packing::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
                Packing::Plain => "application/vnd.oci.image.layer.v1.tar",
            };
            let (bytes, diff_id) = layer.finish()?;
            let mut descriptor = put(&bytes)?;
            descriptor["mediaType"] = json!(media);
            layers.push(descriptor);
            diff_ids.push(diff_id);
        }
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "architecture": architecture, "os": "linux", "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let mut descriptor = put(&serde_json::to_vec(&config)?)?;
        descriptor["mediaType"] = json!("application/vnd.oci.image.config.v1+json");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor, "layers": layers,
        });
        let mut entry = put(&serde_json::to_vec(&manifest)?)?;
        entry["mediaType"] = json!("application/vnd.oci.image.manifest.v1+json");
        let mut other = entry.clone();
        other["digest"] = json!(digest(b"for another machine"));
        other["platform"] = json!({ "os": "linux", "architecture": "s390x" });
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        let index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [other, entry],
        });
        fs::write(dir.join("index.json"), serde_json::to_vec(&index)?)?;
        fs::write(dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)
    }
}

/// A busybox-only image: no init, no sshd, no package.
///
/// # Panics
/// busybox is not installed.
pub fn busybox_image() -> Layout {
    let busybox = fs::read("/bin/busybox").expect("busybox-static is installed (deploy/check installs it)");
    let listed = Command::new("/bin/busybox").arg("--list").output().expect("busybox runs");
    let mut layer = Layer::default();
    for (path, mode) in [
        ("bin", 0o755),
        ("proc", 0o755),
        ("sys", 0o755),
        ("dev", 0o755),
        ("root", 0o700),
        ("tmp", 0o1777),
        ("etc", 0o755),
    ] {
        layer = layer.dir(path, mode);
    }
    layer = layer
        .file("bin/busybox", 0o755, &busybox)
        .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")
        .file("etc/group", 0o644, b"root:x:0:\n");
    for applet in String::from_utf8_lossy(&listed.stdout).lines() {
        // An image with an init would be handed PID 1.
        if !["init", "linuxrc", "busybox"].contains(&applet) {
            layer = layer.symlink(&format!("bin/{applet}"), "busybox");
        }
    }
    Layout::new(vec![layer]).config(json!({ "Env": ["PATH=/bin"] }))
}

/// Where the last entry of an archive ends. GNU's sparse files have headers that go on in further blocks, which their size does not count.
fn end_of_entries(bytes: &[u8]) -> io::Result<usize> {
    const BLOCK: usize = 512;
    let block = |at: usize| bytes.get(at..at + BLOCK).filter(|block| block.iter().any(|byte| *byte != 0));
    let mut end = 0;
    while let Some(found) = block(end) {
        let header = Header::from_byte_slice(found);
        end += BLOCK;
        let mut goes_on = header.entry_type().is_gnu_sparse() && header.as_gnu().is_some_and(GnuHeader::is_extended);
        while goes_on {
            goes_on = bytes.get(end + 504).is_some_and(|byte| *byte != 0);
            end += BLOCK;
        }
        end += usize::try_from(header.entry_size()?).map_err(io::Error::other)?.next_multiple_of(BLOCK);
    }
    Ok(end)
}
