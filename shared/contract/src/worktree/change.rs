//! **Changes**: what differs from the base, as an export tells it.

use serde::{Deserialize, Serialize};

use super::About;
use crate::{file_name::FileName, id::OperationId};

/// The first entry of an export's archive: all that changed since the base.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeList {
    /// The prepare that made the base, or the export that advanced it.
    pub generation: Option<OperationId>,
    /// What the base was taken from.
    pub about: About,
    /// The commit that `.git/HEAD` leads to in the VM, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
    /// The branch it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// The changes, by path. `.git` is never among them.
    pub changes: Vec<Change>,
    /// What there is to say of it, at most 64 lines: first what would be lost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Those of them that mean a loss were the VM deleted after this export: files it has no place for, commits and stashes it does
    /// not take along. The others are mere remarks. Left out by guests of an older version, which do not tell one from the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub losses: Option<Vec<String>>,
}

impl ChangeList {
    /// What would be lost were the VM deleted after this export; where its guest does not tell, all that it warns of.
    pub fn lost(&self) -> &[String] {
        self.losses.as_deref().unwrap_or(&self.warnings)
    }
}

/// What a look at a workspace found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looked {
    /// Whether its files differ from its base. Commits alone, which leave the files as they are, are no change of them.
    pub changed: bool,
}

/// One changed path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Below the workspace's directory.
    pub path: FileName,
    /// What was there in the base; none: it was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Node>,
    /// What is there now; none: it was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Node>,
}

/// What stands at a path, without its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Node {
    /// A directory.
    Directory {
        /// Permission bits, at most `0o777`.
        mode: u32,
    },
    /// A regular file.
    File {
        /// Permission bits, at most `0o777`.
        mode: u32,
        /// Its length in bytes.
        size: u64,
        /// Its content's git blob id (SHA-1 over `blob <size>\0` and the bytes), in hexadecimal.
        digest: String,
    },
    /// A symbolic link.
    Symlink {
        /// Where it leads, as it stands.
        target: FileName,
    },
}
