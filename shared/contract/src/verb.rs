//! A verb is one request subject with the types of its request and reply and the time its caller
//! gives it. `bus` calls and serves verbs; nothing else names a subject.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

use crate::id::HostId;

/// What every request and reply is.
pub trait Payload: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {}
impl<T: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static> Payload for T {}

/// A request any client may send, served by one of the services.
pub trait Verb: Send + Sync + 'static {
    /// The subject, e.g. `warren.vm.create`.
    const SUBJECT: &'static str;
    /// One line of documentation, shown by `nats micro info`.
    const SUMMARY: &'static str;
    /// Whether a request key makes it idempotent.
    const MUTATES: bool;
    /// How long a caller waits for the reply when it says nothing else.
    const TIMEOUT: Duration;
    /// The request's type; unknown fields are refused.
    type Request: Payload;
    /// The reply's type.
    type Reply: Payload;
}

/// A command to one host-agent, which only services may send.
pub trait AgentVerb: Send + Sync + 'static {
    /// `<area>.<verb>`, e.g. `vm.boot`.
    const NAME: &'static str;
    /// One line of documentation, shown by `nats micro info`.
    const SUMMARY: &'static str;
    /// How long the caller waits for the reply.
    const TIMEOUT: Duration;
    /// The request's type; unknown fields are refused.
    type Request: Payload;
    /// The reply's type.
    type Reply: Payload;

    /// The subject of this command to that host.
    fn subject(host: &HostId) -> String {
        format!("warren.agent.{host}.{}", Self::NAME)
    }
}

/// Defines verbs: `verb! { /// doc  Create = "warren.vm.create", mutates, 10s: CreateRequest => Operation }`.
macro_rules! verbs {
    ($($(#[doc = $doc:literal])+ $name:ident = $subject:literal, $mutates:literal, $timeout:expr, $request:ty => $reply:ty;)*) => {
        $(
            $(#[doc = $doc])+
            #[derive(Clone, Copy, Debug)]
            pub struct $name;
            impl $crate::verb::Verb for $name {
                const SUBJECT: &'static str = $subject;
                const SUMMARY: &'static str = concat!($($doc),+);
                const MUTATES: bool = $mutates;
                const TIMEOUT: std::time::Duration = $timeout;
                type Request = $request;
                type Reply = $reply;
            }
        )*
    };
}

/// Defines commands to a host-agent.
macro_rules! agent_verbs {
    ($($(#[doc = $doc:literal])+ $name:ident = $subject:literal, $timeout:expr, $request:ty => $reply:ty;)*) => {
        $(
            $(#[doc = $doc])+
            #[derive(Clone, Copy, Debug)]
            pub struct $name;
            impl $crate::verb::AgentVerb for $name {
                const NAME: &'static str = $subject;
                const SUMMARY: &'static str = concat!($($doc),+);
                const TIMEOUT: std::time::Duration = $timeout;
                type Request = $request;
                type Reply = $reply;
            }
        )*
    };
}

pub(crate) use {agent_verbs, verbs};
