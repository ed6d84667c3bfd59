//! The image's own init: the program that becomes process 1, where the image has one.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
};

/// Who process 1 is after the hand-over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Init {
    /// systemd, by this path.
    Systemd(PathBuf),
    /// Another init of the image.
    Other(PathBuf),
    /// The image has none: guest-agent stays.
    GuestAgent,
}

/// Where an init is looked for, in this order.
const CANDIDATES: [&str; 4] = ["/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/etc/init"];
/// How many symlinks a path may have, as in the kernel.
const LINKS_MAX: u32 = 40;

impl Init {
    /// What `GuestFacts` calls it.
    pub fn name(&self) -> String {
        match self {
            Self::Systemd(_) => "systemd".into(),
            Self::Other(path) => path.display().to_string(),
            Self::GuestAgent => "guest-agent".into(),
        }
    }
}

/// Finds the init of the image at `root`, symlinks resolved within it.
pub fn find(root: &Path) -> Init {
    for candidate in CANDIDATES {
        let Ok(resolved) = resolve(root, Path::new(candidate)) else { continue };
        let runs = fs::metadata(root.join(resolved.strip_prefix("/").unwrap_or(&resolved)))
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0);
        if runs {
            let systemd = resolved.file_name().is_some_and(|name| name == "systemd");
            return if systemd { Init::Systemd(candidate.into()) } else { Init::Other(candidate.into()) };
        }
    }
    Init::GuestAgent
}

/// Resolves an absolute path's symlinks as a process rooted at `root` would.
fn resolve(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut resolved = PathBuf::from("/");
    let mut rest: Vec<std::ffi::OsString> = Vec::new();
    push_reversed(&mut rest, path);
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == ".." {
            resolved.pop();
            continue;
        }
        let next = resolved.join(&name);
        let real = root.join(next.strip_prefix("/").unwrap_or(&next));
        if !fs::symlink_metadata(&real)?.is_symlink() {
            resolved = next;
            continue;
        }
        links += 1;
        if links > LINKS_MAX {
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        }
        let target = fs::read_link(&real)?;
        if target.is_absolute() {
            resolved = PathBuf::from("/");
        }
        push_reversed(&mut rest, &target);
    }
    Ok(resolved)
}

fn push_reversed(rest: &mut Vec<std::ffi::OsString>, path: &Path) {
    let parts = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    let mut parts: Vec<_> = parts.collect();
    parts.reverse();
    rest.append(&mut parts);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn image() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for directory in ["sbin", "usr/lib/systemd", "etc", "bin"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        root
    }

    fn program(root: &Path, path: &str) {
        fs::write(root.join(path), "").unwrap();
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn links_are_resolved_within_the_image() {
        let root = image();
        program(root.path(), "usr/lib/systemd/systemd");
        symlink("/usr/lib", root.path().join("lib")).unwrap();
        symlink("../lib/systemd/systemd", root.path().join("sbin/init")).unwrap();
        assert_eq!(find(root.path()), Init::Systemd("/sbin/init".into()));
    }

    #[test]
    fn an_image_without_an_init_keeps_guest_agent() {
        let root = image();
        assert_eq!(find(root.path()), Init::GuestAgent);
        // A link to itself, one to nowhere, and one that only the build machine could follow.
        symlink("init", root.path().join("sbin/init")).unwrap();
        symlink(std::env::current_exe().unwrap(), root.path().join("etc/init")).unwrap();
        assert_eq!(find(root.path()), Init::GuestAgent);
    }

    #[test]
    fn another_init_is_called_by_its_path() {
        let root = image();
        program(root.path(), "bin/busybox");
        symlink("/bin/busybox", root.path().join("sbin/init")).unwrap();
        assert_eq!(find(root.path()), Init::Other("/sbin/init".into()));
        assert_eq!(find(root.path()).name(), "/sbin/init");
    }
}
