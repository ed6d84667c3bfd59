//! A **plan**: where each row of a new tree comes from.

use std::collections::{HashMap, HashSet};

use super::Old;
use crate::{
    row::{Kind, Row},
    scan::Seen,
};

/// Where a row comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Made of nothing: directories, links, empty files.
    Make,
    /// The old tree has just this file: a hard link of that row's.
    Link(usize),
    /// The old tree has its content: a copy of that row's.
    Copy(usize),
    /// The client sends it.
    Want,
    /// It is in its place already.
    Stay,
}

/// The plan.
pub(super) struct Plan {
    pub sources: Vec<Source>,
}

impl Plan {
    pub(super) fn make(rows: &[Row], old: Option<&Old>, owner: Option<(u32, u32)>, in_place: bool) -> Self {
        let Some(old) = old else {
            let sources = rows.iter().map(|row| if is_made(row) { Source::Make } else { Source::Want });
            return Self { sources: sources.collect() };
        };
        let owned = old.base.head.owner == owner;
        let mut contents = None;
        // One link of each: two files of the new tree are never the same one.
        let mut linked = HashSet::new();
        let source = |row: &Row| {
            let same = old.base.find(&row.path);
            if in_place && owned && same.is_some_and(|index| stays(row, old, index)) {
                return Source::Stay;
            }
            if is_made(row) {
                return Source::Make;
            }
            let Kind::File { digest, .. } = &row.kind else { return Source::Make };
            let index = same.filter(|index| has(old, *index, digest)).or_else(|| {
                // Built only where something is not at its path: most prepares find all there.
                contents.get_or_insert_with(|| all(old)).get(digest).copied()
            });
            match index {
                None => Source::Want,
                Some(index) if !in_place && owned && is_alike(row, old, index) && linked.insert(index) => {
                    Source::Link(index)
                }
                Some(index) => Source::Copy(index),
            }
        };
        Self { sources: rows.iter().map(source).collect() }
    }

    /// Which contents the client has to send.
    pub(super) fn wanted(&self) -> Vec<bool> {
        self.sources.iter().map(|source| *source == Source::Want).collect()
    }
}

fn is_made(row: &Row) -> bool {
    !matches!(row.kind, Kind::File { size: 1.., .. })
}

/// Whether the old tree still has that content in that row's file.
fn has(old: &Old, index: usize, wanted: &[u8; 20]) -> bool {
    matches!(old.scan.seen[index], Seen::Same | Seen::Equal(_))
        && matches!(&old.base.rows[index].kind, Kind::File { digest, .. } if digest == wanted)
}

/// Whether that row's file is just as it shall be, down to mode and time.
fn is_alike(row: &Row, old: &Old, index: usize) -> bool {
    old.scan.seen[index] == Seen::Same
        && old.base.rows[index].kind == row.kind
        && old.base.rows[index].mtime == row.mtime
}

/// Whether what is at a row's own path is just as it shall be. Directories' times change with what is in them.
fn stays(row: &Row, old: &Old, index: usize) -> bool {
    let known = &old.base.rows[index];
    match row.kind {
        Kind::Directory { .. } => matches!(old.scan.seen[index], Seen::Same | Seen::Equal(_)) && known.kind == row.kind,
        _ => is_alike(row, old, index),
    }
}

/// Every content the old tree has.
fn all(old: &Old) -> HashMap<[u8; 20], usize> {
    let mut contents = HashMap::new();
    for (index, row) in old.base.rows.iter().enumerate() {
        if let Kind::File { digest, .. } = &row.kind
            && has(old, index, digest)
        {
            contents.insert(*digest, index);
        }
    }
    contents
}
