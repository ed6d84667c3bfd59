//! A tool is **alone**: the first process of a namespace of processes (pid_namespaces(7)), which sees and reaches no other, and with which all
//! that it left behind ends, whatever group or session that went to.

use std::io;

use nix::{
    errno::Errno,
    libc,
    sched::{CloneFlags, unshare},
    sys::{
        signal::{SigHandler, Signal, kill, signal},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork, getpid},
};

use super::end_with;

/// Goes on as the first process of a new namespace. The process that was forked for the tool stays outside, ends with its parent, and ends as
/// the tool does. To be called between fork and exec, as root.
pub(super) fn become_first(parent: Pid) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWPID)?;
    end_with(parent)?;
    // SAFETY: this process has one thread; both of what it becomes make system calls only.
    match unsafe { fork() }? {
        ForkResult::Child => Ok(()),
        ForkResult::Parent { child } => outside(child),
    }
}

fn outside(tool: Pid) -> ! {
    // SAFETY: it takes numbers. Nothing here uses a descriptor any more, and whoever reads the tool's output waits for its last writer.
    unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) };
    let code = loop {
        match waitpid(tool, None) {
            Ok(WaitStatus::Exited(_, code)) => break code,
            Ok(WaitStatus::Signaled(_, by, _)) => break die(by),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => break libc::EXIT_FAILURE,
        }
    };
    // SAFETY: nothing of this process is left to be put away.
    unsafe { libc::_exit(code) }
}

/// Ends by the same signal; should that not be possible, with the exit code that shells have for it.
fn die(by: Signal) -> i32 {
    // SAFETY: the default has no handler that could run. Of SIGKILL it cannot be changed, nor need be.
    let default = unsafe { signal(by, SigHandler::SigDfl) };
    match (default, kill(getpid(), by)) {
        // Still here, whatever was said.
        (Ok(_) | Err(_), Ok(()) | Err(_)) => 128 + by as i32,
    }
}
