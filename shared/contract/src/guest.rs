//! The channel between a host-agent and the guest-agent of one VM.
//!
//! It is one bidirectional byte pipe (a virtio-serial port under QEMU) named [`PORT`]. Neither side can
//! rely on a clean start: a new host-agent finds bytes of the old one in the pipe. So each connection
//! begins with a handshake: the host sends [`MAGIC`], 16 random bytes and [`MAGIC`] reversed; the guest drops what it has
//! (including its yamux connection, when it has one) whenever it reads such a preamble at the beginning of
//! a connection, and sends the same bytes back; the host drops everything up to them. From there on the pipe carries
//! yamux, the host as client. Each yamux stream begins with one [`Request`] from the host as a
//! JSON message (four bytes of length, big endian, then so many bytes, [`MESSAGE_MAX`] at most), answered with one
//! [`Reply`] of the same form. After an `ok` the stream carries what the request says.
//!
//! A **lane** is another connection of this kind for what moves many bytes, over TCP to the VM's own address, as virtio-serial moves
//! a page at a time. It is offered over the channel and good for one connection: the host shows the token it chose, 32 bytes, and
//! yamux follows. What tells a host that it may not be used is that it cannot be made; the channel does the same then.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    direct::Token,
    error::ApiError,
    id::OperationId,
    job::{Attach, Job, JobAsk},
    workspace::{Command, LookRequest, PackFiles, TcpTarget, UnpackFiles},
    worktree::{ExportOrder, ImportOrder, RemoveOrder, TransferStatus},
};

/// The virtio-serial port's name; `/dev/virtio-ports/<name>` with udev, found through sysfs without.
pub const PORT: &str = "warren.channel.0";

/// Begins the handshake.
pub const MAGIC: [u8; 8] = *b"\x00WARREN\x01";

/// The longest request or reply message, in bytes.
pub const MESSAGE_MAX: usize = 256 * 1024;

/// The bytes of a lane's token.
pub const LANE_TOKEN: usize = 32;
/// How long a guest listens for a lane.
pub const LANE_LIFE: Duration = Duration::from_secs(10);

/// How long a guest's file systems stay frozen at the most.
pub const FREEZE_MAX: Duration = Duration::from_secs(60);

/// What the host asks of the guest at the beginning of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Answered once the guest is ready: its root filesystem, network and ssh server are up and PID 1 is handed over.
    Ready,
    /// Answered at once.
    Ping,
    /// Runs a process; the stream then carries [`crate::frame`] frames.
    Exec(Command),
    /// Joins a process that was started by `exec` or `jobs`; the stream then carries [`crate::frame`] frames.
    Attach(Attach),
    /// Lists, starts and signals jobs.
    Jobs(JobAsk),
    /// Connects to guest-agent's ssh server, without a key; the stream then carries the SSH protocol.
    Ssh,
    /// Connects to a TCP port; the stream then carries its bytes.
    Tcp(TcpTarget),
    /// Tells, in frames, whether a workspace has changes; a guest of an older version answers with an error.
    Look(LookRequest),
    /// Sends files as a tar archive in frames.
    Pack(PackFiles),
    /// Takes files as a tar archive in frames.
    Unpack(UnpackFiles),
    /// Sets the guest's clock to this Unix time in nanoseconds.
    Clock(i64),
    /// The disk of the root filesystem has so many bytes now: grows the filesystem to it.
    Grow(u64),
    /// How many are logged in to guest-agent's ssh server, over the network or the channel, or run as kept jobs; a guest of an older version
    /// answers with an error.
    Sessions,
    /// Puts a tree of files into the guest; the stream then carries the tree protocol (crate `tree`) in frames. An operation that began
    /// already is answered with `already_exists`.
    Import(ImportOrder),
    /// Takes the changes of a workspace out; the stream then carries an archive in frames, and the caller's empty `stdin` says that
    /// all of it was taken. An operation that began already is answered with `already_exists`.
    ExportTree(ExportOrder),
    /// How an import or export goes.
    Transfer(TransferQuery),
    /// Ends an import or export; one that is not there is no error.
    AbortTransfer(OperationId),
    /// Has the guest listen for a lane on its address, for [`LANE_LIFE`]; a guest of an older version answers with an error.
    Lane(Token),
    /// Forgets a workspace, and removes its files; answered when that is done.
    Forget(RemoveOrder),
    /// Freezes the file systems on the VM's disks, for so many seconds at the most ([`FREEZE_MAX`]); answered once nothing is written to
    /// them any more. They thaw when the host sends a byte or ends its side of the stream, and a second [`Reply`] says whether they were
    /// frozen until then. A guest of an older version answers with an error.
    Freeze(u32),
    /// Powers the guest off; answered before it begins.
    PowerOff,
}

/// Asks how a transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferQuery {
    /// The operation whose it is.
    pub operation: OperationId,
    /// How long to hold the answer while it goes on, in milliseconds.
    #[serde(default)]
    pub wait_ms: u64,
}

/// What the guest answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Answers [`Request::Ready`].
    Ready(GuestFacts),
    /// Answers [`Request::Sessions`].
    Sessions(u32),
    /// Answers [`Request::Jobs`].
    Jobs(Vec<Job>),
    /// Answers [`Request::Transfer`].
    Transfer(TransferStatus),
    /// Answers [`Request::Lane`]: the TCP port.
    Lane(u16),
    /// Done, or connected.
    Ok,
    /// Refused or failed.
    Error(ApiError),
}

/// What a guest says of itself when it is ready. A guest can lie; hosts only show it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GuestFacts {
    /// guest-agent's version.
    pub agent_version: String,
    /// `uname -r`.
    pub kernel: String,
    /// Who is PID 1: `systemd`, another init's path, or `guest-agent`.
    pub init: String,
    /// Where guest-agent's ssh server listens on the VM's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_port: Option<u16>,
    /// What did not work but did not stop the boot.
    #[serde(default)]
    pub warnings: Vec<String>,
}
