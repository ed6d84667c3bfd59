//! NATS done once: connect, call verbs, serve verbs, notify, and carry byte streams.
//!
//! Everything a Warren process says to another goes through a [`Bus`]. Trace context and request keys
//! travel in headers; errors come back as [`contract::ApiError`].

mod call;
mod connect;
pub mod direct;
mod events;
mod serve;
mod stream;
mod upload;

pub use call::CallOptions;
pub use connect::{Bus, BusConfig, BusError};
pub use events::Heard;
pub use serve::{RequestContext, Service};
pub use stream::{ByteStream, Listening};
pub use upload::{Desk, Ring};
