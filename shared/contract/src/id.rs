//! Typed identifiers. A UUID of one kind cannot be passed where another is wanted, and a
//! [`HostId`] is always safe to use as one NATS subject token and one path component.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::name::{NameError, dns_label};

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// Mints a fresh id (UUIDv7, RFC 9562: ordered by the time it was made).
            #[allow(clippy::new_without_default)]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

uuid_id!(
    /// Identifies one VM for ever; names come and go.
    VmId
);
uuid_id!(
    /// Identifies one image as this lab holds it.
    ImageId
);
uuid_id!(
    /// Identifies one kernel as this lab holds it.
    KernelId
);
uuid_id!(
    /// Identifies one operation; also the idempotency key of every command it sends.
    OperationId
);
uuid_id!(
    /// Identifies one byte stream between two processes.
    SessionId
);
uuid_id!(
    /// Identifies one workspace: a directory of a VM that was prepared.
    WorkspaceId
);

impl VmId {
    /// The last eight hexadecimal digits: random, so unique enough for an interface name
    /// (IFNAMSIZ leaves 15 bytes). An older host-agent's taps are `wt` followed by this.
    pub fn tail(&self) -> String {
        let text = self.0.simple().to_string();
        text[text.len() - 8..].to_owned()
    }

    /// The name of the operations' resource that excludes two lifecycle operations on one VM.
    pub fn resource(&self) -> String {
        format!("vm:{self}")
    }

    /// The name of the operations' resource that makes prepare and export of one VM's workspaces follow each other.
    pub fn workspaces(&self) -> String {
        format!("workspace:{self}")
    }
}

/// Names one host of the lab: a DNS label, chosen by the operator and stable for ever.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct HostId(#[schemars(regex(pattern = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))] String);

impl HostId {
    /// The text of the id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        dns_label(text, "host id").map(Self)
    }
}

impl<'de> Deserialize<'de> for HostId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
