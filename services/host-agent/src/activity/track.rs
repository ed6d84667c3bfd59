//! A **track**: what one VM's counters say of its use, look by look.
//!
//! Where it errs, it errs towards use, with one exception that is written at [`UNSEEN`].

use std::{collections::VecDeque, time::Duration};

use contract::usage::Counters;
use serde::{Deserialize, Serialize};

use super::WINDOW;

/// Processor time above which a VM is in use, in percent of one processor over [`WINDOW`]. A Debian guest that has nothing to do takes
/// 3 to 4 percent when it is emulated (measured), and less under KVM; a program at work takes a multiple of the limit.
const CPU_PERCENT: u64 = 10;
/// Bytes a second above which a guest that sends is in use: about a kilobyte a window, which the answer to one small request has. Time
/// synchronisation, ARP and keep-alives stay below 10.
const SENT_PER_SECOND: u64 = 32;
/// Bytes a second above which a guest that receives is in use. Higher than for sending, as whatever the lab's VMs broadcast
/// comes to each of them.
const RECEIVED_PER_SECOND: u64 = 1024;
/// A longer pause between two looks than this is time in which nobody looked: the agent was down, or the host asleep. It is judged as
/// a whole by the counters, and where they tell of no use it does not count as idle. So an agent that restarts makes no
/// VM look idle for longer than it was watched, and none that goes on idling lives for ever. (A short burst of work in a long pause
/// is averaged away: then the idle time from before the pause goes on.)
const UNSEEN: Duration = Duration::from_secs(15);

/// Counters of a VM at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// When, Unix time in milliseconds.
    pub at_ms: u64,
    /// Which start of its VMM they belong to.
    pub spawned_at_ms: u64,
    cpu_usec: u64,
    sent: u64,
    received: u64,
}

impl Look {
    /// The counters as they were read then.
    pub fn new(at_ms: u64, counters: &Counters) -> Self {
        let network = counters.network.unwrap_or_default();
        Self {
            at_ms,
            spawned_at_ms: counters.spawned_at_ms,
            cpu_usec: counters.cpu_usec,
            sent: network.sent_bytes,
            received: network.received_bytes,
        }
    }

    /// Whether what happened since an earlier look is more than a VM does that nobody uses.
    fn busy_since(&self, earlier: &Self) -> bool {
        let passed_ms = self.at_ms.saturating_sub(earlier.at_ms).max(1);
        let cpu = self.cpu_usec.saturating_sub(earlier.cpu_usec);
        let over = |now: u64, then: u64, limit: u64| now.saturating_sub(then) * 1000 > limit * passed_ms;
        // Percent of microseconds in milliseconds: 1 % of a processor is 10 µs a millisecond.
        cpu > CPU_PERCENT * 10 * passed_ms
            || over(self.sent, earlier.sent, SENT_PER_SECOND)
            || over(self.received, earlier.received, RECEIVED_PER_SECOND)
    }
}

/// What is known of one VM's use.
#[derive(Clone, Debug)]
pub struct Track {
    active_at_ms: u64,
    /// Never empty; the oldest is as old as the window, as far as it has been looked at for so long.
    looks: VecDeque<Look>,
}

impl Track {
    /// A VM that is looked at for the first time: in use until now.
    pub fn new(first: Look) -> Self {
        Self { active_at_ms: first.at_ms, looks: VecDeque::from([first]) }
    }

    /// As an earlier agent left it.
    pub fn resumed(active_at_ms: u64, last: Look) -> Self {
        Self { active_at_ms, looks: VecDeque::from([last]) }
    }

    /// The newest look.
    pub fn last(&self) -> Look {
        self.looks.back().copied().unwrap_or_default()
    }

    /// When it was in use last, Unix time in milliseconds.
    pub fn active_at_ms(&self) -> u64 {
        self.active_at_ms
    }

    /// It was in use at that time.
    pub fn used(&mut self, at_ms: u64) {
        self.active_at_ms = self.active_at_ms.max(at_ms);
    }

    /// Takes the next look.
    pub fn look(&mut self, look: Look) {
        let last = self.last();
        if look.spawned_at_ms != last.spawned_at_ms {
            *self = Self::new(look);
            return;
        }
        let window_ms = millis(WINDOW);
        match look.at_ms.checked_sub(last.at_ms) {
            // The clock was set back: how long it is idle stays.
            None => {
                self.active_at_ms = self.active_at_ms.saturating_sub(last.at_ms - look.at_ms);
                self.looks = VecDeque::from([look]);
                return;
            }
            Some(passed) if passed > millis(UNSEEN) => {
                if look.busy_since(&last) {
                    self.active_at_ms = look.at_ms;
                } else {
                    self.active_at_ms += passed;
                }
                self.looks = VecDeque::from([look]);
                return;
            }
            Some(_) => self.looks.push_back(look),
        }
        while self.looks.get(1).is_some_and(|second| look.at_ms - second.at_ms >= window_ms) {
            self.looks.pop_front();
        }
        if self.looks.front().is_some_and(|oldest| look.busy_since(oldest)) {
            self.active_at_ms = look.at_ms;
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_000_000_000;

    /// A VM that is looked at every 5 s.
    struct Vm {
        now: Look,
        track: Track,
    }

    impl Vm {
        fn new() -> Self {
            let now = Look { at_ms: START, spawned_at_ms: 7, cpu_usec: 5_000_000, sent: 4000, received: 9000 };
            Self { now, track: Track::new(now) }
        }

        /// So many looks, with so much processor time in percent and so many bytes sent and received a second.
        fn passes(&mut self, looks: u64, percent: u64, sent: u64, received: u64) {
            for _ in 0..looks {
                self.now.at_ms += 5_000;
                self.now.cpu_usec += percent * 50_000;
                self.now.sent += sent * 5;
                self.now.received += received * 5;
                self.track.look(self.now);
            }
        }

        fn idle_s(&self) -> u64 {
            (self.now.at_ms - self.track.active_at_ms()) / 1000
        }
    }

    #[test]
    fn a_vm_that_does_next_to_nothing_is_idle_and_one_that_works_sends_or_is_sent_much_is_not() {
        let mut vm = Vm::new();
        vm.passes(60, 3, 5, 200);
        assert_eq!(vm.idle_s(), 300);
        vm.passes(1, 40, 0, 0);
        assert_eq!(vm.idle_s(), 305, "a job of two seconds is not somebody at work");
        for (percent, sent, received) in [(50, 0, 0), (0, 500, 0), (0, 0, 20_000)] {
            vm.passes(12, percent, sent, received);
            assert_eq!(vm.idle_s(), 0, "{percent} {sent} {received}");
            vm.passes(24, 1, 0, 0);
            assert!((90..=120).contains(&vm.idle_s()), "it is idle within a window: {}", vm.idle_s());
        }
    }

    #[test]
    fn another_start_and_a_session_are_use() {
        let mut vm = Vm::new();
        vm.passes(20, 0, 0, 0);
        vm.track.used(vm.now.at_ms - 3_000);
        assert_eq!(vm.idle_s(), 3);
        vm.track.used(1);
        assert_eq!(vm.idle_s(), 3);
        vm.passes(20, 0, 0, 0);
        vm.now.spawned_at_ms += 1;
        vm.passes(1, 0, 0, 0);
        assert_eq!(vm.idle_s(), 0);
    }

    #[test]
    fn time_in_which_nobody_looked_does_not_count_unless_the_counters_tell_of_use() {
        let mut vm = Vm::new();
        vm.passes(20, 0, 0, 0);
        let mut next = Vm { now: vm.now, track: Track::resumed(vm.track.active_at_ms(), vm.track.last()) };
        next.now.at_ms += 3_600_000;
        next.passes(1, 0, 0, 0);
        assert_eq!(next.idle_s(), 100, "idle time goes on where it was");
        next.passes(3, 0, 0, 0);
        assert_eq!(next.idle_s(), 115);

        vm.now.at_ms += 600_000;
        vm.now.cpu_usec += 300_000_000;
        vm.passes(1, 0, 0, 0);
        assert_eq!(vm.idle_s(), 0, "it worked meanwhile");

        next.now.at_ms -= 500_000;
        next.passes(1, 0, 0, 0);
        assert_eq!(next.idle_s(), 115, "a clock that is set back changes nothing");
    }
}
