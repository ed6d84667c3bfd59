//! The initramfs: guest-agent as `/init` and the few modules a guest needs, uncompressed, as unpacking is work for
//! an emulated processor.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use cpio::newc::Builder;

use super::{KernelError, file_error, packed};

/// The modules, in the order in which they are loaded.
pub(super) const MODULES: [&str; 9] = [
    "virtio_ring",
    "virtio",
    "virtio_mmio",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
];

/// A module's name with its file's content.
pub(super) type Module = (String, Vec<u8>);

/// The most bytes of the modules guests need, which are held in memory: ten times those of a kernel built to be debugged.
const NEEDED_MAX: u64 = 64 << 20;
/// The most bytes read of a list of modules: a distribution's has 30 KB.
const BUILTIN_MAX: u64 = 4 << 20;
/// The largest module taken, in bytes: ten times the largest a distribution has.
pub(super) const MODULE_MAX: usize = 256 * 1024 * 1024;

/// Finds and reads the modules below a `lib/modules/<release>` directory; those built in are left out.
pub(super) fn modules(dir: &Path) -> Result<Vec<Module>, KernelError> {
    let mut files = BTreeMap::new();
    let kernel = dir.join("kernel");
    if kernel.exists() {
        walk(&kernel, &mut files)?;
    }
    let (mut found, mut left) = (BTreeMap::new(), NEEDED_MAX);
    for (name, path) in files {
        let bytes = module(&path, left).map_err(file_error(&path))?;
        left -= bytes.len() as u64;
        found.insert(name, bytes);
    }
    let mut builtin = String::new();
    if let Ok(list) = File::open(dir.join("modules.builtin")) {
        // One that is no text lists none.
        drop(list.take(BUILTIN_MAX).read_to_string(&mut builtin));
    }
    pick(found, &builtin, dir)
}

/// A module's bytes, of which there may be so many; unpacked where its name says that it is packed.
fn module(path: &Path, left: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = BufReader::new(File::open(path)?);
    let unpacked: Box<dyn Read> =
        if path.extension().is_some_and(|ending| ending == "ko") { Box::new(file) } else { packed::open(file)? };
    unpacked.take(left + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > left {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("the modules guests need have more than {} MiB", NEEDED_MAX >> 20),
        ));
    }
    Ok(bytes)
}

/// The modules guests need of those found, in order; `builtin` is the release's `modules.builtin`, `place` is named where one is missing.
pub(super) fn pick(
    mut found: BTreeMap<String, Vec<u8>>,
    builtin: &str,
    place: &Path,
) -> Result<Vec<Module>, KernelError> {
    let is_builtin = |name: &str| builtin.lines().any(|line| needed(line) == Some(name));
    let mut picked = Vec::new();
    for name in MODULES {
        match found.remove(name) {
            Some(bytes) => picked.push((format!("{name}.ko"), bytes)),
            None if is_builtin(name) => {}
            None => return Err(KernelError::Module { name, dir: place.to_owned() }),
        }
    }
    Ok(picked)
}

/// The module guests need that a file of that path is, if any. `-` and `_` are the same to the kernel.
pub(super) fn needed(path: &str) -> Option<&'static str> {
    let file = path.rsplit('/').next()?;
    let (name, _packing) = file.split_once(".ko")?;
    let plain = name.replace('-', "_");
    MODULES.into_iter().find(|module| *module == plain)
}

fn walk(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), KernelError> {
    for entry in fs::read_dir(dir).map_err(file_error(dir))? {
        let entry = entry.map_err(file_error(dir))?;
        let path = entry.path();
        if entry.file_type().map_err(file_error(&path))?.is_dir() {
            walk(&path, files)?;
        } else if let Some(name) = path.to_str().and_then(needed) {
            files.insert(name.to_owned(), path);
        }
    }
    Ok(())
}

/// The archive's bytes.
pub(super) fn build(guest_agent: &[u8], modules: &[Module]) -> Result<Vec<u8>, KernelError> {
    let order: String = modules.iter().map(|(name, _)| format!("{name}\n")).collect();
    let directory = |name: &str| (Builder::new(name).mode(0o040_755), &[][..]);
    let file = |name: &str, mode: u32| Builder::new(name).mode(0o100_000 | mode);
    let mut entries: Vec<(Builder, &[u8])> = ["dev", "proc", "sys", "newroot", "modules"].map(directory).into();
    entries.push((Builder::new("dev/console").mode(0o020_600).rdev_major(5).rdev_minor(1), &[]));
    entries.push((file("init", 0o755), guest_agent));
    entries.extend(modules.iter().map(|(name, bytes)| (file(&format!("modules/{name}"), 0o644), bytes.as_slice())));
    entries.push((file("modules/order", 0o644), order.as_bytes()));
    let mut archive = Vec::new();
    let failed = |error| file_error(Path::new("initramfs"))(error);
    for (number, (builder, bytes)) in entries.into_iter().enumerate() {
        let builder = builder.ino(u32::try_from(number + 1).unwrap_or(u32::MAX)).nlink(1);
        let mut writer = builder.write(&mut archive, u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        io::Write::write_all(&mut writer, bytes).map_err(failed)?;
        writer.finish().map_err(failed)?;
    }
    cpio::newc::trailer(&mut archive).map_err(failed)?;
    Ok(archive)
}
