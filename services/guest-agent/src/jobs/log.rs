//! What a job has printed: the last of it, in order, with its place in all of it. The beginning is dropped when it gets too long.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::process::Output;

/// What a piece costs beside its bytes, so that a job that prints single bytes to both outputs in turn is bounded too.
const PIECE_COST: usize = 64;
/// The longest piece, in bytes: one frame holds it.
const PIECE_MAX: usize = 32 * 1024;

/// Which output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What a reader gets.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    /// So many bytes before it are gone.
    pub missed: u64,
    /// Where it was printed.
    pub source: Source,
    /// What was.
    pub bytes: Bytes,
}

/// The output of a job. Offsets count all bytes of both outputs from 0.
#[derive(Debug)]
pub struct Log {
    pieces: VecDeque<(Source, Vec<u8>)>,
    start: u64,
    end: u64,
    cost: usize,
    capacity: usize,
}

impl Log {
    /// Keeps about so many bytes.
    pub fn new(capacity: usize) -> Self {
        Self { pieces: VecDeque::new(), start: 0, end: 0, cost: 0, capacity }
    }

    /// The offset of the first byte that is kept.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// How many bytes were printed in all.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Up to which offset bytes are gone once so many more have been added.
    pub fn start_after(&self, more: usize) -> u64 {
        let (mut start, mut cost) = (self.start, self.cost + more + PIECE_COST);
        for (_, bytes) in &self.pieces {
            if cost <= self.capacity {
                break;
            }
            cost -= bytes.len() + PIECE_COST;
            start += bytes.len() as u64;
        }
        start
    }

    /// Adds output, and drops what there is too much of.
    pub fn push(&mut self, output: Output) {
        let (source, bytes) = match output {
            Output::Stdout(bytes) => (Source::Stdout, bytes),
            Output::Stderr(bytes) => (Source::Stderr, bytes),
        };
        self.end += bytes.len() as u64;
        self.cost += bytes.len();
        match self.pieces.back_mut() {
            Some((last, piece)) if *last == source && piece.len() + bytes.len() <= PIECE_MAX => {
                piece.extend_from_slice(&bytes);
            }
            _ => {
                self.cost += PIECE_COST;
                self.pieces.push_back((source, bytes));
            }
        }
        while self.cost > self.capacity && self.pieces.len() > 1 {
            if let Some((_, dropped)) = self.pieces.pop_front() {
                self.cost -= dropped.len() + PIECE_COST;
                self.start += dropped.len() as u64;
            }
        }
    }

    /// What follows that offset; nothing when all has been read.
    pub fn read(&self, from: u64) -> Option<Piece> {
        let (mut at, wanted) = (self.start, from.max(self.start));
        for (source, bytes) in &self.pieces {
            let end = at + bytes.len() as u64;
            if wanted < end {
                let skip = usize::try_from(wanted - at).unwrap_or(0);
                let bytes = Bytes::copy_from_slice(&bytes[skip..]);
                return Some(Piece { missed: wanted - from, source: *source, bytes });
            }
            at = end;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(text: &[u8]) -> Output {
        Output::Stdout(text.to_vec())
    }

    #[test]
    fn both_outputs_come_back_in_order() {
        let mut log = Log::new(1000);
        log.push(out(b"ab"));
        log.push(out(b"cd"));
        log.push(Output::Stderr(b"e".to_vec()));
        let piece =
            |missed, source, text: &'static [u8]| Some(Piece { missed, source, bytes: Bytes::from_static(text) });
        assert_eq!(log.read(0), piece(0, Source::Stdout, b"abcd"));
        assert_eq!(log.read(3), piece(0, Source::Stdout, b"d"));
        assert_eq!(log.read(4), piece(0, Source::Stderr, b"e"));
        assert_eq!(log.read(5), None);
    }

    #[test]
    fn the_beginning_goes_and_a_reader_is_told_how_much() {
        let mut log = Log::new(100_000);
        for _ in 0..10 {
            let foretold = log.start_after(20_000);
            log.push(out(&[7; 20_000]));
            assert!(log.start() >= foretold);
        }
        assert_eq!((log.start(), log.end()), (120_000, 200_000));
        let piece = log.read(50_000).unwrap();
        assert_eq!((piece.missed, piece.bytes.len()), (70_000, 20_000));
    }

    #[test]
    fn single_bytes_to_both_outputs_are_bounded() {
        let mut log = Log::new(64 * 1024);
        for _ in 0..100_000 {
            log.push(out(b"o"));
            log.push(Output::Stderr(b"e".to_vec()));
        }
        assert!(log.pieces.len() <= 1100, "{}", log.pieces.len());
        assert_eq!(log.end(), 200_000);
    }
}
