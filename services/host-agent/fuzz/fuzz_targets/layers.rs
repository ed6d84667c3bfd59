//! Layers of anything, applied.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().expect("a directory for the image");
    host_agent::image::fuzzing::layers(dir.path(), bytes);
});
