//! The VM's two first disks: the root filesystem and the config drive.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use contract::config_drive::{CONFIG_SERIAL, JSON_MAX, MAGIC, ROOT_SERIAL, Settings};

use super::{BootError, During};

/// The most bytes of a config drive that are read: its JSON, header and padding.
const READ_MAX: u64 = JSON_MAX as u64 + 8192;
/// How often a missing disk is looked for.
const POLL: Duration = Duration::from_millis(5);

/// What the disks are.
pub struct Disks {
    /// The root filesystem's device.
    pub root: PathBuf,
    /// What the config drive says.
    pub settings: Settings,
}

/// Waits for both disks and reads the config drive. They are told by their serial numbers, as VMMs number disks in different
/// orders; where a VMM gives none, there are just these two, told by the config drive's magic number.
pub fn find(wait: Duration) -> Result<Disks, BootError> {
    let deadline = Instant::now() + wait;
    let (root, drive) = loop {
        let disks = serials(Path::new("/sys/block")).during("list the disks")?;
        if let Some(found) = choose(&disks, starts_with_magic) {
            break found;
        }
        if Instant::now() > deadline {
            let seen = disks.iter().map(|(path, serial)| format!("{} {serial:?}", path.display())).collect::<Vec<_>>();
            let missing = std::io::Error::new(std::io::ErrorKind::NotFound, format!("there are {}", seen.join(", ")));
            return Err(missing).during("find the root filesystem and the config drive");
        }
        std::thread::sleep(POLL);
    };
    let mut bytes = Vec::new();
    File::open(&drive)
        .and_then(|file| file.take(READ_MAX).read_to_end(&mut bytes))
        .during(format_args!("read the config drive {}", drive.display()))?;
    let settings = Settings::from_drive(&bytes).during(format_args!("use the config drive {}", drive.display()))?;
    Ok(Disks { root, settings })
}

/// Every virtio disk with its serial number, empty where it has none.
pub(super) fn serials(block: &Path) -> std::io::Result<Vec<(PathBuf, String)>> {
    let names = fs::read_dir(block)?.flatten().map(|entry| entry.file_name());
    let disks = names.filter(|name| name.as_encoded_bytes().starts_with(b"vd"));
    Ok(disks
        .map(|name| {
            let serial = fs::read_to_string(block.join(&name).join("serial")).unwrap_or_default();
            (Path::new("/dev").join(name), serial.trim_end_matches(['\0', '\n']).to_owned())
        })
        .collect())
}

/// The root filesystem and the config drive, once both are there.
fn choose(disks: &[(PathBuf, String)], is_config: impl Fn(&Path) -> bool) -> Option<(PathBuf, PathBuf)> {
    let by = |wanted: &str| disks.iter().find(|(_, serial)| serial == wanted).map(|(path, _)| path.clone());
    if let (Some(root), Some(drive)) = (by(ROOT_SERIAL), by(CONFIG_SERIAL)) {
        return Some((root, drive));
    }
    let [(one, first), (two, second)] = disks else { return None };
    if !first.is_empty() || !second.is_empty() {
        return None;
    }
    match (is_config(one), is_config(two)) {
        (false, true) => Some((one.clone(), two.clone())),
        (true, false) => Some((two.clone(), one.clone())),
        _ => None,
    }
}

fn starts_with_magic(device: &Path) -> bool {
    let mut magic = [0; MAGIC.len()];
    File::open(device).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == MAGIC
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disks_are_told_apart_in_any_order() {
        let disk = |name: &str, serial: &str| (PathBuf::from(name), serial.to_owned());
        let named = [disk("a", "work"), disk("b", CONFIG_SERIAL), disk("c", ROOT_SERIAL)];
        assert_eq!(choose(&named, |_| false), Some(("c".into(), "b".into())));
        assert_eq!(choose(&named[..2], |_| true), None);
        let nameless = [disk("a", ""), disk("b", "")];
        assert_eq!(choose(&nameless, |path| path == Path::new("a")), Some(("b".into(), "a".into())));
        assert_eq!(choose(&nameless, |_| false), None);
        assert_eq!(choose(&nameless[..1], |_| true), None);
    }
}
