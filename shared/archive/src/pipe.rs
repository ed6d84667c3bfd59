//! A **pipe** between an async stream and a thread: a bounded queue with the faces of [`Read`] and [`Write`].

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

/// How many pieces may wait, each of at most 64 KiB.
const QUEUE: usize = 4;
/// The bytes of a piece that is written.
const PIECE: usize = 48 * 1024;

/// What a thread reads from; the end is when its sender is dropped after [`End`] was sent, and an error without.
pub struct Reader {
    queue: mpsc::Receiver<Bytes>,
    piece: Bytes,
    ended: bool,
}

/// Makes a pipe into a thread. An empty piece is the end; a sender that is dropped before cuts it off.
pub fn inward() -> (mpsc::Sender<Bytes>, Reader) {
    let (sender, queue) = mpsc::channel(QUEUE);
    (sender, Reader { queue, piece: Bytes::new(), ended: false })
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() && !self.ended {
            self.piece = self.queue.blocking_recv().ok_or(io::ErrorKind::UnexpectedEof)?;
            self.ended = self.piece.is_empty();
        }
        let count = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// What a thread writes to.
pub struct Writer {
    queue: mpsc::Sender<Bytes>,
    piece: Vec<u8>,
}

/// Makes a pipe out of a thread.
pub fn outward() -> (Writer, mpsc::Receiver<Bytes>) {
    let (queue, receiver) = mpsc::channel(QUEUE);
    (Writer { queue, piece: Vec::with_capacity(PIECE) }, receiver)
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..count]);
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        self.queue.blocking_send(piece.into()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_and_a_cut_is_no_end() {
        let (sender, mut reader) = inward();
        for piece in ["hello ", "world", ""] {
            sender.blocking_send(Bytes::from_static(piece.as_bytes())).unwrap();
        }
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello world");
        let (sender, mut reader) = inward();
        sender.blocking_send(Bytes::from_static(b"half")).unwrap();
        drop(sender);
        assert_eq!(reader.read_to_string(&mut text).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let (mut writer, mut receiver) = outward();
        let writing =
            std::thread::spawn(move || writer.write_all(&vec![7; 3 * PIECE + 1]).and_then(|()| writer.flush()));
        let mut count = 0;
        while let Some(piece) = receiver.blocking_recv() {
            count += piece.len();
        }
        writing.join().unwrap().unwrap();
        assert_eq!(count, 3 * PIECE + 1);
        let (mut writer, receiver) = outward();
        drop(receiver);
        writer.write_all(b"x").unwrap();
        assert_eq!(writer.flush().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
