//! The fuzz targets' functions over their corpus, and over inputs made of it by a generator that always does the same:
//! nothing may panic, and what is taken must be a whole filesystem. `cargo fuzz run` (see `fuzz/`) looks further.

use std::{fs, path::Path, process::Command};

use host_agent::image::fuzzing;

/// Inputs made of each one of the corpus.
const CHANGED: u64 = 60;

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    files.into_iter().map(|path| (path.display().to_string(), fs::read(&path).unwrap())).collect()
}

/// A few bytes changed, taken away or said twice, where a number says.
fn change(bytes: &[u8], mut number: u64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=number % 5 {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = (number >> 33) as usize % bytes.len().max(1);
        match number >> 61 {
            0 => bytes.truncate(at),
            1 => {
                let end = (at + 512).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            2 => drop(bytes.drain(at..(at + 512).min(bytes.len()))),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << (number >> 20 & 7);
                }
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    // A header's checksum hides most changes of it.
    for block in bytes.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    bytes
}

#[test]
fn layers_of_the_corpus_and_what_becomes_of_them_never_panic() {
    let mut images = 0;
    for (name, bytes) in corpus("layers") {
        for number in 0..=CHANGED {
            let dir = tempfile::tempdir().unwrap();
            let input = if number == 0 { bytes.clone() } else { change(&bytes, number) };
            if fuzzing::layers(dir.path(), &input) {
                images += 1;
                let rootfs = dir.path().join("rootfs.ext4");
                let checked = Command::new("/sbin/e2fsck").arg("-fn").arg(&rootfs).output().unwrap();
                assert!(checked.status.success(), "{name} {number}: {}", String::from_utf8_lossy(&checked.stdout));
            }
            let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert!(left.iter().all(|name| name == "rootfs.ext4"), "{name} {number}: {left:?}");
        }
    }
    assert!(images > 20, "only {images} inputs made an image");
}

#[test]
fn manifests_of_the_corpus_and_what_becomes_of_them_never_panic() {
    for (name, bytes) in corpus("manifest") {
        assert!(fuzzing::manifest(&bytes), "{name}");
        for number in 1..=CHANGED * 20 {
            fuzzing::manifest(&change(&bytes, number));
        }
    }
}
