//! See the library.

use std::{os::fd::OwnedFd, process::ExitCode};

use guest_agent::{
    boot::{self, Booted, Init},
    pid1, power, ssh, supervisor,
};
use nix::{sys::reboot::RebootMode, unistd::ForkResult};

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(ssh::sftp::ARGUMENT) {
        return ssh::sftp::main();
    }
    if let [_, argument, path] = &std::env::args().collect::<Vec<_>>()[..]
        && argument == ssh::streamlocal::ARGUMENT
    {
        return ssh::streamlocal::main(path);
    }
    if std::process::id() != 1 {
        eprintln!("guest-agent is the init of Warren's VMs; it does nothing on a running system");
        return ExitCode::from(2);
    }
    let booted = boot::boot().unwrap_or_else(|error| fatal(&boot::chain(&error)));
    let pipe = pid1::hand_over_pipe().unwrap_or_else(|errno| fatal(&format!("cannot make a pipe: {errno}")));
    let path = match &booted.init {
        Init::Systemd(path) | Init::Other(path) if guest_agent::logging::kernel_parameter("warren.shell").is_none() => {
            path.clone()
        }
        _ => pid1::run(&booted, pipe),
    };
    fork_supervisor(&booted, pipe);
    let error = pid1::become_init(&path);
    fatal(&format!("cannot execute {}: {error}", path.display()))
}

/// Leaves a supervisor beside the init; process 1's end of the pipe closes when it executes the init.
fn fork_supervisor(booted: &Booted, (handed_over, done): (OwnedFd, OwnedFd)) {
    // SAFETY: the boot has left this process single-threaded, so the child may do anything.
    match unsafe { nix::unistd::fork() } {
        Ok(ForkResult::Child) => {
            drop(done);
            supervisor::run(booted, &handed_over)
        }
        // Close-on-exec closes it, and nothing before that.
        Ok(ForkResult::Parent { .. }) => std::mem::forget(done),
        Err(errno) => fatal(&format!("cannot start the supervisor: {errno}")),
    }
}

/// The VM cannot run: says why on the console and ends it.
fn fatal(problem: &str) -> ! {
    eprintln!("guest-agent: fatal: {problem}");
    power::end(RebootMode::RB_POWER_OFF)
}
