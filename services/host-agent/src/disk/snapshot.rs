//! A **snapshot** of a VM's root disk: taken quickly, of a disk nobody writes to meanwhile, and flattened afterwards to a raw file at leisure.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{driver::reflink, overlay::Overlay, sparse};
use crate::handles::DiskHandle;

/// A copy of what a VM's disk has of its own.
#[derive(Debug)]
pub struct Snapshot {
    path: PathBuf,
    format: String,
    /// The image below an overlay. Open, so that it stays when the VM and its image are deleted meanwhile.
    backing: Option<File>,
    /// When the disk was written to last.
    pub modified: SystemTime,
}

impl Snapshot {
    /// Copies the disk in `dir` to `into`: at once on a filesystem that shares blocks, else as long as it has data of its own. Blocking;
    /// ends early when `go_on` says so.
    ///
    /// # Errors
    /// The disk cannot be read, or the host's is full; `Interrupted` when `go_on` said no.
    pub fn take(
        dir: &Path,
        disk: &DiskHandle,
        backing: Option<&Path>,
        into: &Path,
        go_on: &dyn Fn(u64) -> bool,
    ) -> io::Result<Self> {
        let backing = backing.map(File::open).transpose()?;
        let from = File::open(dir.join(&disk.file))?;
        let to = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(into)?;
        if reflink(&from, &to).is_err() {
            to.set_len(0)?;
            sparse::copy_while(&from, &to, go_on)?;
            to.set_len(from.metadata()?.len())?;
        }
        let modified = from.metadata()?.modified()?;
        Ok(Self { path: into.to_owned(), format: disk.format.clone(), backing, modified })
    }

    /// How many bytes of the host's disk a flat copy takes beside the snapshot, at the most.
    ///
    /// # Errors
    /// The files cannot be looked at.
    pub fn needs(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        let Some(backing) = &self.backing else { return Ok(0) };
        Ok(std::fs::metadata(&self.path)?.blocks() * 512 + backing.metadata()?.blocks() * 512)
    }

    /// Makes the raw disk at `into` of it, of at most `size` bytes, and nothing stays of the snapshot. Blocking; ends early when `go_on`, which is told of bytes
    /// as they are copied, says so.
    ///
    /// # Errors
    /// As [`Snapshot::take`], and an overlay that is none.
    pub fn flatten(self, into: &Path, size: u64, go_on: &dyn Fn(u64) -> bool) -> io::Result<()> {
        if self.format == "raw" {
            return std::fs::rename(&self.path, into);
        }
        let file = File::open(&self.path)?;
        let overlay = Overlay::open(&file, size)?;
        let to = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(into)?;
        if let Some(backing) = &self.backing
            && reflink(backing, &to).is_err()
        {
            to.set_len(0)?;
            sparse::copy_while(backing, &to, go_on)?;
        }
        to.set_len(overlay.size())?;
        overlay.lay(&to, go_on)?;
        std::fs::remove_file(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::FileExt, process::Command};

    use super::*;

    /// Writes a cluster, or that it is zero, as QEMU does: `qemu-io` is not on every machine.
    fn write_cluster(overlay: &Path, guest_cluster: u64, content: Option<u8>) {
        let file = OpenOptions::new().read(true).write(true).open(overlay).unwrap();
        let long = |at: u64| {
            let mut word = [0; 8];
            file.read_exact_at(&mut word, at).unwrap();
            u64::from_be_bytes(word)
        };
        let l1 = long(40);
        let mut table = long(l1) & 0x00ff_ffff_ffff_fe00;
        if table == 0 {
            table = file.metadata().unwrap().len().next_multiple_of(65536);
            file.set_len(table + 65536).unwrap();
            file.write_all_at(&(table | 1 << 63).to_be_bytes(), l1).unwrap();
        }
        let entry = match content {
            None => 1,
            Some(byte) => {
                let at = file.metadata().unwrap().len();
                file.write_all_at(&vec![byte; 65536], at).unwrap();
                at | 1 << 63
            }
        };
        file.write_all_at(&entry.to_be_bytes(), table + guest_cluster * 8).unwrap();
    }

    #[test]
    fn an_overlay_becomes_the_disk_its_guest_sees() {
        let dir = tempfile::tempdir().unwrap();
        let (image, root) = (dir.path().join("image"), dir.path().join("root.qcow2"));
        std::fs::write(&image, vec![7; 300_000]).unwrap();
        super::super::qcow2::create(&image, &root, 1 << 20).unwrap();
        write_cluster(&root, 0, Some(1));
        write_cluster(&root, 1, None);
        write_cluster(&root, 15, Some(2));
        let disk = DiskHandle { file: "root.qcow2".into(), format: "qcow2".into() };
        let go_on = |_| true;
        let snapshot = Snapshot::take(dir.path(), &disk, Some(&image), &dir.path().join("copy"), &go_on).unwrap();
        assert!(snapshot.needs().unwrap() > 300_000);
        // Neither the VM's later writes nor the image's end matter.
        write_cluster(&root, 2, Some(9));
        std::fs::remove_file(&image).unwrap();
        let flat = dir.path().join("flat");
        snapshot.flatten(&flat, 1 << 20, &go_on).unwrap();
        let bytes = std::fs::read(&flat).unwrap();
        assert_eq!(bytes.len(), 1 << 20);
        assert!(!dir.path().join("copy").exists());
        for (range, byte) in
            [(0..65536, 1), (65536..131_072, 0), (131_072..300_000, 7), (300_000..983_040, 0), (983_040..1 << 20, 2)]
        {
            assert!(bytes[range.clone()].iter().all(|seen| *seen == byte), "{range:?} is not {byte}");
        }
    }

    #[test]
    fn an_overlay_that_lies_is_refused_and_a_staging_that_is_discarded_ends() {
        let dir = tempfile::tempdir().unwrap();
        let (image, root) = (dir.path().join("image"), dir.path().join("root.qcow2"));
        std::fs::write(&image, vec![7; 100_000]).unwrap();
        let disk = DiskHandle { file: "root.qcow2".into(), format: "qcow2".into() };
        let flat = |lie: &dyn Fn(&File), go_on: &dyn Fn(u64) -> bool| {
            super::super::qcow2::create(&image, &root, 1 << 20).unwrap();
            write_cluster(&root, 0, Some(1));
            write_cluster(&root, 1, Some(2));
            lie(&OpenOptions::new().write(true).open(&root).unwrap());
            let snapshot =
                Snapshot::take(dir.path(), &disk, Some(&image), &dir.path().join("copy"), &|_| true).unwrap();
            snapshot.flatten(&dir.path().join("flat"), 1 << 20, go_on).map_err(|error| error.kind())
        };
        assert_eq!(flat(&|_| {}, &|_| true), Ok(()));
        assert_eq!(flat(&|_| {}, &|_| false), Err(io::ErrorKind::Interrupted));
        for (at, lie) in [
            (0, &b"QCOW"[..]),
            (4, &2u32.to_be_bytes()),
            (20, &40u32.to_be_bytes()),
            (24, &(1u64 << 50).to_be_bytes()),
            (36, &u32::MAX.to_be_bytes()),
            (40, &u64::MAX.to_be_bytes()),
            (72, &u64::MAX.to_be_bytes()),
            (3 * 65536, &(1u64 << 54).to_be_bytes()),
            (4 * 65536, &(1u64 << 62).to_be_bytes()),
            (4 * 65536, &(1u64 << 54).to_be_bytes()),
            // A cluster with two places, one that is the table itself, and one across two.
            (4 * 65536 + 16, &(5u64 << 16 | 1 << 63).to_be_bytes()),
            (4 * 65536 + 16, &(4u64 << 16 | 1 << 63).to_be_bytes()),
            (4 * 65536 + 16, &(5u64 << 16 | 512).to_be_bytes()),
        ] {
            assert_eq!(
                flat(&|file| file.write_all_at(lie, at).unwrap(), &|_| true),
                Err(io::ErrorKind::InvalidData),
                "{at}"
            );
        }
    }

    #[test]
    fn a_flat_disk_takes_no_more_than_its_overlay() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let (image, root, flat) = (dir.path().join("image"), dir.path().join("root.qcow2"), dir.path().join("flat"));
        std::fs::write(&image, "").unwrap();
        super::super::qcow2::create(&image, &root, 64 << 20).unwrap();
        for n in 0..1024 {
            write_cluster(&root, n, Some(0));
        }
        let overlay = OpenOptions::new().write(true).open(&root).unwrap();
        overlay.write_all_at(&[7; 4096], 5 << 16).unwrap();
        overlay.write_all_at(&[8; 4096], (5 << 16) + 8192).unwrap();
        let disk = DiskHandle { file: "root.qcow2".into(), format: "qcow2".into() };
        let snapshot = Snapshot::take(dir.path(), &disk, Some(&image), &dir.path().join("copy"), &|_| true).unwrap();
        snapshot.flatten(&flat, 64 << 20, &|_| true).unwrap();
        let bytes = std::fs::read(&flat).unwrap();
        let is = |from: usize, byte: u8| bytes[from..from + 4096].iter().all(|seen| *seen == byte);
        assert!(is(0, 7) && is(4096, 0) && is(8192, 8) && is(12288, 0));
        assert!(std::fs::metadata(&flat).unwrap().blocks() * 512 <= 16 << 10);
    }

    #[test]
    fn qemu_and_this_reader_agree() {
        let dir = tempfile::tempdir().unwrap();
        let (image, root) = (dir.path().join("image"), dir.path().join("root.qcow2"));
        std::fs::write(&image, vec![7; 1 << 20]).unwrap();
        super::super::qcow2::create(&image, &root, 3 << 20).unwrap();
        let io = |command: &str| Command::new("qemu-io").args(["-f", "qcow2", "-c", command]).arg(&root).output();
        let Ok(written) = io("write -P 3 100000 200000") else {
            println!("skipped: qemu-io is not installed");
            return;
        };
        assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
        assert!(io("write -z 524288 65536").unwrap().status.success());
        let disk = DiskHandle { file: "root.qcow2".into(), format: "qcow2".into() };
        let snapshot = Snapshot::take(dir.path(), &disk, Some(&image), &dir.path().join("copy"), &|_| true).unwrap();
        let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
        snapshot.flatten(&ours, 3 << 20, &|_| true).unwrap();
        let converted =
            Command::new("qemu-img").args(["convert", "-O", "raw"]).args([&root, &theirs]).status().unwrap();
        assert!(converted.success());
        assert!(std::fs::read(ours).unwrap() == std::fs::read(theirs).unwrap());
    }
}
