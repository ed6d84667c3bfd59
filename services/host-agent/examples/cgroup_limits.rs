//! Shows on the machine it runs on that a VM's control group limits what is in it: processes beyond `pids.max` are refused,
//! and a process that wants more memory than `memory.max` is ended. Needs root and a cgroup v2 with all controllers;
//! the tests run it in a VM, whose kernel has them whatever the machine's has.

use std::{
    error::Error,
    io::Write,
    os::unix::process::CommandExt,
    process::{Command, ExitStatus},
};

use contract::{ImageId, MebiBytes, VmId, agent::VmSpec, feature::Features, image::ImageConfig};
use host_agent::cgroup::Cgroups;

/// More than `pids.max` of the VM below.
const PROCESSES: u32 = 300;
/// More than `memory.max` of the VM below, in bytes.
const MEMORY: usize = 640 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    if std::env::args().nth(1).as_deref() == Some("fill") {
        println!("{}", vec![1u8; MEMORY].iter().map(|byte| u64::from(*byte)).sum::<u64>());
        return Ok(());
    }
    let cgroups = Cgroups::open(&"limits".parse()?).ok_or("there is no cgroup v2 here")?;
    if !cgroups.missing().is_empty() {
        return Err(format!("cgroup v2 lacks {} here", cgroups.missing().join(", ")).into());
    }
    let spec = spec()?;
    let script = format!("i=0; while [ $i -lt {PROCESSES} ]; do i=$((i+1)); sleep 100 & done");
    let crowd = within(&cgroups, &spec, Command::new("sh").args(["-c", &script]));
    let filled = within(&cgroups, &spec, Command::new(std::env::current_exe()?).arg("fill"));
    let counted = |file, key| cgroups.counter(spec.id, file, Some(key)).unwrap_or_default();
    let (refused, ended) = (counted("pids.events", "max"), counted("memory.events", "oom_kill"));
    println!("{}", cgroups.describe(spec.id));
    println!("processes refused: {refused} ({:?}), processes ended for memory: {ended} ({:?})", crowd?, filled?);
    cgroups.remove_all()?;
    if refused == 0 || ended == 0 {
        return Err("the limits do not hold".into());
    }
    println!("the limits hold");
    Ok(())
}

/// Runs a command in the VM's group, and ends all that is left in it.
fn within(cgroups: &Cgroups, spec: &VmSpec, command: &mut Command) -> Result<ExitStatus, Box<dyn Error>> {
    let mut group = std::fs::File::from(cgroups.enter(spec)?);
    // SAFETY: one write to an open descriptor, which allocates nothing.
    unsafe { command.pre_exec(move || group.write_all(b"0")) };
    let status = command.status()?;
    cgroups.kill(spec.id)?;
    if status.success() {
        return Err(format!("{command:?} was not limited").into());
    }
    Ok(status)
}

fn spec() -> Result<VmSpec, Box<dyn Error>> {
    Ok(VmSpec {
        id: VmId::new(),
        name: "limits".parse()?,
        image: ImageId::new(),
        config: ImageConfig::default(),
        cpus: 1,
        memory: MebiBytes(96),
        disk: MebiBytes(64),
        address: "10.77.0.2/24".parse()?,
        gateway: "10.77.0.1".parse()?,
        mac: "02:00:00:00:00:01".into(),
        domain: "warren".into(),
        ssh_keys: vec![],
        features: Features::default(),
        kernel: None,
    })
}
