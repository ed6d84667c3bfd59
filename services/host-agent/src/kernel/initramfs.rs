//! The initramfs: guest-agent as `/init` and the few modules a guest needs, uncompressed, as unpacking is work for
//! an emulated processor.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use cpio::newc::Builder;

use super::{KernelError, file_error};

/// The modules, in the order in which they are loaded.
const MODULES: [&str; 9] = [
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

/// Finds and reads the modules below a `lib/modules/<release>` directory; those built in are left out.
pub(super) fn modules(dir: &Path) -> Result<Vec<Module>, KernelError> {
    let mut files = BTreeMap::new();
    walk(&dir.join("kernel"), &mut files)?;
    let builtin = fs::read_to_string(dir.join("modules.builtin")).unwrap_or_default();
    let is_builtin =
        |name: &str| builtin.lines().any(|line| line.rsplit('/').next().is_some_and(|file| plain(file) == name));
    let mut found = Vec::new();
    for name in MODULES {
        match files.get(name) {
            Some(path) => found.push((format!("{name}.ko"), fs::read(path).map_err(file_error(path))?)),
            None if is_builtin(name) => {}
            None => return Err(KernelError::Module { name, dir: dir.to_owned() }),
        }
    }
    Ok(found)
}

/// A module's name as the kernel knows it: `-` and `_` are the same.
fn plain(file: &str) -> String {
    file.trim_end_matches(".ko").replace('-', "_")
}

fn walk(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), KernelError> {
    for entry in fs::read_dir(dir).map_err(file_error(dir))? {
        let entry = entry.map_err(file_error(dir))?;
        let path = entry.path();
        if entry.file_type().map_err(file_error(&path))?.is_dir() {
            walk(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "ko")
            && let Some(name) = path.file_name().and_then(|name| name.to_str())
        {
            files.insert(plain(name), path);
        }
    }
    Ok(())
}

/// The archive's bytes.
pub(super) fn build(guest_agent: &[u8], modules: &[Module]) -> Result<Vec<u8>, KernelError> {
    let order: String = modules.iter().map(|(name, _)| format!("{name}\n")).collect();
    let directory = |name: &str| (Builder::new(name).mode(0o040_755), Vec::new());
    let file = |name: &str, mode: u32, bytes: &[u8]| (Builder::new(name).mode(0o100_000 | mode), bytes.to_vec());
    let mut entries: Vec<_> = ["dev", "proc", "sys", "newroot", "modules"].map(directory).into();
    entries.push((Builder::new("dev/console").mode(0o020_600).rdev_major(5).rdev_minor(1), Vec::new()));
    entries.push(file("init", 0o755, guest_agent));
    entries.extend(modules.iter().map(|(name, bytes)| file(&format!("modules/{name}"), 0o644, bytes)));
    entries.push(file("modules/order", 0o644, order.as_bytes()));
    let mut archive = Vec::new();
    let failed = |error| file_error(Path::new("initramfs"))(error);
    for (number, (builder, bytes)) in entries.into_iter().enumerate() {
        let builder = builder.ino(u32::try_from(number + 1).unwrap_or(u32::MAX)).nlink(1);
        let mut writer = builder.write(&mut archive, u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        std::io::Write::write_all(&mut writer, &bytes).map_err(failed)?;
        writer.finish().map_err(failed)?;
    }
    cpio::newc::trailer(&mut archive).map_err(failed)?;
    Ok(archive)
}
