//! VMMs: what runs a guest. A driver makes the command line; [`process`] starts, recognises and ends the process.

pub mod jail;
pub mod probe;
pub mod process;
pub mod qemu;
pub mod qmp;

use std::{io, os::fd::OwnedFd, path::PathBuf};

use contract::agent::VmSpec;

use crate::handles::DiskHandle;
use jail::Files;

/// What a driver needs to know to run one VM.
#[derive(Clone, Debug)]
pub struct Launch {
    /// What the VM is to be.
    pub spec: VmSpec,
    /// Its directory, the VMM's working directory.
    pub dir: PathBuf,
    /// Its disk, in that directory.
    pub disk: DiskHandle,
    /// The image its disk is an overlay of; nothing for a disk that stands alone.
    pub backing: Option<PathBuf>,
    /// The guest's kernel, an ELF vmlinux.
    pub vmlinux: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// More disks, all of them raw.
    pub data_disks: Vec<DiskFile>,
}

/// A data disk.
#[derive(Clone, Debug)]
pub struct DiskFile {
    /// Where it is.
    pub path: PathBuf,
    /// The serial number the guest sees.
    pub serial: String,
}

/// File names in a VM's directory that drivers and the agent agree on.
pub mod names {
    /// The config drive.
    pub const CONFIG_DRIVE: &str = "config.img";
    /// The directory that is the VMM's own, and in which it works.
    pub const RUN: &str = "run";
    /// The console's log, written by the VMM itself, so that it goes on while the agent is down.
    pub const CONSOLE: &str = "run/console.log";
    /// The socket of the console, for whoever wants to type into it.
    pub const CONSOLE_SOCKET: &str = "run/console.sock";
    /// The socket of the host-guest channel.
    pub const CHANNEL: &str = "run/channel.sock";
    /// The socket of the VMM's monitor.
    pub const MONITOR: &str = "run/monitor.sock";

    /// A name as the VMM sees it, in the directory it works in.
    pub fn own(name: &'static str) -> &'static str {
        name.strip_prefix("run/").unwrap_or(name)
    }
    /// The root disk, to the VMM's monitor.
    pub const ROOT_DRIVE: &str = "root";
    /// The VMM's own output.
    pub const VMM_LOG: &str = "vmm.log";
    /// The ssh host key's private half.
    pub const SSH_HOST_KEY: &str = "ssh_host_key";
}

/// Runs VMs; chosen once a host.
pub trait Vmm: Send + Sync + 'static {
    /// Its name as the host reports it, e.g. `qemu-tcg`.
    fn name(&self) -> &'static str;

    /// Its program's version, for people. Blocking.
    ///
    /// # Errors
    /// It cannot be started.
    fn version(&self) -> io::Result<String>;

    /// Whether it reads qcow2 disks; all read raw ones.
    fn reads_qcow2(&self) -> bool;

    /// Whether a VMM has to be root here.
    fn needs_root(&self) -> bool;

    /// The program and arguments that run this VM on that tap, and the files it is given. One of the arguments is
    /// [`process::marker`] of the VM's id.
    ///
    /// # Errors
    /// A file is not there.
    fn command(&self, launch: &Launch, tap: OwnedFd) -> io::Result<(Vec<String>, Files)>;
}
