//! Follows paths within the tree, as the kernel does with `RESOLVE_IN_ROOT`: symlinks lead to places of the tree only,
//! and nothing is above its root.

use super::{NONE, ROOT, Target, Tree};
use crate::image::ext4::{self, Error, Writer, file_type};

/// How many symlinks one path may lead through (Linux's MAXSYMLINKS).
const HOPS: usize = 40;
/// How many parts all the paths of one walk may have: symlinks' targets are walked part by part.
const STEPS: usize = 8192;

/// Where a path leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::image) enum Found {
    Directory(u32),
    /// A part of it is not there.
    Nothing,
    /// A part of it is no directory, or symlinks lead round in a circle.
    Blocked,
}

/// What is done where a directory is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::image) enum Walk {
    /// Nothing.
    Look,
    /// It is made, and what the path leads through counts as touched by the layer.
    Make,
}

impl Tree {
    /// Follows a path to a directory.
    pub(in crate::image) fn walk(&mut self, writer: &mut Writer, path: &[&[u8]], how: Walk) -> Result<Found, Error> {
        // What is still to be walked, the next part last.
        let mut left: Vec<Vec<u8>> = path.iter().rev().map(|part| part.to_vec()).collect();
        let (mut at, mut hops, mut steps) = (ROOT, 0, 0);
        while let Some(part) = left.pop() {
            steps += 1;
            if steps > STEPS {
                return Ok(Found::Blocked);
            }
            if part == b".." {
                at = self.directories.get(at).parent;
                continue;
            }
            match self.get(at, &part)? {
                Some(Target::Directory(below)) => at = below,
                Some(Target::Other { inode, kind: file_type::SYMLINK }) => {
                    hops += 1;
                    if hops > HOPS {
                        return Ok(Found::Blocked);
                    }
                    let target = writer.target(inode)?;
                    if target.starts_with(b"/") {
                        at = ROOT;
                    }
                    let parts = target.split(|byte| *byte == b'/').rev();
                    left.extend(parts.filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec));
                }
                Some(Target::Other { .. }) => return Ok(Found::Blocked),
                None if how == Walk::Look => return Ok(Found::Nothing),
                None if part.len() > 255 => return Ok(Found::Blocked),
                None => {
                    let meta = ext4::Meta { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0) };
                    let inode = writer.add(&meta, &[], ext4::Kind::Directory)?;
                    at = self.make_directory(at, &part, inode)?;
                }
            }
        }
        if how == Walk::Make {
            self.touch(at);
        }
        debug_assert!(self.directories.get(at).parent != NONE);
        Ok(Found::Directory(at))
    }
}
