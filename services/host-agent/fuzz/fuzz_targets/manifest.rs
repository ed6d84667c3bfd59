//! Manifests, indexes and configurations of anything, read.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    host_agent::image::fuzzing::manifest(bytes);
});
