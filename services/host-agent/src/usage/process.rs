//! Counters of a process, by proc(5).

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

/// Processor time of a process with all its threads, in microseconds; nothing when it is gone.
pub(super) fn cpu_usec(pid: u32) -> Option<u64> {
    let ticks = ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
    Some(ticks * 1_000_000 / system(SysconfVar::CLK_TCK)?)
}

/// The memory of a process that is in RAM, in bytes; nothing when it is gone.
pub(super) fn resident_bytes(pid: u32) -> Option<u64> {
    Some(resident_pages(&fs::read_to_string(format!("/proc/{pid}/statm")).ok()?)? * system(SysconfVar::PAGE_SIZE)?)
}

fn system(what: SysconfVar) -> Option<u64> {
    sysconf(what).ok().flatten().and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0)
}

/// `utime` and `stime`, the fields 14 and 15.
fn ticks(stat: &str) -> Option<u64> {
    // The second field is the name in parentheses, which may hold anything; count from behind it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

/// `resident`, the second field.
fn resident_pages(statm: &str) -> Option<u64> {
    statm.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_proc_are_read_whatever_a_process_calls_itself() {
        let stat =
            "4242 (qemu) R 1 (x) S 1 4242 4242 0 -1 4194560 90 0 0 0 1234 66 0 0 20 0 5 0 9001 1000 200 1844 1\n";
        assert_eq!(ticks(stat), Some(1300));
        assert_eq!(ticks("4242 (qemu) S 1"), None);
        assert_eq!(resident_pages("100 25 10 1 0 50 0\n"), Some(25));
        assert_eq!(resident_pages(""), None);
    }

    #[test]
    fn this_process_has_used_something_and_one_that_is_gone_tells_nothing() {
        let spin = (0..20_000_000u64).fold(0, |sum, n| sum ^ std::hint::black_box(n));
        assert_ne!(spin, 1);
        let me = std::process::id();
        assert!(cpu_usec(me).unwrap() > 0 && resident_bytes(me).unwrap() > 100_000);
        assert_eq!((cpu_usec(u32::MAX), resident_bytes(u32::MAX)), (None, None));
    }
}
