//! The `qemu` driver: `-M microvm` with virtio-mmio devices, under KVM or TCG.

use std::{io, os::fd::OwnedFd};

use contract::config_drive::{CONFIG_SERIAL, ROOT_SERIAL};

use super::{
    Launch, Vmm,
    jail::{self, Files},
    names::{self, ROOT_DRIVE},
    process,
};

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// Translation cache under TCG, in MiB: as fast as more, with less memory.
const TCG_CACHE_MIB: u32 = 64;

/// QEMU with KVM or without.
#[derive(Clone, Copy, Debug)]
pub struct Qemu {
    /// Whether KVM works here.
    pub kvm: bool,
    /// The host's clock rate in kHz: under TCG the guest cannot measure it reliably.
    pub tsc_khz: Option<u32>,
}

impl Qemu {
    /// QEMU on this machine.
    pub fn new(kvm: bool) -> Self {
        Self { kvm, tsc_khz: tsc_khz() }
    }

    fn kernel_arguments(self) -> String {
        let mut arguments =
            "console=ttyS0 reboot=t panic=-1 quiet loglevel=4 net.ifnames=0 random.trust_cpu=on".to_owned();
        if !self.kvm
            && let Some(khz) = self.tsc_khz
        {
            arguments.push_str(&format!(" tsc_early_khz={khz}"));
        }
        arguments
    }

    /// What is the same for every guest: machine, kernel, console.
    pub fn base(self, vmlinux: &str, initramfs: &str, cpus: u32, memory_mib: u32, more: &str) -> Vec<String> {
        let accel = if self.kvm { "kvm".to_owned() } else { format!("tcg,tb-size={TCG_CACHE_MIB}") };
        let cpu = if self.kvm { "host" } else { "max" };
        let fixed = [
            PROGRAM,
            "-M",
            "microvm,acpi=on",
            "-accel",
            &accel,
            "-cpu",
            cpu,
            "-no-reboot",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-monitor",
            "none",
        ];
        let mut command: Vec<String> = fixed.map(str::to_owned).to_vec();
        let mut add = |flag: &str, value: String| command.extend([flag.to_owned(), value]);
        add("-smp", cpus.to_string());
        add("-m", memory_mib.to_string());
        add("-kernel", vmlinux.to_owned());
        add("-initrd", initramfs.to_owned());
        add("-append", format!("{} {more}", self.kernel_arguments()).trim_end().to_owned());
        let (socket, log) = (names::own(names::CONSOLE_SOCKET), names::own(names::CONSOLE));
        add("-chardev", format!("socket,id=console,path={socket},server=on,wait=off,logfile={log},logappend=on"));
        add("-serial", "chardev:console".to_owned());
        command
    }
}

impl Vmm for Qemu {
    fn name(&self) -> &'static str {
        if self.kvm { "qemu-kvm" } else { "qemu-tcg" }
    }

    fn version(&self) -> io::Result<String> {
        let output = std::process::Command::new(PROGRAM).arg("--version").output()?;
        let first = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
        if output.status.success() { Ok(first) } else { Err(io::Error::other(format!("{PROGRAM}: {}", output.status))) }
    }

    fn reads_qcow2(&self) -> bool {
        true
    }

    fn needs_root(&self) -> bool {
        self.kvm && !jail::kvm_for_others()
    }

    fn command(&self, launch: &Launch, tap: OwnedFd) -> io::Result<(Vec<String>, Files)> {
        let (spec, mut files) = (&launch.spec, Files::default());
        let (vmlinux, initramfs) = (files.open_shared(&launch.vmlinux)?, files.open_shared(&launch.initramfs)?);
        let mut command = self.base(&vmlinux, &initramfs, spec.cpus, spec.memory.0, &spec.features.kernel_args);
        let mut add = |flag: &str, value: String| command.extend([flag.to_owned(), value]);
        add("-name", process::marker(spec.id));
        add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned());
        let (root, format) = (files.open(&launch.dir.join(&launch.disk.file), true)?, &launch.disk.format);
        let backing = match &launch.backing {
            None => String::new(),
            Some(image) => format!(",backing.driver=raw,backing.file.filename={}", files.open_shared(image)?),
        };
        add("-drive", format!("file={root},if=none,id={ROOT_DRIVE},format={format},discard=unmap{backing}"));
        add("-device", format!("virtio-blk-device,drive={ROOT_DRIVE},serial={ROOT_SERIAL}"));
        let config = files.open(&launch.dir.join(names::CONFIG_DRIVE), false)?;
        add("-drive", format!("file={config},if=none,id=config,format=raw,readonly=on"));
        add("-device", format!("virtio-blk-device,drive=config,serial={CONFIG_SERIAL}"));
        for (n, disk) in launch.data_disks.iter().enumerate() {
            let file = files.open(&disk.path, true)?;
            add("-drive", format!("file={file},if=none,id=data{n},format=raw,discard=unmap"));
            add("-device", format!("virtio-blk-device,drive=data{n},serial={}", disk.serial));
        }
        add("-netdev", format!("tap,id=net,fd={}", files.give(tap)));
        add("-device", format!("virtio-net-device,netdev=net,mac={}", spec.mac));
        add("-device", "virtio-serial-device".to_owned());
        add("-chardev", format!("socket,id=channel,path={},server=on,wait=off", names::own(names::CHANNEL)));
        add("-device", format!("virtserialport,chardev=channel,name={}", contract::guest::PORT));
        add("-device", "virtio-rng-device".to_owned());
        add("-qmp", format!("unix:{},server=on,wait=off", names::own(names::MONITOR)));
        Ok((command, files))
    }
}

/// The processor's clock as the kernel shows it (`cpu MHz` of /proc/cpuinfo), in kHz.
fn tsc_khz() -> Option<u32> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let mhz =
        text.lines().find_map(|line| line.strip_prefix("cpu MHz")?.split(':').nth(1)?.trim().parse::<f64>().ok())?;
    Some((mhz * 1000.0) as u32)
}
