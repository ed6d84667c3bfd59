//! The **record** of an image's directory: what it holds, and which operations put it there.

use std::{fs, path::Path};

use contract::{OperationId, agent::StagedImage};
use serde::{Deserialize, Serialize};

use super::MANIFEST;

/// What stands in `manifest.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) operation: OperationId,
    /// Other operations that found the files at their final place and published them too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) also: Vec<OperationId>,
    pub(super) image: StagedImage,
}

impl Record {
    pub(super) fn new(operation: OperationId, image: StagedImage) -> Self {
        Self { operation, also: Vec::new(), image }
    }

    /// The operations that published it.
    pub(super) fn operations(&self) -> Vec<OperationId> {
        std::iter::once(self.operation).chain(self.also.iter().copied()).collect()
    }

    pub(super) fn is_of(&self, operation: OperationId) -> bool {
        self.operation == operation || self.also.contains(&operation)
    }
}

/// The record of a directory that is whole.
pub(super) fn read_record(dir: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(dir.join(MANIFEST)).ok()?).ok()
}
