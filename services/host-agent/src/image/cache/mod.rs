//! The **cache** of this host: blobs by digest, shared by all images and pulls, kept until room is needed.
//!
//! `blobs/sha256/<hex>` is a whole blob and `<hex>.<size>.part` one whose download was cut off, by whatever: the next pull that wants it goes on
//! there. Two pulls of one blob share one download. Lock order: what is known of all blobs, then one blob's state.

mod blob;
mod check;
mod download;
mod evict;
mod files;
mod reader;

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use contract::ApiError;
use futures::{StreamExt, stream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

pub(super) use blob::{Blob, Broken, Content};
pub(super) use check::{Check, as_io, told};
pub use evict::CacheUsage;

use super::{high_water::HighWater, manifest::Descriptor, registry::Registry};
use download::Download;

/// How many layers one pull downloads at once: more gain nothing where one connection fills the line, and take turns from other pulls.
const PULL_PARALLEL: usize = 4;
/// How many blobs this host downloads at once: each has up to 2 MiB of buffers.
const HOST_PARALLEL: usize = 8;

/// The blobs on this host.
pub(super) struct Cache {
    dir: PathBuf,
    /// How many bytes may stay.
    limit: u64,
    high_water: HighWater,
    slots: Semaphore,
    /// Held for map operations only, never across I/O.
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Blobs in use. The size is the manifest's, which may lie: each has a download of its own.
    blobs: HashMap<(String, u64), Weak<Blob>>,
    /// Who touches a blob's files: one download at a time, also while an unwanted one ends.
    turns: HashMap<String, Weak<tokio::sync::Mutex<()>>>,
    /// Whole blobs whose bytes this process has seen and checked.
    proven: HashSet<String>,
}

impl Known {
    fn turn(&mut self, digest: &str) -> Arc<tokio::sync::Mutex<()>> {
        let turn = self.turns.get(digest).and_then(Weak::upgrade).unwrap_or_default();
        self.turns.insert(digest.to_owned(), Arc::downgrade(&turn));
        turn
    }
}

impl Cache {
    /// Opens the cache below a state directory.
    ///
    /// # Errors
    /// Its directory cannot be made.
    pub(super) fn open(state_dir: &Path, limit: u64, high_water: HighWater) -> io::Result<Arc<Self>> {
        let dir = state_dir.join("blobs/sha256");
        fs::create_dir_all(&dir)?;
        fs::set_permissions(state_dir.join("blobs"), fs::Permissions::from_mode(0o700))?;
        let slots = Semaphore::new(HOST_PARALLEL);
        Ok(Arc::new(Self { dir, limit, high_water, slots, known: Mutex::default() }))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to download blobs, or joins those that come already; the first ones first, some at a time. With each, whether it was joined:
    /// then it comes from where somebody else pulls.
    pub(super) fn pull(self: &Arc<Self>, origin: &Arc<Registry>, blobs: &[Descriptor]) -> Vec<(Arc<Blob>, bool)> {
        let mut wanted = Vec::with_capacity(blobs.len());
        let mut downloads = Vec::new();
        for descriptor in blobs {
            let (blob, download) = self.hold(origin, descriptor);
            wanted.push((blob, download.is_none()));
            downloads.extend(download);
        }
        let downloads = stream::iter(downloads).for_each_concurrent(PULL_PARALLEL, Download::run);
        tokio::spawn(downloads.in_current_span());
        wanted
    }

    /// A hold on a blob, and its download where nobody has begun one.
    fn hold(self: &Arc<Self>, origin: &Arc<Registry>, descriptor: &Descriptor) -> (Arc<Blob>, Option<Download>) {
        let key = (descriptor.digest.clone(), descriptor.size);
        let mut known = self.known();
        known.blobs.retain(|_, blob| blob.strong_count() > 0);
        known.turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(blob) = known.blobs.get(&key).and_then(Weak::upgrade).filter(|blob| blob.content.broken().is_none())
        {
            return (blob, None);
        }
        let turn = known.turn(&key.0);
        let content = Arc::new(Content::new(&descriptor.digest, descriptor.size));
        let unwanted = CancellationToken::new();
        let blob = Arc::new(Blob { content: content.clone(), cache: self.clone(), unwanted: unwanted.clone() });
        known.blobs.insert(key, Arc::downgrade(&blob));
        let (cache, origin, wanted) = (self.clone(), origin.clone(), descriptor.clone());
        (blob, Some(Download { cache, origin, blob: wanted, content, unwanted, turn }))
    }

    fn is_proven(&self, digest: &str) -> bool {
        self.known().proven.contains(digest)
    }

    fn proven(&self, digest: &str) {
        self.known().proven.insert(digest.to_owned());
    }

    /// A blob that was here turned out not to be what its name says.
    fn damaged(&self, content: &Content, error: &ApiError) {
        tracing::warn!(blob.digest = content.digest(), %error, "a cached blob is damaged and goes");
        self.known().proven.remove(content.digest());
        if let Err(error) = crate::files::remove_file(&files::whole(&self.dir, content.digest())) {
            tracing::warn!(blob.digest = content.digest(), %error, "a damaged blob cannot be removed");
        }
        content.spoil(Broken { error: error.clone(), anew: true });
    }

    /// How many bytes may stay.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// The mark of the disk it is on.
    pub(super) fn high_water(&self) -> &HighWater {
        &self.high_water
    }

    /// How many bytes of these blobs are here already.
    pub(super) fn has(&self, blobs: &[Descriptor]) -> u64 {
        let length = |blob: &Descriptor| {
            let (whole, part) =
                (files::whole(&self.dir, &blob.digest), files::part(&self.dir, &blob.digest, blob.size));
            fs::metadata(whole).or_else(|_| fs::metadata(part)).map_or(0, |metadata| metadata.len()).min(blob.size)
        };
        blobs.iter().map(length).sum()
    }

    /// Removes what is over the limit, least recently used first, and never what is in use; on a disk over its mark all else. Blocking.
    ///
    /// # Errors
    /// The directory cannot be read, or a file not removed.
    pub(super) fn trim(&self) -> io::Result<CacheUsage> {
        let full = self.high_water.check().is_err();
        self.trim_to(if full { 0 } else { self.limit }, &[])
    }

    /// Removes all that is not in use, but for these blobs: a full disk has no room for what may be wanted again. Blocking.
    ///
    /// # Errors
    /// As [`Cache::trim`].
    pub(super) fn clear(&self, but: &[Descriptor]) -> io::Result<CacheUsage> {
        self.trim_to(0, but)
    }

    fn trim_to(&self, limit: u64, but: &[Descriptor]) -> io::Result<CacheUsage> {
        let (left, gone) = evict::trim(&self.dir, limit, |hash| {
            let digest = format!("sha256:{hash}");
            if but.iter().any(|blob| blob.digest == digest) { None } else { self.unused(&digest) }
        })?;
        if gone.blobs > 0 {
            tracing::info!(gone.blobs, gone.bytes, left.bytes, "the cache of blobs was trimmed");
        }
        Ok(left)
    }

    /// The turn at the files of a blob that nobody uses: whoever wants it from now on waits until they are gone.
    fn unused(&self, digest: &str) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        let mut known = self.known();
        if known.blobs.iter().any(|((held, _), blob)| held == digest && blob.strong_count() > 0) {
            return None;
        }
        known.turn(digest).try_lock_owned().ok()
    }

    /// What the cache holds. Blocking.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub(super) fn usage(&self) -> io::Result<CacheUsage> {
        let mut usage = CacheUsage::default();
        for entry in fs::read_dir(&self.dir)? {
            let Ok(metadata) = entry?.metadata() else { continue };
            (usage.blobs, usage.bytes) = (usage.blobs + 1, usage.bytes + metadata.len());
        }
        Ok(usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pull_begins_to_use_while_the_cache_is_trimmed_stays() {
        let state = tempfile::tempdir().unwrap();
        let cache = Cache::open(state.path(), 0, HighWater::new(state.path(), 100)).unwrap();
        let file = |name: &str| cache.dir.join(name);
        for name in ["aa.5.part", "bb", "cc.7.part"] {
            fs::write(file(name), name).unwrap();
        }
        // The first one's removal takes its time; meanwhile a pull opens another one.
        let opened = std::cell::RefCell::new(None);
        let (left, gone) = evict::trim(&cache.dir, 0, |hash| {
            let turn = cache.unused(&format!("sha256:{hash}"))?;
            let (other, name) = if hash == "cc" { ("aa", "aa.5.part") } else { ("cc", "cc.7.part") };
            opened.borrow_mut().get_or_insert_with(|| {
                (name.to_owned(), cache.known().turn(&format!("sha256:{other}")).try_lock_owned().unwrap())
            });
            Some(turn)
        })
        .unwrap();
        let (name, turn) = opened.into_inner().unwrap();
        assert_eq!((left.blobs, gone.blobs, file(&name).exists()), (1, 2, true));
        drop(turn);
        assert_eq!(cache.trim().unwrap(), CacheUsage::default());
        assert!(!file(&name).exists());
    }
}
