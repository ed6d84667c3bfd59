//! **Placing**: a new tree that is whole takes the place of the old one, and what is known of the workspace follows it.

use std::{io, path::Path};

use super::{
    carry::carry,
    in_place::{named, put, remove_old},
};
use crate::{
    GuestError, Mtime, Transfer,
    files::{Root, Stat},
    loss::loss,
    repo::Repository,
    row::{Kind, Row},
    scan::{Scan, scan},
    site::{Site, names, unmake},
    state::{Base, Head, Journal, Step, Way, settled},
};

/// Times younger than this, in seconds, say nothing: what was made after they were read may have the same.
pub(crate) const YOUNG: i64 = 2;

/// A tree that is whole in its staging directory.
pub(super) struct Placing<'a> {
    pub site: &'a Site,
    pub staging: &'a [u8],
    /// When the old tree began to be compared, in Unix seconds.
    pub since: i64,
}

/// A tree that is not in its place any more.
struct Replaced {
    root: Root,
    /// What git ignores in it.
    ignored: Vec<Vec<u8>>,
}

/// What is in the old tree besides its rows.
pub(super) struct Rest {
    pub added: Vec<Vec<u8>>,
    pub ignored: Vec<Vec<u8>>,
}

impl Rest {
    fn of(scan: Scan) -> Self {
        let added = scan.added.into_iter().map(|(path, _)| path).chain(scan.nested);
        Self { added: added.collect(), ignored: scan.ignored }
    }
}

/// Finishes or removes what is under way in one workspace, if anything is.
pub(crate) fn recover_at(state: &Path) -> Result<(), GuestError> {
    let wrong = GuestError::files("finishing or removing what an earlier prepare left");
    let Some(journal) = Journal::load(state).map_err(&wrong_at(state))? else { return Ok(()) };
    let Some(site) = Site::of_journal(&journal, state).map_err(wrong)? else {
        unmake(&journal.made).map_err(GuestError::files("removing directories"))?;
        return Journal::clear(state).map_err(GuestError::files("removing the journal"));
    };
    let placing = Placing { site: &site, staging: &journal.staging.0, since: now() };
    match journal.step {
        Step::Staging => placing.back(),
        Step::Staged { inode } => {
            // The swap may have got to the disk before the journal of it.
            if placing.is_swapped(inode)? {
                placing.swap_back()?;
            }
            placing.back()
        }
        Step::Placing { way: Way { swap: Some(inode), .. }, .. } if !placing.is_swapped(inode)? => placing.back(),
        Step::Placing { next, way } => {
            let next = load_next(&site, next)?;
            match (placing.finish(next, way, None), way.swap) {
                // The old tree was put back, since there are changes in it.
                (Err(_), Some(inode)) if !placing.is_swapped(inode)? => placing.back(),
                (outcome, _) => outcome.map(drop),
            }
        }
        Step::Clearing { next, keep } => {
            let next = load_next(&site, next)?;
            placing.clear(next, keep, &mut Vec::new())
        }
    }
}

/// Forgets what is under way in a workspace, and all that is known of it; what is in its place stays.
pub(crate) fn abandon(state: &Path) -> Result<(), GuestError> {
    let wrong = || GuestError::files("removing what an earlier prepare left");
    if let Some(journal) = Journal::load(state).map_err(wrong())?
        && let Some(site) = Site::of_journal(&journal, state).map_err(wrong())?
    {
        let placing = Placing { site: &site, staging: &journal.staging.0, since: now() };
        placing.beside()?.remove(placing.staging).map_err(wrong())?;
    }
    crate::state::forget(state).map_err(wrong())
}

fn wrong_at(state: &Path) -> impl Fn(io::Error) -> GuestError {
    let what = format!("reading {}", state.display());
    move |source| GuestError::Files { what: what.clone(), source }
}

/// The base that is to be; its rows were written before the journal said so.
fn load_next(site: &Site, head: Head) -> Result<Base, GuestError> {
    let loaded = Base::load_as(&site.state, head).map_err(GuestError::files("reading the new base"))?;
    loaded.ok_or_else(|| GuestError::Damaged(site.shown.clone()))
}

impl Placing<'_> {
    /// Notes that the tree is whole, and puts it in its place.
    pub(super) fn begin(&self, next: Base, way: Way, old: Option<(Base, Scan)>) -> Result<Vec<String>, GuestError> {
        next.save_rows(&self.site.state).map_err(GuestError::files("writing the new base"))?;
        self.note(Step::Placing { next: next.head.clone(), way })?;
        self.finish(next, way, old)
    }

    pub(super) fn note(&self, step: Step) -> Result<(), GuestError> {
        let path = contract::FileName::from(self.site.path.as_os_str());
        let staging = contract::FileName(self.staging.to_vec());
        let journal = Journal { path, staging, made: names(&self.site.made), step };
        journal.save(&self.site.state).map_err(GuestError::files("writing the journal"))
    }

    /// Removes a tree that does not take its place.
    fn back(&self) -> Result<(), GuestError> {
        let wrong = || GuestError::files("removing a tree that was not finished");
        self.beside()?.remove(self.staging).map_err(wrong())?;
        self.site.unmake();
        Journal::clear(&self.site.state).map_err(wrong())?;
        match Base::load(&self.site.state).map_err(wrong())? {
            Some(base) => base.remove_other_rows(&self.site.state).map_err(wrong()),
            None => crate::state::forget(&self.site.state).map_err(wrong()),
        }
    }

    /// The directory the staging is in.
    fn beside(&self) -> Result<Root, GuestError> {
        let opened = if self.site.is_mount()? { Root::open(&self.site.path) } else { self.site.parent.directory(b"") };
        opened.map_err(GuestError::files("opening the workspace's parent"))
    }

    fn is_swapped(&self, inode: u64) -> Result<bool, GuestError> {
        let there = self.site.parent.stat(&self.site.name);
        Ok(there.map_err(GuestError::files("looking at the workspace"))?.is_some_and(|stat| stat.ino == inode))
    }

    /// Goes on from wherever it was. Where the old tree has changed since it was compared, it is put back.
    fn finish(&self, next: Base, way: Way, old: Option<(Base, Scan)>) -> Result<Vec<String>, GuestError> {
        let mut warnings = Vec::new();
        let keep = match way.swap {
            Some(inode) => self.swap(&next, inode, way, old.map(|(base, _)| base), &mut warnings)?,
            None => {
                self.in_place(&next, way, old)?;
                false
            }
        };
        self.note(Step::Clearing { next: next.head.clone(), keep })?;
        self.clear(next, keep, &mut warnings)?;
        Ok(warnings)
    }

    /// Swaps the trees; whether the old one has to be kept.
    fn swap(
        &self,
        next: &Base,
        inode: u64,
        way: Way,
        old: Option<Base>,
        warnings: &mut Vec<String>,
    ) -> Result<bool, GuestError> {
        if !self.is_swapped(inode)? {
            self.exchange("swapping the new tree in")?;
        }
        let replaced = match self.replaced(way, old) {
            Ok(replaced) => replaced,
            Err(error) => {
                self.swap_back()?;
                return Err(error);
            }
        };
        if !way.force {
            // What comes now takes the old tree apart: it is not looked at again.
            self.note(Step::Placing { next: next.head.clone(), way: Way { force: true, ..way } })?;
        }
        let Some(replaced) = replaced.filter(|_| !way.clean) else { return Ok(false) };
        let wrong = || GuestError::files("keeping what git ignores");
        let after = self.site.parent.directory(&self.site.name).map_err(wrong())?;
        let carried = carry(&replaced.root, &after, &replaced.ignored, warnings);
        for place in carried.touched {
            let mtime = match next.find(&place) {
                Some(index) => next.rows[index].mtime,
                None => root_mtime(&next.rows),
            };
            after.set_mtime(&place, mtime).map_err(wrong())?;
        }
        Ok(carried.failed)
    }

    fn exchange(&self, what: &str) -> Result<(), GuestError> {
        // On the disk before the journal says more: the state may be on another one.
        let swapped = self.site.swap(self.staging).and_then(|()| self.site.parent.sync_names());
        swapped.map_err(GuestError::files(what))
    }

    /// Gives the old tree its place back; where there was none, the new one only leaves it.
    fn swap_back(&self) -> Result<(), GuestError> {
        let wrong = || GuestError::files("putting the old tree back");
        if self.site.parent.stat(self.staging).map_err(wrong())?.is_some() {
            return self.exchange("putting the old tree back");
        }
        let (parent, name) = (&self.site.parent, &self.site.name[..]);
        let left = nix::fcntl::renameat(parent, name, parent, self.staging).map_err(io::Error::from);
        left.and_then(|()| parent.sync_names()).map_err(wrong())
    }

    /// The tree that was replaced, and what git ignores in it, if it may be lost: programs may have written to it until the swap. It
    /// has the staging's name now; there may have been none, or one nobody prepared.
    fn replaced(&self, way: Way, base: Option<Base>) -> Result<Option<Replaced>, GuestError> {
        let wrong = || GuestError::files("looking at the old tree");
        let shown = || self.site.shown.clone();
        let Some(stat) = self.site.parent.stat(self.staging).map_err(wrong())? else { return Ok(None) };
        if !stat.is_dir() {
            return Err(GuestError::Raced { path: shown(), what: "it became a file or a link".to_owned() });
        }
        let before = self.site.parent.directory(self.staging).map_err(wrong())?;
        let base = match base {
            Some(base) => Some(base),
            None => Base::load(&self.site.state).map_err(wrong())?,
        };
        let Some(base) = base else {
            if !way.force && !before.list(b"").map_err(wrong())?.is_empty() {
                return Err(GuestError::Raced { path: shown(), what: "it is not empty any more".to_owned() });
            }
            return Ok(Some(Replaced { root: before, ignored: Vec::new() }));
        };
        // An abort comes too late now.
        let watch = Transfer::default();
        let scan = scan(&base, &before, true, &watch)?;
        if let Some(mount) = &scan.mount {
            return Err(GuestError::Raced { path: shown(), what: format!("something else is mounted at {mount}") });
        }
        if !way.force
            && let Some(what) = loss(&base, &before, &scan, &watch)?
        {
            return Err(GuestError::Raced { path: shown(), what });
        }
        Ok(Some(Replaced { root: before, ignored: scan.ignored }))
    }

    /// Removes the old tree, or what is left of the staging, and remembers the new one.
    fn clear(&self, mut next: Base, keep: bool, warnings: &mut Vec<String>) -> Result<(), GuestError> {
        let left = contract::FileName(self.staging.to_vec());
        if keep {
            warnings.push(format!("the old tree is left in {left} beside the new one, with what could not be kept"));
        } else if let Err(error) = self.beside()?.remove(self.staging) {
            warnings.push(format!("the old tree is left in {left} beside the new one: {error}"));
        }
        let wrong = || GuestError::files("looking at the new tree");
        let root = if self.site.is_mount()? {
            Root::open(&self.site.path)
        } else {
            self.site.parent.directory(&self.site.name)
        };
        let root = root.map_err(wrong())?;
        let young = self.since - YOUNG;
        for (row, stat) in next.rows.iter().zip(&mut next.stats) {
            *stat = measure(row, root.stat(&row.path).map_err(wrong())?, young);
        }
        let stat = root.stat(b"").map_err(wrong())?.unwrap_or_default();
        if stat.mtime == root_mtime(&next.rows) {
            next.head.set_root(&stat);
        }
        next.head.repository = Repository::look(&root, &next.rows);
        next.save(&self.site.state).map_err(GuestError::files("writing the new base"))?;
        Journal::clear(&self.site.state).map_err(GuestError::files("removing the journal"))
    }

    /// Removes, then replaces files one by one. Whatever was done already is not done again: what was placed first could otherwise
    /// look like something to remove.
    fn in_place(&self, next: &Base, way: Way, old: Option<(Base, Scan)>) -> Result<(), GuestError> {
        let wrong = || GuestError::files("opening the workspace");
        let stage = self.beside()?.directory(self.staging).map_err(wrong())?;
        let root = if self.site.is_mount()? {
            Root::open(&self.site.path)
        } else {
            self.site.parent.directory(&self.site.name)
        };
        let root = root.map_err(wrong())?;
        let synced = || root.sync().map_err(GuestError::files("writing the workspace to the disk"));
        if !way.removed {
            let (base, rest) = match old {
                Some((base, scan)) => (base, Rest::of(scan)),
                None => {
                    let base = Base::load(&self.site.state).map_err(wrong())?;
                    let base = base.ok_or_else(|| GuestError::NoWorkspace(self.site.shown.clone()))?;
                    let rest = Rest::of(scan(&base, &root, true, &Transfer::default())?);
                    (base, rest)
                }
            };
            remove_old(&root, next, &base, &rest, way.clean)?;
            synced()?;
            self.note(Step::Placing { next: next.head.clone(), way: Way { removed: true, ..way } })?;
        }
        for (index, row) in next.rows.iter().enumerate() {
            put(&root, &stage, index, row, next.head.owner)
                .map_err(|source| GuestError::Files { what: named("placing", &row.path), source })?;
        }
        synced()
    }
}

pub(crate) fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

/// The time a workspace's own directory gets, so that a later one shows that names in it changed.
pub(super) fn root_mtime(rows: &[Row]) -> Mtime {
    rows.iter().filter(|row| !row.path.contains(&b'/')).map(|row| row.mtime).max().unwrap_or_default()
}

/// What is remembered of a row that was just placed. A directory whose files were replaced one by one has another time than its row;
/// it counts when it is old enough.
fn measure(row: &Row, stat: Option<Stat>, young: i64) -> Stat {
    match (&row.kind, stat) {
        (Kind::Directory { mode }, Some(stat)) if stat.is_dir() && stat.bits() == *mode => {
            if stat.mtime == row.mtime || stat.mtime.secs < young { stat } else { Stat::default() }
        }
        _ => settled(row, stat),
    }
}
