//! A VM's **state** and the only ways it changes.
//!
//! ```text
//!             reserve                     Start                    Ready
//!                │        ┌───────────────────────────► starting ────────┐
//!                ▼        │                                │ StartUndone │
//!            creating ────┼──────────── Ready ─────────────┼────────┐    │
//!                │        │                                ▼        ▼    ▼
//!                │     stopped ◄─── seen off ──────── failed ◄──── running ◄──┐
//!                │      ▲   ▲                seen dead, gone         │        │ StopUndone
//!                │      │   └───────────── Stopped ──── stopping ◄───┘ Stop   │ (to where it was)
//!                │      └── StartUndone                    └──────────────────┘
//!                └──────────────┐
//!      any settled state ───────┴── Delete ──► deleting ── Removed ──► (no row)
//!                                                 └── DeleteUndone ──► where it was
//! ```
//!
//! A running VM may be paused and resumed; a paused one counts as running for everything else, but cannot be started.
//!
//! *Settled* are `running`, `paused`, `stopped` and `failed`: nobody works on the VM, so what its host sees counts. In the other
//! states an operation works on it (or its undo is owed), and only that operation's events change it. A creating VM may be
//! deleted only because the delete could begin: then its create has ended, and its undo is owed.

use contract::{agent::HostVmState, vm::VmState};

/// What happens to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A start begins.
    Start,
    /// Its guest is ready: the end of a create or start.
    Ready,
    /// A start was given up; its VMM is gone.
    StartUndone {
        /// Whether somebody cancelled it, rather than that it failed.
        cancelled: bool,
    },
    /// A stop begins.
    Stop,
    /// Its VMM is gone: the end of a stop.
    Stopped,
    /// A stop was given up.
    StopUndone {
        /// Where the VM stood when the stop began.
        was: VmState,
    },
    /// Its guest stands still.
    Paused,
    /// Its guest goes on.
    Resumed,
    /// A delete begins.
    Delete,
    /// A delete was given up.
    DeleteUndone {
        /// Where the VM stood when the delete began.
        was: VmState,
    },
    /// Its host tells what is true there.
    Seen(HostVmState),
}

/// What an event does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// The state becomes this one.
    To(VmState),
    /// It is as the event wants it already.
    Stays,
}

/// The event is not possible in that state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a VM that is {} {}", .state.as_str(), .why)]
pub struct Denied {
    /// Where the VM stands.
    pub state: VmState,
    /// Why not.
    pub why: &'static str,
}

/// Applies an event to a state.
///
/// # Errors
/// The event is not possible in that state.
pub fn apply(state: VmState, event: Event) -> Result<Transition, Denied> {
    use Transition::{Stays, To};
    use VmState::{Creating, Deleting, Failed, Paused, Running, Starting, Stopped, Stopping};
    let deny = |why| Err(Denied { state, why });
    match (event, state) {
        (Event::Start, Stopped | Failed | Stopping) => Ok(To(Starting)),
        (Event::Start, Starting | Running) => Ok(Stays),
        (Event::Start, Creating) => deny("has not been created completely: delete it"),
        (Event::Start, Deleting) => deny("cannot be started"),
        (Event::Start, Paused) => deny("cannot be started: resume it"),

        (Event::Ready, Creating | Starting) => Ok(To(Running)),
        (Event::Ready, Running) => Ok(Stays),
        (Event::Ready, Paused | Stopping | Stopped | Failed | Deleting) => deny("is not being started"),

        (Event::StartUndone { cancelled: true }, Starting) => Ok(To(Stopped)),
        (Event::StartUndone { cancelled: false }, Starting) => Ok(To(Failed)),
        (Event::StartUndone { .. }, Creating | Running | Paused | Stopping | Stopped | Failed | Deleting) => Ok(Stays),

        (Event::Stop, Running | Paused | Failed | Starting) => Ok(To(Stopping)),
        (Event::Stop, Stopping | Stopped) => Ok(Stays),
        (Event::Stop, Creating) => deny("has not been created completely: delete it"),
        (Event::Stop, Deleting) => deny("cannot be stopped"),

        (Event::Stopped, Stopping) => Ok(To(Stopped)),
        (Event::Stopped, Stopped) => Ok(Stays),
        (Event::Stopped, Creating | Starting | Running | Paused | Failed | Deleting) => deny("is not being stopped"),

        (Event::StopUndone { was }, Stopping) => Ok(To(settled(was))),
        (Event::StopUndone { .. }, Creating | Starting | Running | Paused | Stopped | Failed | Deleting) => Ok(Stays),

        (Event::Paused, Running) => Ok(To(Paused)),
        (Event::Paused, Paused) => Ok(Stays),
        (Event::Paused, Creating | Starting | Stopping | Stopped | Failed | Deleting) => deny("does not run"),

        (Event::Resumed, Paused) => Ok(To(Running)),
        (Event::Resumed, Running) => Ok(Stays),
        (Event::Resumed, Creating | Starting | Stopping | Stopped | Failed | Deleting) => deny("is not paused"),

        (Event::Delete, Creating | Starting | Running | Paused | Stopping | Stopped | Failed) => Ok(To(Deleting)),
        (Event::Delete, Deleting) => Ok(Stays),

        (Event::DeleteUndone { was }, Deleting) => Ok(To(settled(was))),
        (Event::DeleteUndone { .. }, Creating | Starting | Running | Paused | Stopping | Stopped | Failed) => Ok(Stays),

        (Event::Seen(seen), Running) => Ok(match seen {
            HostVmState::Off => To(Stopped),
            HostVmState::Failed | HostVmState::Absent => To(Failed),
            HostVmState::Paused => To(Paused),
            HostVmState::Booting | HostVmState::Ready => Stays,
        }),
        (Event::Seen(seen), Paused) => Ok(match seen {
            HostVmState::Off => To(Stopped),
            HostVmState::Failed | HostVmState::Absent => To(Failed),
            HostVmState::Ready => To(Running),
            HostVmState::Booting | HostVmState::Paused => Stays,
        }),
        (Event::Seen(seen), Stopped) => Ok(match seen {
            HostVmState::Absent => To(Failed),
            HostVmState::Ready => To(Running),
            HostVmState::Paused => To(Paused),
            HostVmState::Off | HostVmState::Failed | HostVmState::Booting => Stays,
        }),
        (Event::Seen(seen), Failed) => Ok(match seen {
            HostVmState::Ready => To(Running),
            HostVmState::Paused => To(Paused),
            HostVmState::Absent | HostVmState::Off | HostVmState::Failed | HostVmState::Booting => Stays,
        }),
        (Event::Seen(_), Creating | Starting | Stopping | Deleting) => {
            deny("is worked on: what its host sees does not count")
        }
    }
}

/// Where a VM goes back to: where it was, or `failed` when that was itself a state under way.
fn settled(was: VmState) -> VmState {
    match was {
        VmState::Running | VmState::Paused | VmState::Stopped | VmState::Failed => was,
        VmState::Creating | VmState::Starting | VmState::Stopping | VmState::Deleting => VmState::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEEN: [HostVmState; 6] = [
        HostVmState::Absent,
        HostVmState::Off,
        HostVmState::Booting,
        HostVmState::Ready,
        HostVmState::Paused,
        HostVmState::Failed,
    ];

    /// One row an event; one column a state, in the order of `VmState::ALL`:
    /// creating starting running paused stopping stopped failed deleting. `=` stays, `-` denied, else the new state's letter.
    #[test]
    fn the_whole_table() {
        let letter = |state: VmState| match state {
            VmState::Creating => 'c',
            VmState::Starting => 'g',
            VmState::Running => 'r',
            VmState::Paused => 'p',
            VmState::Stopping => 'x',
            VmState::Stopped => 's',
            VmState::Failed => 'f',
            VmState::Deleting => 'd',
        };
        let table = [
            (Event::Start, "-==-ggg-"),
            (Event::Ready, "rr=-----"),
            (Event::StartUndone { cancelled: true }, "=s======"),
            (Event::StartUndone { cancelled: false }, "=f======"),
            (Event::Stop, "-xxx==x-"),
            (Event::Stopped, "----s=--"),
            (Event::StopUndone { was: VmState::Running }, "====r==="),
            (Event::StopUndone { was: VmState::Paused }, "====p==="),
            (Event::StopUndone { was: VmState::Failed }, "====f==="),
            (Event::Paused, "--p=----"),
            (Event::Resumed, "--=r----"),
            (Event::Delete, "ddddddd="),
            (Event::DeleteUndone { was: VmState::Stopped }, "=======s"),
            (Event::DeleteUndone { was: VmState::Creating }, "=======f"),
            (Event::Seen(HostVmState::Absent), "--ff-f=-"),
            (Event::Seen(HostVmState::Off), "--ss-==-"),
            (Event::Seen(HostVmState::Booting), "--==-==-"),
            (Event::Seen(HostVmState::Ready), "--=r-rr-"),
            (Event::Seen(HostVmState::Paused), "--p=-pp-"),
            (Event::Seen(HostVmState::Failed), "--ff-==-"),
        ];
        for (event, row) in table {
            for (state, want) in VmState::ALL.into_iter().zip(row.chars()) {
                let got = match apply(state, event) {
                    Ok(Transition::To(to)) => letter(to),
                    Ok(Transition::Stays) => '=',
                    Err(_) => '-',
                };
                assert_eq!(got, want, "{state:?} on {event:?}");
            }
        }
    }

    fn any_state() -> impl Strategy<Value = VmState> {
        (0..VmState::ALL.len()).prop_map(|n| VmState::ALL[n])
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Start),
            Just(Event::Ready),
            any::<bool>().prop_map(|cancelled| Event::StartUndone { cancelled }),
            Just(Event::Stop),
            Just(Event::Stopped),
            any_state().prop_map(|was| Event::StopUndone { was }),
            Just(Event::Paused),
            Just(Event::Resumed),
            Just(Event::Delete),
            any_state().prop_map(|was| Event::DeleteUndone { was }),
            (0..SEEN.len()).prop_map(|n| Event::Seen(SEEN[n])),
        ]
    }

    proptest! {
        /// A repeated step must find its first effect acceptable: applying an event twice is applying it once.
        #[test]
        fn a_repeated_event_changes_nothing_more(state in any_state(), event in any_event()) {
            if let Ok(Transition::To(next)) = apply(state, event) {
                prop_assert_ne!(next, state);
                // What an operation's end leads to, its repeat may be denied or find done, but never moves on.
                prop_assert!(!matches!(apply(next, event), Ok(Transition::To(_))) , "{:?} {:?}", state, event);
            }
        }

        /// However a VM got where it is, a delete is possible, and a failed operation leaves it settled.
        #[test]
        fn no_vm_is_ever_stuck(events in prop::collection::vec(any_event(), 0..30)) {
            let mut state = VmState::Creating;
            for event in events {
                if let Ok(Transition::To(next)) = apply(state, event) {
                    prop_assert_ne!(next, VmState::Creating, "nothing becomes uncreated");
                    state = next;
                }
            }
            prop_assert!(apply(state, Event::Delete).is_ok());
            for undo in [Event::StartUndone { cancelled: false }, Event::StopUndone { was: VmState::Running },
                         Event::DeleteUndone { was: VmState::Running }] {
                if let Ok(Transition::To(next)) = apply(state, undo) {
                    state = next;
                }
            }
            prop_assert!(matches!(state, VmState::Creating | VmState::Running | VmState::Paused | VmState::Stopped | VmState::Failed));
        }
    }
}
