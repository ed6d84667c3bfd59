//! **Direct** streams: a TLS connection straight to the host that carries a session's bytes instead of the bus, for clients that
//! reach the host. The host offers it with the reply that opens a session; a client that cannot connect goes on over the bus.
//!
//! The client knows the host by the fingerprint of its certificate, which came over the bus, so no authority is needed. It
//! sends [`GREETING`], the session's 16 bytes and the token's 32; the host answers [`WELCOME`], the client [`GO`]: from there on the
//! session is on this connection, and before it is on the bus. Then each direction is a sequence of records, four bytes of length
//! (big endian) and so many bytes ([`RECORD_MAX`] at most); [`FIN`] for the length is the end of the direction, and [`RESET`] of both at once, with a
//! reason: two bytes of length, then so many. Each end may send [`WINDOW`] bytes, and then as many more as the other gives by [`CREDIT`] (four bytes:
//! how many more), because they were read: so both always take what comes, and whoever does not has gone.

use std::{fmt, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Begins a connection.
pub const GREETING: [u8; 8] = *b"WARREN\x00\x02";
/// The host has the session.
pub const WELCOME: u8 = 1;
/// The client stays with this connection.
pub const GO: u8 = 2;
/// The most bytes of a record.
pub const RECORD_MAX: usize = 64 * 1024;
/// Instead of a length: the end of a direction.
pub const FIN: u32 = 0;
/// Instead of a length: the end of both.
pub const RESET: u32 = u32::MAX;
/// Instead of a length: credit.
pub const CREDIT: u32 = u32::MAX - 1;
/// The bytes a direction may carry that were not read yet; the most of credit, too.
pub const WINDOW: usize = 1024 * 1024;
/// How long a token can be used.
pub const TOKEN_LIFE: Duration = Duration::from_secs(10);
/// How long a client tries before it takes the bus.
pub const CONNECT_LIMIT: Duration = Duration::from_millis(1500);

/// A way to a host beside the bus, for one session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Direct {
    /// Where the host listens, each `address:port`.
    pub addresses: Vec<String>,
    /// What the client shows; good for one connection, for this session, for seconds.
    pub token: Token,
    /// SHA-256 of the host's certificate (DER), in hexadecimal.
    pub fingerprint: String,
}

/// 32 random bytes in hexadecimal. Never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Token(pub String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// What opening a session gives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Opened {
    /// Another way than the bus, where one was asked for and the host has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct: Option<Direct>,
}
