//! Where blocks go: one after the other, around the copies of the superblock and its descriptors, whose places are
//! fixed before anything is known of the filesystem's size.

use super::Error;

/// Blocks of a group: as many as a bitmap of one block has bits.
pub(super) const GROUP: u64 = 32768;
/// Blocks kept for group descriptors behind each superblock: those in use and those to grow into, up to 2 TiB.
pub(super) const TABLE: u64 = 128;
/// Groups that so many blocks of descriptors (32 bytes each) describe.
pub(super) const GROUPS_MAX: u64 = TABLE * 128;

/// The error of what has more than [`GROUPS_MAX`].
pub(super) fn too_large() -> Error {
    Error::Refused("the image needs more than the 2 TiB a filesystem may have".to_owned())
}

/// Whether a group begins with a superblock (feature `sparse_super`): 0, 1, and the powers of 3, 5 and 7.
pub(super) fn has_superblock(group: u64) -> bool {
    let power = |base: u64| {
        let mut power = base;
        while power < group {
            power *= base;
        }
        power == group
    };
    group <= 1 || power(3) || power(5) || power(7)
}

/// The next free block.
#[derive(Clone, Debug)]
pub(super) struct Space {
    next: u64,
}

impl Space {
    pub(super) fn new() -> Self {
        Self { next: 1 + TABLE }
    }

    /// The end of what is taken.
    pub(super) fn end(&self) -> u64 {
        self.next
    }

    /// Takes up to so many blocks, all in a row: their first and their count, at least one.
    pub(super) fn take(&mut self, wanted: u64) -> Result<(u64, u64), Error> {
        let group = self.next / GROUP;
        if group >= GROUPS_MAX {
            return Err(too_large());
        }
        if self.next.is_multiple_of(GROUP) && has_superblock(group) {
            self.next += 1 + TABLE;
        }
        let room = (group + 1) * GROUP - self.next;
        let (start, count) = (self.next, wanted.min(room));
        self.next += count;
        Ok((start, count))
    }

    /// Takes exactly so many blocks in a row, fewer than a group has; gives their first.
    pub(super) fn row(&mut self, count: u64) -> Result<u64, Error> {
        loop {
            let before = self.next;
            let (start, mut got) = self.take(count)?;
            // The next group may go on without a superblock.
            while got < count {
                let (more, length) = self.take(count - got)?;
                if more != start + got {
                    break;
                }
                got += length;
            }
            if got == count {
                return Ok(start);
            }
            // What was in the way is behind now; what was left before it stays free.
            let group = before / GROUP;
            self.next = (group + 1) * GROUP;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn superblocks_are_never_given_away() {
        let backups: Vec<u64> = (0..60).filter(|group| has_superblock(*group)).collect();
        assert_eq!(backups, [0, 1, 3, 5, 7, 9, 25, 27, 49]);
        let mut space = Space::new();
        let mut blocks = 0;
        while space.end() < 10 * GROUP {
            let (start, count) = space.take(3000).unwrap();
            assert_eq!(start / GROUP, (start + count - 1) / GROUP);
            assert!(!has_superblock(start / GROUP) || start % GROUP > TABLE, "{start}");
            blocks += count;
        }
        assert!(blocks + 6 * (1 + TABLE) >= 10 * GROUP);
        let mut space = Space::new();
        for _ in 0..200 {
            let start = space.row(2000).unwrap();
            let inside = |group: u64| start < group * GROUP + 1 + TABLE && start + 2000 > group * GROUP;
            assert!(!(0..20).any(|group| has_superblock(group) && inside(group)), "{start}");
        }
    }
}
