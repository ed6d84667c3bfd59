//! **Builds**: an image made of another by scripts, each run as root in a throw-away VM.
//!
//! What a step gave is remembered by what it was made of (the image it began with, its script, environment and files): the
//! same step again is not run again.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    feature::NetworkMode,
    id::OperationId,
    name::ImageName,
    operation::{OperationState, default_wait_ms},
    size::MebiBytes,
    vm,
};

/// Where a step's script runs. It is removed with all that is in it when the script has ended, so files below it are for the
/// script and not for the image.
pub const WORK_DIR: &str = "/.warren-build/work";
/// The directory of a step's own, which holds [`WORK_DIR`].
pub const BUILD_DIR: &str = "/.warren-build";
/// The most steps of one build.
pub const STEPS_MAX: usize = 64;
/// The longest script, in bytes.
pub const SCRIPT_MAX: usize = 128 * 1024;
/// The most bytes all scripts, environments and files of one request have in it: it is one message, of 1 MiB at the most.
pub const INLINE_MAX: usize = 640 * 1024;
/// The longest title of a step, in characters.
pub const TITLE_MAX: usize = 100;
/// How long a script may run, in seconds: a day at the most.
pub const SCRIPT_SECONDS: std::ops::RangeInclusive<u64> = 1..=24 * 3600;
/// The most bytes of a build's log that are kept: the first half, and the last.
pub const LOG_MAX: u64 = 16 * 1024 * 1024;
/// The most bytes of a log that one reply holds. Control characters grow sixfold as JSON.
pub const LOG_PAGE_MAX: u32 = 128 * 1024;
/// The longest a reader waits for more of a log, in milliseconds.
pub const LOG_WAIT_MAX_MS: u64 = 10_000;

/// Builds an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BuildRequest {
    /// The name it gets.
    pub name: ImageName,
    /// The image it begins with: its name, id or digest, or how one of these two begins.
    pub base: String,
    /// What is done to that, in order (1 to 64 steps).
    pub steps: Vec<BuildStep>,
    /// Take the name from the image that has it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replace: bool,
    /// Run each step, also where it is known what it gives.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_cache: bool,
    /// Virtual CPUs of the throw-away VMs (1 to 64).
    #[serde(default = "vm::default_cpus")]
    pub cpus: u32,
    /// Their memory (96M to 1T).
    #[serde(default = "default_memory")]
    pub memory: MebiBytes,
    /// Their disk (16M to 16T, never less than the image).
    #[serde(default = "vm::default_disk")]
    pub disk: MebiBytes,
    /// Whom their network reaches.
    #[serde(default)]
    pub network: NetworkMode,
    /// How long each script may run, in seconds (1 to 86400; 3600 when left out).
    #[serde(default = "default_script_seconds")]
    pub script_seconds: u64,
    /// Hold the reply until the build has ended.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

/// 512 MiB: package managers want more than a small VM has.
pub fn default_memory() -> MebiBytes {
    MebiBytes(512)
}

/// An hour.
pub fn default_script_seconds() -> u64 {
    3600
}

/// One step of a build.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BuildStep {
    /// What it is called in the log, such as the script's file name; not part of what it is remembered by.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub title: String,
    /// Run as root in [`WORK_DIR`] by `/bin/sh -eu`, or by what its first line names after `#!`.
    pub script: String,
    /// More environment of the script.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Files put into the VM before the script runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<BuildFiles>,
}

/// A tar archive that is unpacked at the root of the VM's file system, with owners as it says. Entries that lead out of it end the build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BuildFiles {
    /// The archive itself, in base64.
    Inline(String),
    /// An object of a JetStream object store, which has to stay there until the build has ended.
    Object {
        /// `bucket/name`.
        object: String,
        /// SHA-256 of the archive, in hexadecimal.
        sha256: String,
    },
}

/// What a build gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Built {
    /// The image under its name.
    pub image: super::Image,
    /// How many steps were run.
    pub ran: u32,
    /// How many were not, as it was known what they give.
    pub cached: u32,
}

/// Reads what a build printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BuildLogRequest {
    /// The build's operation, or the name of an image: then the last build of that name.
    pub build: String,
    /// From this byte on.
    #[serde(default)]
    pub offset: u64,
    /// How many bytes at the most (1 to 131072), a little more where they end within a line.
    #[serde(default = "default_page")]
    pub limit: u32,
    /// How long to wait for something to be there while the build goes on, in milliseconds (up to 10000).
    #[serde(default)]
    pub wait_ms: u64,
}

fn default_page() -> u32 {
    LOG_PAGE_MAX
}

/// A piece of a build's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BuildLog {
    /// The build's operation.
    pub operation: OperationId,
    /// How many bytes from the asked offset on are not kept.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missing: u64,
    /// The text; bytes that are not UTF-8 are replaced.
    pub text: String,
    /// Where the next piece begins.
    pub next: u64,
    /// Whether that was all: the build has ended, and nothing follows.
    pub ended: bool,
    /// Where the build stands.
    pub state: OperationState,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_needs_little_and_unknown_fields_are_refused() {
        let request: BuildRequest =
            serde_json::from_str(r#"{"name":"web","base":"debian","steps":[{"script":"true"}]}"#).unwrap();
        assert_eq!((request.cpus, request.memory, request.script_seconds), (1, MebiBytes(512), 3600));
        assert_eq!(request.steps, [BuildStep { script: "true".into(), ..BuildStep::default() }]);
        for wrong in [
            r#"{"name":"web","base":"debian","steps":[],"x":1}"#,
            r#"{"name":"../web","base":"debian","steps":[]}"#,
            r#"{"name":"web","base":"debian","steps":[{"script":"","files":{"path":"/"}}]}"#,
        ] {
            assert!(serde_json::from_str::<BuildRequest>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn files_are_inline_or_an_object() {
        let inline: BuildFiles = serde_json::from_str(r#"{"inline":"YQ=="}"#).unwrap();
        assert_eq!(inline, BuildFiles::Inline("YQ==".into()));
        let object: BuildFiles = serde_json::from_str(r#"{"object":{"object":"b/n","sha256":"00"}}"#).unwrap();
        assert_eq!(object, BuildFiles::Object { object: "b/n".into(), sha256: "00".into() });
    }
}
