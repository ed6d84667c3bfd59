//! The kernel's own filesystems: what every guest needs, and what an image without an init needs beyond that.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
};

use super::{BootError, During};

const NOTHING: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// Mounts `/proc`, `/sys`, `/dev` and `/dev/pts` in the initramfs, and takes the console as standard streams.
pub fn early() -> Result<(), BootError> {
    mount_at("proc", "/proc", "proc", NOTHING, "")?;
    mount_at("sysfs", "/sys", "sysfs", NOTHING, "")?;
    mount_at("devtmpfs", "/dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=0755")?;
    mount_at("devpts", "/dev/pts", "devpts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666")?;
    take_console()
}

/// Mounts what an image's own init would have mounted.
pub fn without_init() -> Vec<(&'static str, Result<(), BootError>)> {
    let shm = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    vec![
        ("mount /dev/shm", mount_at("tmpfs", "/dev/shm", "tmpfs", shm, "mode=1777")),
        ("mount /run", mount_at("tmpfs", "/run", "tmpfs", shm, "mode=0755,size=25%")),
        ("mount /sys/fs/cgroup", mount_at("cgroup2", "/sys/fs/cgroup", "cgroup2", NOTHING, "")),
    ]
}

fn mount_at(source: &str, target: &str, kind: &str, flags: MsFlags, options: &str) -> Result<(), BootError> {
    if !Path::new(target).is_dir() {
        fs::create_dir_all(target).during(format_args!("create {target}"))?;
    }
    match mount(Some(source), target, Some(kind), flags, Some(options)) {
        // Somebody (the kernel, for /dev) was here before.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(errno) => Err(errno).during(format_args!("mount {target}")),
    }
}

fn take_console() -> Result<(), BootError> {
    let console = fs::OpenOptions::new().read(true).write(true).open("/dev/console").during("open /dev/console")?;
    for number in 0..3 {
        if console.as_fd().as_raw_fd() == number {
            continue;
        }
        // SAFETY: dup2 onto the standard descriptors, which nothing in this process owns as a Rust value.
        if unsafe { libc::dup2(console.as_raw_fd(), number) } < 0 {
            return Err(std::io::Error::last_os_error()).during("take the console");
        }
    }
    if console.as_raw_fd() < 3 {
        // It became a standard descriptor itself and must stay open.
        std::mem::forget(console);
    }
    Ok(())
}
