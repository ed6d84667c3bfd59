//! **Placing**: a new tree that is whole takes the place of the old one, and what is known of the workspace follows it.

use std::{io, path::Path};

use nix::fcntl::renameat;

use super::carry::carry;
use crate::{
    GuestError, Mtime, Transfer,
    files::{Root, Stat, split},
    repo::{self, Repository},
    row::{Kind, Row},
    scan::{Scan, scan},
    site::{Site, names, unmake},
    state::{Base, Head, Journal, Step, settled},
};

/// Times younger than this, in seconds, say nothing: what was made after they were read may have the same.
pub(crate) const YOUNG: i64 = 2;

/// A tree that is whole in its staging directory.
pub(super) struct Placing<'a> {
    pub site: &'a Site,
    pub staging: &'a [u8],
    pub watch: &'a Transfer,
    /// When the old tree began to be compared, in Unix seconds.
    pub since: i64,
}

/// What is in the old tree besides its rows.
struct Rest {
    added: Vec<Vec<u8>>,
    ignored: Vec<Vec<u8>>,
}

impl Rest {
    fn of(scan: Scan) -> Self {
        Self { added: scan.added.into_iter().map(|(path, _)| path).collect(), ignored: scan.ignored }
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
    let watch = Transfer::default();
    let placing = Placing { site: &site, staging: &journal.staging.0, watch: &watch, since: now() };
    match journal.step {
        Step::Staging => placing.back(),
        Step::Placing { swap: Some(inode), .. } if !placing.is_swapped(inode)? => placing.back(),
        Step::Placing { next, swap, clean } => {
            let next = load_next(&site, next)?;
            placing.finish(next, swap, clean, None).map(drop)
        }
        Step::Clearing { next } => {
            let next = load_next(&site, next)?;
            placing.clear(next, &mut Vec::new())
        }
    }
}

fn wrong_at(state: &Path) -> impl Fn(io::Error) -> GuestError {
    let what = format!("reading {}", state.display());
    move |source| GuestError::Files { what: what.clone(), source }
}

/// The base that is to be; its rows were written before the journal said so.
fn load_next(site: &Site, head: Head) -> Result<Base, GuestError> {
    let loaded = Base::load_as(&site.state, head).map_err(GuestError::files("reading the new base"))?;
    loaded.ok_or_else(|| {
        GuestError::files("reading the new base")(io::Error::new(io::ErrorKind::InvalidData, "it is damaged"))
    })
}

impl Placing<'_> {
    /// Notes that the tree is whole, and puts it in its place.
    pub(super) fn begin(
        &self,
        next: Base,
        swap: Option<u64>,
        clean: bool,
        old: Option<(Base, Scan)>,
    ) -> Result<Vec<String>, GuestError> {
        next.save_rows(&self.site.state).map_err(GuestError::files("writing the new base"))?;
        self.note(Step::Placing { next: next.head.clone(), swap, clean })?;
        self.finish(next, swap, clean, old)
    }

    fn note(&self, step: Step) -> Result<(), GuestError> {
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
        if Base::load(&self.site.state).map_err(wrong())?.is_none() {
            crate::state::forget(&self.site.state).map_err(wrong())?;
        }
        Ok(())
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

    /// Goes on from wherever it was.
    fn finish(
        &self,
        next: Base,
        swap: Option<u64>,
        clean: bool,
        old: Option<(Base, Scan)>,
    ) -> Result<Vec<String>, GuestError> {
        let mut warnings = Vec::new();
        match swap {
            Some(inode) => self.swap(&next, inode, clean, old, &mut warnings)?,
            None => self.in_place(&next, clean, old)?,
        }
        self.note(Step::Clearing { next: next.head.clone() })?;
        self.clear(next, &mut warnings)?;
        Ok(warnings)
    }

    fn swap(
        &self,
        next: &Base,
        inode: u64,
        clean: bool,
        old: Option<(Base, Scan)>,
        warnings: &mut Vec<String>,
    ) -> Result<(), GuestError> {
        if !self.is_swapped(inode)? {
            self.site.swap(self.staging).map_err(GuestError::files("swapping the new tree in"))?;
        }
        if clean {
            return Ok(());
        }
        let wrong = || GuestError::files("keeping what git ignores");
        // The old tree has the staging's name now; there may have been none, or one nobody prepared.
        let Some(stat) = self.site.parent.stat(self.staging).map_err(wrong())? else { return Ok(()) };
        if !stat.is_dir() {
            return Ok(());
        }
        let before = self.site.parent.directory(self.staging).map_err(wrong())?;
        let rest = match old {
            Some((_, scan)) => Rest::of(scan),
            None => match Base::load(&self.site.state).map_err(wrong())? {
                Some(base) => Rest::of(scan(&base, &before, true, self.watch)?),
                None => return Ok(()),
            },
        };
        let after = self.site.parent.directory(&self.site.name).map_err(wrong())?;
        for place in carry(&before, &after, &rest.ignored, warnings) {
            let mtime = match next.find(&place) {
                Some(index) => next.rows[index].mtime,
                None => root_mtime(&next.rows),
            };
            after.set_mtime(&place, mtime).map_err(wrong())?;
        }
        Ok(())
    }

    /// Removes the old tree, or what is left of the staging, and remembers the new one.
    fn clear(&self, mut next: Base, warnings: &mut Vec<String>) -> Result<(), GuestError> {
        if let Err(error) = self.beside()?.remove(self.staging) {
            let left = contract::FileName(self.staging.to_vec());
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
        next.head.repository = Repository::look(&root);
        next.save(&self.site.state).map_err(GuestError::files("writing the new base"))?;
        Journal::clear(&self.site.state).map_err(GuestError::files("removing the journal"))
    }

    /// Replaces files one by one. Whatever was done already is not done again.
    fn in_place(&self, next: &Base, clean: bool, old: Option<(Base, Scan)>) -> Result<(), GuestError> {
        let wrong = || GuestError::files("opening the workspace");
        let stage = self.beside()?.directory(self.staging).map_err(wrong())?;
        let root = if self.site.is_mount()? {
            Root::open(&self.site.path)
        } else {
            self.site.parent.directory(&self.site.name)
        };
        let root = root.map_err(wrong())?;
        let (base, rest) = match old {
            Some((base, scan)) => (base, Rest::of(scan)),
            None => {
                let base = Base::load(&self.site.state).map_err(wrong())?;
                let base = base.ok_or_else(|| GuestError::NoWorkspace(self.site.shown.clone()))?;
                let rest = Rest::of(scan(&base, &root, true, self.watch)?);
                (base, rest)
            }
        };
        remove_old(&root, next, &base, &rest, clean)?;
        for (index, row) in next.rows.iter().enumerate() {
            put(&root, &stage, index, row, next.head.owner)
                .map_err(|source| GuestError::Files { what: named("placing", &row.path), source })?;
        }
        Ok(())
    }
}

fn named(what: &str, path: &[u8]) -> String {
    format!("{what} {}", contract::FileName(path.to_vec()))
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

/// Removes what the new tree has not: rows of the old one, what was added to it, and with `clean` what git ignores.
fn remove_old(root: &Root, next: &Base, base: &Base, rest: &Rest, clean: bool) -> Result<(), GuestError> {
    let gone = |path: &[u8]| next.find(path).is_none();
    let failed = |path: &[u8]| {
        let what = named("removing", path);
        move |source| GuestError::Files { what, source }
    };
    for path in rest.added.iter().filter(|path| gone(path)).chain(rest.ignored.iter().filter(|_| clean)) {
        remove(root, path).map_err(failed(path))?;
    }
    for name in repo::UNDER_WAY {
        let path = crate::files::join(b".git", name);
        if gone(&path) {
            remove(root, &path).map_err(failed(&path))?;
        }
    }
    for row in base.rows.iter().rev().filter(|row| gone(&row.path)) {
        let outcome = match row.kind {
            // What git ignores may still be in it.
            Kind::Directory { .. } if !clean => remove_empty(root, &row.path),
            _ => remove(root, &row.path),
        };
        outcome.map_err(failed(&row.path))?;
    }
    Ok(())
}

/// The directory of a path, reached without links, with its name there; none when it is not there.
fn place<'a>(root: &Root, path: &'a [u8]) -> io::Result<Option<(Root, &'a [u8])>> {
    let (above, name) = split(path);
    match root.directory(above) {
        Ok(above) => Ok(Some((above, name))),
        Err(error) if crate::scan::is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn remove(root: &Root, path: &[u8]) -> io::Result<()> {
    match place(root, path)? {
        Some((above, name)) => above.remove(name),
        None => Ok(()),
    }
}

fn remove_empty(root: &Root, path: &[u8]) -> io::Result<()> {
    match place(root, path)? {
        // Something else may have taken its place since.
        Some((above, name)) if above.stat(name)?.is_some_and(|stat| !stat.is_dir()) => above.remove(name),
        Some((above, name)) => above.remove_empty(name).map(drop),
        None => Ok(()),
    }
}

/// Puts one row in its place: a directory is made or mended, what was staged is renamed.
fn put(root: &Root, stage: &Root, index: usize, row: &Row, owner: Option<(u32, u32)>) -> io::Result<()> {
    let staged = index.to_string();
    let Kind::Directory { mode } = row.kind else {
        if stage.stat(staged.as_bytes())?.is_none() {
            return Ok(());
        }
        let (above, name) = place(root, &row.path)?.ok_or(io::ErrorKind::NotFound)?;
        if above.stat(name)?.is_some_and(|stat| stat.is_dir()) {
            above.remove(name)?;
        }
        return Ok(renameat(stage, staged.as_bytes(), &above, name)?);
    };
    let (above, name) = place(root, &row.path)?.ok_or(io::ErrorKind::NotFound)?;
    match above.stat(name)? {
        Some(stat) if stat.is_dir() && stat.bits() == mode => return Ok(()),
        Some(stat) if stat.is_dir() => {}
        Some(_) => {
            above.remove(name)?;
            above.make(name, 0o700)?;
        }
        None => above.make(name, 0o700)?,
    }
    let made = std::fs::File::from(above.directory(name)?.as_owned()?);
    if let Some((user, group)) = owner {
        std::os::unix::fs::fchown(&made, Some(user), Some(group))?;
    }
    use std::os::unix::fs::PermissionsExt;
    made.set_permissions(std::fs::Permissions::from_mode(mode))
}
