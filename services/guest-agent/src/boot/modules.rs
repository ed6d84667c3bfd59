//! Kernel modules of the initramfs: a directory of module files and a list of their names in load order.

use std::{
    fs::{self, File},
    path::Path,
};

use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
};

/// The most bytes of a list.
const LIST_MAX: usize = 64 * 1024;

/// Loads what `directory/order` lists; what cannot be loaded is a warning, because the VM may live without it.
pub fn load_all(directory: &Path) -> Vec<String> {
    let list = match fs::read_to_string(directory.join("order")) {
        Ok(list) => list,
        // A kernel with everything built in.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => return vec![format!("could not read the list of modules: {error}")],
    };
    let names = match parse_order(&list) {
        Ok(names) => names,
        Err(problem) => return vec![problem],
    };
    names
        .into_iter()
        .filter_map(|name| load(&directory.join(name)).err().map(|e| format!("module {name}: {e}")))
        .collect()
}

fn load(path: &Path) -> std::io::Result<()> {
    match finit_module(File::open(path)?, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The names in a list: one a line, blank lines and `#` comments left out.
fn parse_order(list: &str) -> Result<Vec<&str>, String> {
    if list.len() > LIST_MAX {
        return Err(format!("the list of modules is over {LIST_MAX} bytes"));
    }
    let names: Vec<&str> =
        list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    match names.iter().find(|name| name.contains('/') || name.contains('\0')) {
        Some(name) => Err(format!("the list of modules names {name:?}, which is no plain file name")),
        None => Ok(names),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_keeps_its_order_and_drops_blanks_and_comments() {
        let names = parse_order("virtio_ring.ko\n\n# a comment\n  virtio.ko\r\nvirtio_blk.ko").unwrap();
        assert_eq!(names, ["virtio_ring.ko", "virtio.ko", "virtio_blk.ko"]);
        assert_eq!(parse_order("").unwrap(), Vec::<&str>::new());
    }

    #[test]
    fn a_list_that_leads_elsewhere_is_refused() {
        assert!(parse_order("../../etc/shadow").is_err());
        assert!(parse_order(&"x\n".repeat(LIST_MAX)).is_err());
    }
}
