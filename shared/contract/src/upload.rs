//! **Uploads** that go on where they broke off. A file of a client comes over the byte stream that was announced; where that breaks, the host keeps
//! what came and its sender asks for the [`Place`] to go on from, on [`crate::subject::upload_place`]. Nobody answers there while nothing is awaited.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::SessionId;

/// Where an upload goes on. Whoever asked last has it: the stream before ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Place {
    /// The stream to go on with, as its opener; the host listens already.
    pub session: SessionId,
    /// What comes is the file from this offset on, in bytes; what is before is there.
    pub at: u64,
    /// The digest of what is there (`archive::prefix`), in hexadecimal.
    pub digest: String,
}
