//! A **scan**: what of a workspace differs from its base. Whatever `stat` finds as it was has not changed; what it does not is read.
//! A directory whose own times are as they were has no names that it had not.

use std::collections::{HashMap, HashSet};

use contract::{FileName, worktree::Change};

use crate::{
    GuestError, Transfer,
    content::{describe, is_equal},
    files::{Root, Stat, join, split},
    repo::{self, Repository},
    row::{Kind, is_git},
    rules::Rules,
    state::Base,
    walk::WARNINGS_MAX,
};

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// As it was put there.
    Same,
    /// Written since, with the same content and mode.
    Equal(Stat),
    /// Another content, mode or kind.
    Changed(Stat),
    /// Not there.
    Gone,
}

/// What is found.
pub(crate) struct Scan {
    /// Row by row.
    pub seen: Vec<Seen>,
    /// What is there and in no row, and not ignored, by path.
    pub added: Vec<(Vec<u8>, Stat)>,
    /// What git ignores: the outermost paths.
    pub ignored: Vec<Vec<u8>>,
    /// The repository now.
    pub repository: Repository,
    /// What has no place in an export and somebody may want.
    pub losses: Vec<String>,
    /// What has no place in an export and is nobody's work: sockets and their like.
    pub remarks: Vec<String>,
    /// What is mounted in the workspace.
    pub mount: Option<FileName>,
    /// Repositories within it that did not come with it, by their `.git`.
    pub nested: Vec<Vec<u8>>,
    root_same: bool,
}

/// One difference.
#[derive(Clone, Debug)]
pub(crate) struct Difference {
    pub path: Vec<u8>,
    pub before: Option<Kind>,
    pub after: Option<(Kind, Stat)>,
}

impl Difference {
    pub(crate) fn change(&self) -> Change {
        Change {
            path: FileName(self.path.clone()),
            before: self.before.as_ref().map(Kind::node),
            after: self.after.as_ref().map(|(kind, _)| kind.node()),
        }
    }
}

/// Whether a path is somewhere below one of these.
fn is_below(path: &[u8], places: &HashSet<&[u8]>) -> bool {
    let mut place = split(path).0;
    while !place.is_empty() {
        if places.contains(place) {
            return true;
        }
        place = split(place).0;
    }
    false
}

/// Compares. With `all`, every directory is read, else only those that changed.
pub(crate) fn scan(base: &Base, root: &Root, all: bool, watch: &Transfer) -> Result<Scan, GuestError> {
    let stat = root.stat(b"").map_err(GuestError::files("looking at the workspace"))?.unwrap_or_default();
    let mut scan = Scan {
        seen: Vec::with_capacity(base.rows.len()),
        added: Vec::new(),
        ignored: Vec::new(),
        repository: Repository::look(root, &base.rows),
        losses: Vec::new(),
        remarks: Vec::new(),
        mount: None,
        nested: Vec::new(),
        root_same: base.head.is_root(&stat),
    };
    scan.rows(base, root, watch)?;
    scan.names(base, root, all, watch)?;
    Ok(scan)
}

impl Scan {
    /// Looks at each row.
    fn rows(&mut self, base: &Base, root: &Root, watch: &Transfer) -> Result<(), GuestError> {
        // Directories of the base that are something else now: what was in them is gone, even where a link leads to its like.
        let mut replaced: HashSet<&[u8]> = HashSet::new();
        for (row, known) in base.rows.iter().zip(&base.stats) {
            if self.seen.len().is_multiple_of(1024) && watch.is_aborted() {
                return Err(GuestError::Aborted);
            }
            if !replaced.is_empty() && is_below(&row.path, &replaced) {
                self.seen.push(Seen::Gone);
                continue;
            }
            let shown = || format!("looking at {}", FileName(row.path.clone()));
            let found = root.stat_here(&row.path).map_err(|source| GuestError::Files { what: shown(), source })?;
            let seen = match found {
                None => Seen::Gone,
                Some((stat, elsewhere)) => {
                    if elsewhere && self.mount.is_none() {
                        self.mount = Some(FileName(row.path.clone()));
                    }
                    if stat == *known {
                        Seen::Same
                    } else if is_equal(root, &row.path, &row.kind, &stat)? {
                        Seen::Equal(stat)
                    } else {
                        Seen::Changed(stat)
                    }
                }
            };
            let stays = matches!(&found, Some((stat, _)) if stat.is_dir());
            if matches!(row.kind, Kind::Directory { .. }) && !stays {
                replaced.insert(&row.path);
            }
            self.seen.push(seen);
        }
        Ok(())
    }

    /// Finds names that are in no row.
    fn names(&mut self, base: &Base, root: &Root, all: bool, watch: &Transfer) -> Result<(), GuestError> {
        let mut rules = Rules::new(root);
        let mut ignored = HashMap::new();
        if all || !self.root_same {
            self.directory(base, root, b"", &mut rules, false)?;
        }
        for (index, row) in base.rows.iter().enumerate() {
            let is_directory = matches!(row.kind, Kind::Directory { .. });
            let look = match self.seen[index] {
                Seen::Same => all && is_directory,
                Seen::Equal(stat) | Seen::Changed(stat) => stat.is_dir(),
                Seen::Gone => false,
            };
            if !look || row.is_git() || self.is_behind_link(base, root, &row.path)? {
                continue;
            }
            if watch.is_aborted() {
                return Err(GuestError::Aborted);
            }
            let hidden = is_hidden(&row.path, &mut rules, &mut ignored);
            self.directory(base, root, &row.path, &mut rules, hidden)?;
        }
        self.added.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        self.drop_shells();
        Ok(())
    }

    /// A new directory in which there is nothing but what git ignores is nothing new.
    fn drop_shells(&mut self) {
        let mut shells: HashSet<&[u8]> = HashSet::new();
        for path in &self.ignored {
            let mut place = split(path).0;
            while !place.is_empty() && shells.insert(place) {
                place = split(place).0;
            }
        }
        let mut filled: HashSet<Vec<u8>> = HashSet::new();
        let mut kept = Vec::with_capacity(self.added.len());
        for (path, stat) in std::mem::take(&mut self.added).into_iter().rev() {
            if stat.is_dir() && shells.contains(&path[..]) && !filled.contains(&path) {
                continue;
            }
            filled.insert(split(&path).0.to_vec());
            kept.push((path, stat));
        }
        kept.reverse();
        self.added = kept;
    }

    /// What `stat` says of a row that is there unchanged.
    pub(crate) fn stat(&self, base: &Base, index: usize) -> Stat {
        match self.seen[index] {
            Seen::Equal(stat) | Seen::Changed(stat) => stat,
            Seen::Same | Seen::Gone => base.stats[index],
        }
    }

    /// Whether a row is only seen because a directory it was in has become a link to another.
    fn is_behind_link(&self, base: &Base, root: &Root, path: &[u8]) -> Result<bool, GuestError> {
        let (place, _) = split(path);
        if place.is_empty() {
            return Ok(false);
        }
        let changed = base.find(place).is_some_and(|index| matches!(self.seen[index], Seen::Changed(_)));
        Ok(changed && root.directory(place).is_err())
    }

    /// Looks at the names of one directory, and of those in it that are new.
    fn directory(
        &mut self,
        base: &Base,
        root: &Root,
        place: &[u8],
        rules: &mut Rules<'_>,
        hidden: bool,
    ) -> Result<(), GuestError> {
        let mut waiting = vec![place.to_vec()];
        while let Some(place) = waiting.pop() {
            let names = match root.list(&place) {
                Ok(names) => names,
                // Gone since, or a link now.
                Err(error) if is_gone(&error) => continue,
                Err(source) => {
                    return Err(GuestError::Files { what: format!("reading {}", FileName(place)), source });
                }
            };
            for (name, directory) in names {
                let path = join(&place, &name);
                if base.find(&path).is_some() || (is_git(&name) && place.is_empty()) {
                    continue;
                }
                if is_git(&name) {
                    let shown = FileName(path.clone());
                    note(&mut self.losses, format!("{shown} was left out: it is a repository within the workspace's"));
                    self.nested.push(path);
                } else if hidden || rules.ignores(&path, directory) {
                    let found = root.stat_here(&path).map_err(GuestError::files("looking at an ignored file"))?;
                    if found.is_some_and(|(_, elsewhere)| elsewhere) {
                        self.mount.get_or_insert(FileName(path.clone()));
                    }
                    self.ignored.push(path);
                } else {
                    self.add(root, path, &mut waiting)?;
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, root: &Root, path: Vec<u8>, waiting: &mut Vec<Vec<u8>>) -> Result<(), GuestError> {
        let found = root.stat_here(&path).map_err(GuestError::files("looking at a new file"))?;
        let Some((stat, elsewhere)) = found else { return Ok(()) };
        let shown = FileName(path.clone());
        if elsewhere {
            self.mount.get_or_insert(shown.clone());
            note(&mut self.losses, format!("{shown} was left out: something else is mounted there"));
        } else if crate::entry::check_path(&shown).is_err() {
            note(&mut self.losses, format!("{shown} was left out: its path is too long"));
        } else if stat.is_dir() {
            waiting.push(path.clone());
            self.added.push((path, stat));
        } else if stat.is_file() || stat.is_symlink() {
            self.added.push((path, stat));
        } else {
            note(&mut self.remarks, format!("{shown} was left out: it is no file, directory or symbolic link"));
        }
        Ok(())
    }

    /// Whether a tree that equals the base is still there: nothing but what git ignores and the times of directories differs.
    pub(crate) fn is_untouched(&self, base: &Base, root: &Root) -> bool {
        let row = |(row, seen): (&crate::row::Row, &Seen)| match seen {
            Seen::Same => true,
            Seen::Equal(_) => row.is_git() || matches!(row.kind, Kind::Directory { .. }),
            Seen::Changed(_) | Seen::Gone => false,
        };
        self.added.is_empty()
            && self.nested.is_empty()
            && self.repository == base.head.repository
            && base.rows.iter().zip(&self.seen).all(row)
            && !repo::is_under_way(root)
    }

    /// Whether any file differs from the base; what is git's own does not count.
    pub(crate) fn differs(&self, base: &Base) -> bool {
        let changed =
            |(row, seen): (&crate::row::Row, &Seen)| !row.is_git() && matches!(seen, Seen::Changed(_) | Seen::Gone);
        !self.added.is_empty() || base.rows.iter().zip(&self.seen).any(changed)
    }

    /// All differences by path, each new content read for its digest. `most` bounds how many.
    pub(crate) fn differences(
        &self,
        base: &Base,
        root: &Root,
        most: u64,
        watch: &Transfer,
    ) -> Result<Vec<Difference>, GuestError> {
        let mut all = Vec::new();
        for (row, seen) in base.rows.iter().zip(&self.seen).filter(|(row, _)| !row.is_git()) {
            let before = Some(row.kind.clone());
            match seen {
                Seen::Same | Seen::Equal(_) => {}
                Seen::Gone => all.push(Difference { path: row.path.clone(), before, after: None }),
                Seen::Changed(stat) if self.is_behind_link(base, root, &row.path)? => {
                    debug_assert!(stat.mode != 0);
                    all.push(Difference { path: row.path.clone(), before, after: None });
                }
                Seen::Changed(stat) => {
                    let after = describe(root, &row.path, stat, watch)?;
                    if after.as_ref().map(|(kind, _)| kind) != before.as_ref() {
                        all.push(Difference { path: row.path.clone(), before, after });
                    }
                }
            }
        }
        for (path, stat) in &self.added {
            if let Some(after) = describe(root, path, stat, watch)? {
                all.push(Difference { path: path.clone(), before: None, after: Some(after) });
            }
            if all.len() as u64 > most {
                break;
            }
        }
        if all.len() as u64 > most {
            return Err(GuestError::TooMuch(format!("more than {most} entries changed")));
        }
        all.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(all)
    }
}

/// Notes one more line, as long as there is room.
fn note(lines: &mut Vec<String>, line: String) {
    if lines.len() < WARNINGS_MAX {
        lines.push(line);
    }
}

pub(crate) fn is_gone(error: &std::io::Error) -> bool {
    use nix::errno::Errno;
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP))
}

/// Whether a directory that is in the base is one that git ignores, or is in one.
fn is_hidden(path: &[u8], rules: &mut Rules<'_>, known: &mut HashMap<Vec<u8>, bool>) -> bool {
    if path.is_empty() {
        return false;
    }
    if let Some(hidden) = known.get(path) {
        return *hidden;
    }
    let hidden = is_hidden(split(path).0, rules, known) || rules.ignores(path, true);
    known.insert(path.to_vec(), hidden);
    hidden
}
