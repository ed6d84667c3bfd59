//! Copies that leave out holes: data is found with lseek(2)'s `SEEK_DATA` and `SEEK_HOLE`.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
    unistd::{Whence, lseek},
};

/// How much is copied between two looks whether to go on, in bytes.
const PIECE: u64 = 16 << 20;

/// Copies all data of a file to the same places of an empty one; the end is the caller's to set.
pub(super) fn copy(from: &File, to: &File) -> io::Result<()> {
    copy_while(from, to, &|_| true)
}

/// As [`copy`], and ends early when `go_on`, which is told of bytes as they are copied, says so.
pub(super) fn copy_while(mut from: &File, mut to: &File, go_on: &dyn Fn(u64) -> bool) -> io::Result<()> {
    let mut at = 0;
    loop {
        let data = match lseek(from, at, Whence::SeekData) {
            Ok(data) => data,
            // No data after this.
            Err(Errno::ENXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let hole = lseek(from, data, Whence::SeekHole)?;
        let (start, length) = (offset(data)?, offset(hole - data)?);
        from.seek(SeekFrom::Start(start))?;
        to.seek(SeekFrom::Start(start))?;
        let mut left = length;
        while left > 0 {
            let piece = left.min(PIECE);
            // Within the kernel: the standard library uses copy_file_range(2) between files.
            if io::copy(&mut from.take(piece), &mut to)? != piece {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the file became shorter while it was copied",
                ));
            }
            if !go_on(piece) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            left -= piece;
        }
        at = hole;
    }
}

/// Makes a range of a file read as zeros, without blocks where the filesystem can.
pub(super) fn zero(file: &File, at: u64, length: u64) -> io::Result<()> {
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (at, length) = (i64::try_from(at).map_err(io::Error::other)?, i64::try_from(length).map_err(io::Error::other)?);
    match fallocate(file, punch, at, length) {
        Err(Errno::EOPNOTSUPP) => {
            (&mut &*file).seek(SeekFrom::Start(offset(at)?))?;
            io::copy(&mut io::repeat(0).take(offset(length)?), &mut &*file).map(drop)
        }
        punched => Ok(punched?),
    }
}

fn offset(value: i64) -> io::Result<u64> {
    u64::try_from(value).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn data_is_copied_to_its_place_and_holes_stay_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (tempfile::tempfile_in(&dir).unwrap(), tempfile::tempfile_in(&dir).unwrap());
        from.set_len(64 << 20).unwrap();
        for at in [0, 20 << 20, (64 << 20) - 4096] {
            from.write_all_at(&[7; 4096], at).unwrap();
        }
        copy(&from, &to).unwrap();
        to.set_len(96 << 20).unwrap();
        let read = |at| {
            let mut block = [1; 4096];
            to.read_exact_at(&mut block, at).unwrap();
            block
        };
        assert!([0, 20 << 20, (64 << 20) - 4096].into_iter().all(|at| read(at) == [7; 4096]));
        assert_eq!(read(10 << 20), [0; 4096]);
        assert!(to.metadata().unwrap().blocks() * 512 < 4 << 20, "holes were written");
        let empty = tempfile::tempfile_in(&dir).unwrap();
        copy(&empty, &to).unwrap();
    }
}
