//! Every wait has a name here, with the reason for its length.

use std::time::Duration;

/// A read or a quick write: one or two SQL statements. Longer means the database is ill.
pub const QUICK: Duration = Duration::from_secs(10);

/// How long `"wait": true` and `operation.wait` hold a reply when the request names no `timeout_ms`.
pub const WAIT_DEFAULT_MS: u64 = 50_000;

/// The longest `timeout_ms` accepted.
pub const WAIT_MAX_MS: u64 = 600_000;

/// What a caller of a waiting verb adds to `timeout_ms` before it gives the reply up.
pub const WAIT_SLACK: Duration = Duration::from_secs(5);

/// A caller's time for a waiting verb without `timeout_ms`.
pub const WAITING: Duration = Duration::from_millis(WAIT_DEFAULT_MS + 5_000);

/// How long a host-agent holds a long-poll (`stage`, `await_ready`, `stop`) before it answers with
/// what is true now. Short, so that the asking worker renews its lease between polls and a cancel is seen.
pub const AGENT_POLL_MS: u64 = 2_000;

/// The caller's time for one command to a host-agent: a long-poll and then some; also enough for
/// a sparse copy of a disk of some GiB.
pub const AGENT: Duration = Duration::from_secs(30);

/// How long a host-agent may take to say that it lives; also how often one that has not answered a command is asked.
pub const ALIVE: Duration = Duration::from_secs(2);

/// How long the rename of a publication may take while the row lock is held.
pub const PUBLISH: Duration = Duration::from_secs(10);

/// How long a round of the images' reconciler may take: every host, side by side, lists and removes ([`AGENT`] each).
pub const RECONCILE: Duration = Duration::from_secs(100);

/// How long an operation's lease lasts without a heartbeat. A worker that is silent this long is
/// taken for dead; shorter adopts faster, longer forgives a slow disk.
pub const LEASE: Duration = Duration::from_secs(15);

/// How often a worker renews the lease: three misses lose it.
pub const LEASE_RENEWAL: Duration = Duration::from_secs(4);

/// How often workers look for operations whose wake-up was lost.
pub const POLL: Duration = Duration::from_secs(1);

/// How long a create may take in all, the pull of a missing image not counted.
pub const CREATE: Duration = Duration::from_secs(300);

/// How long a pull may take in all.
pub const PULL: Duration = Duration::from_secs(3600);

/// How long a step of a build may take beside its script: its VM is created and stopped, its files are sent, and an image is made of
/// its disk.
pub const BUILD_STEP: Duration = PULL;

/// How long a host may be silent, or without its guest, before a script that runs there is given up.
pub const BUILD_SILENCE: Duration = TRANSFER_SILENCE;

/// The caller's time for a piece of a build's log: [`crate::image::LOG_WAIT_MAX_MS`] and then some.
pub const BUILD_LOG: Duration = Duration::from_secs(15);

/// How long a prepare or an export of a workspace may take in all: a large tree over a slow line.
pub const TRANSFER: Duration = PULL;

/// How long a host may be silent, or without its guest, before a transfer it carries is given up: longer than an agent's restart takes,
/// and than a byte stream survives without its peer.
pub const TRANSFER_SILENCE: Duration = Duration::from_secs(45);

/// How long start, stop, restart and delete may take.
pub const LIFECYCLE: Duration = Duration::from_secs(300);

/// How long a guest gets from power-on to its ready signal before the boot counts as failed.
/// Emulated and on a crowded machine a boot takes ten times what it takes under KVM.
pub const BOOT: Duration = Duration::from_secs(120);

/// How long a guest gets to power itself off before its VMM is ended.
pub const POWER_OFF: Duration = Duration::from_secs(20);

/// How long a host may take to say what its VMs use: milliseconds, but for a machine that is very busy. A host that
/// takes longer is left out of the answer, which has [`QUICK`].
pub const USAGE: Duration = Duration::from_secs(4);

/// How often a host-agent tells how long its VMs are idle: exact enough for the shortest idle limit.
pub const ACTIVITY: Duration = Duration::from_secs(5);

/// How often a host-agent reports that it lives.
pub const HEARTBEAT: Duration = Duration::from_secs(2);

/// A host silent for this long counts as down and gets no new VMs.
pub const HOST_DOWN: Duration = Duration::from_secs(10);
