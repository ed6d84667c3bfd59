//! What of VMs' activity the next agent is to know: `<state>/activity.json`. It may be lost: then VMs count as in use until then.

use std::{collections::HashMap, io, path::Path};

use contract::VmId;
use serde::{Deserialize, Serialize};

use super::{Look, Track};
use crate::files;

const FILE: &str = "activity.json";

#[derive(Serialize, Deserialize)]
struct Saved {
    vm: VmId,
    active_at_ms: u64,
    last: Look,
}

/// What an earlier agent left; nothing where it cannot be read. Blocking.
pub(super) fn load(state_dir: &Path) -> HashMap<VmId, Track> {
    let path = state_dir.join(FILE);
    let read = || -> io::Result<Vec<Saved>> { Ok(serde_json::from_slice(&std::fs::read(&path)?)?) };
    match read() {
        Ok(all) => all.into_iter().map(|one| (one.vm, Track::resumed(one.active_at_ms, one.last))).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => HashMap::new(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "how long VMs are idle is not known any more");
            HashMap::new()
        }
    }
}

/// Saves it, whole or not at all. Blocking.
///
/// # Errors
/// The disk is full or not writable.
pub(super) fn save(state_dir: &Path, tracks: &HashMap<VmId, Track>) -> io::Result<()> {
    let all = tracks.iter();
    let all = all.map(|(vm, track)| Saved { vm: *vm, active_at_ms: track.active_at_ms(), last: track.last() });
    files::write_atomically(&state_dir.join(FILE), &serde_json::to_vec(&all.collect::<Vec<_>>())?, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::usage::Counters;

    #[test]
    fn what_was_saved_is_read_back_and_what_is_torn_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).is_empty());
        let (vm, last) =
            (VmId::new(), Look::new(9_000, &Counters { spawned_at_ms: 1, cpu_usec: 5, ..Counters::default() }));
        save(dir.path(), &HashMap::from([(vm, Track::resumed(4_000, last))])).unwrap();
        let back = load(dir.path());
        assert_eq!((back[&vm].active_at_ms(), back[&vm].last()), (4_000, last));
        std::fs::write(dir.path().join(FILE), b"[{").unwrap();
        assert!(load(dir.path()).is_empty());
    }
}
