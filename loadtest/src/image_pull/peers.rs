//! The **peers**: the programs that people make a root filesystem of an image with, one after the other.

use std::{
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context, bail, ensure};
use nix::{
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
    unistd::Pid,
};

use super::Cost;
use crate::process;

/// The programs that must be here.
const PROGRAMS: [&str; 3] = ["skopeo", "umoci", "mke2fs"];

/// What is missing of them.
pub fn missing() -> Option<&'static str> {
    let path = std::env::var("PATH").unwrap_or_default();
    let found =
        |name: &str| path.split(':').chain(["/usr/sbin", "/sbin"]).any(|dir| Path::new(dir).join(name).exists());
    PROGRAMS.into_iter().find(|program| !found(program))
}

/// Makes `<dir>/rootfs.ext4` of an image by `skopeo copy`, `umoci unpack` and `mke2fs -d`; the directory is removed, outside of the time.
///
/// # Errors
/// One of them failed.
pub fn pull(reference: &str, dir: &Path, mib: u64) -> anyhow::Result<Cost> {
    std::fs::create_dir(dir)?;
    let script = format!(
        "set -e; export PATH=$PATH:/usr/sbin:/sbin
         skopeo copy -q --src-tls-verify=false docker://{reference} oci:layout:image
         umoci unpack --image layout:image bundle >umoci.log 2>&1
         mke2fs -q -t ext4 -d bundle/rootfs rootfs.ext4 {mib}M >mke2fs.log 2>&1"
    );
    let began = Instant::now();
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(dir).process_group(0).stdin(Stdio::null());
    let cost = cost(command.spawn().context("sh does not start")?, began)?;
    ensure!(dir.join("rootfs.ext4").is_file(), "the programs made no root filesystem");
    std::fs::remove_dir_all(dir)?;
    Ok(cost)
}

/// Waits for a process and tells what it and its children took. It is looked at when it has ended and before it is reaped, when
/// `/proc` still knows it.
fn cost(child: Child, began: Instant) -> anyhow::Result<Cost> {
    let pid = Pid::from_raw(child.id().cast_signed());
    let status = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
    let wall = began.elapsed().as_secs_f64();
    let (cpu, written) = (process::cpu_seconds(child.id())?, process::written_bytes(child.id())?);
    let peak_mib = reap(pid)?;
    if !matches!(status, WaitStatus::Exited(_, 0)) {
        bail!("the programs failed: {status:?}");
    }
    Ok(Cost { wall, cpu, peak_mib, peak_anonymous_mib: None, written_mib: written / 1024.0 / 1024.0 })
}

/// Reaps a child that has ended; the largest resident memory that it or one of its descendants had, in MiB.
fn reap(pid: Pid) -> anyhow::Result<f64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: wait4 writes one rusage, for which there is room, and no status, for which it is given no place.
    let reaped = unsafe { libc::wait4(pid.as_raw(), std::ptr::null_mut(), 0, usage.as_mut_ptr()) };
    ensure!(reaped == pid.as_raw(), "the programs cannot be waited for: {}", std::io::Error::last_os_error());
    // SAFETY: all of it was zeroed, which every one of its numbers may be, and written where wait4 had more to say.
    let usage = unsafe { usage.assume_init() };
    Ok(usage.ru_maxrss as f64 / 1024.0)
}
