//! Files with holes: GNU tar's maps of the pieces that are data, in a header of its own, or before the data.

use super::{Error, malformed};

/// The most pieces one file may have (4 MiB of map): one each 256 KiB of the largest file a host takes.
const PIECES_MAX: usize = 256 * 1024;

/// Data at a place in a file; what is between pieces is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub offset: u64,
    pub length: u64,
}

impl Piece {
    /// Adds a piece behind the others.
    pub(super) fn push(pieces: &mut Vec<Self>, offset: u64, length: u64) -> Result<(), Error> {
        if pieces.len() == PIECES_MAX {
            return Err(malformed(format!("a sparse file has more than {PIECES_MAX} pieces")));
        }
        let start = pieces.last().map_or(0, Self::end);
        if offset < start || offset.checked_add(length).is_none() {
            return Err(malformed("a sparse map's pieces overlap"));
        }
        pieces.push(Self { offset, length });
        Ok(())
    }

    pub(super) fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// The bytes of data of a map; refused when a piece lies beyond the file.
pub(super) fn data(pieces: &[Piece], real_size: u64) -> Result<u64, Error> {
    if pieces.last().is_some_and(|last| last.end() > real_size) {
        return Err(malformed("a sparse map leads beyond its file"));
    }
    Ok(pieces.iter().map(|piece| piece.length).sum())
}
