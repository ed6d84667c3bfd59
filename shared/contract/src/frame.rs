//! Frames of an exec stream, end to end between a client and guest-agent: one byte of kind, four of
//! length (big endian), then so many bytes. Lengths are bounded before anything is read.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::workspace::TerminalSize;

/// The longest payload of one frame, in bytes: small enough that no stream hogs the channel.
pub const PAYLOAD_MAX: usize = 64 * 1024;

const HEADER: usize = 5;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Client → guest: bytes for standard input. Empty: end of file.
    Stdin(Bytes),
    /// Guest → client: bytes of standard output (or of the terminal).
    Stdout(Bytes),
    /// Guest → client: bytes of standard error.
    Stderr(Bytes),
    /// Client → guest: the terminal has another size now.
    Resize(TerminalSize),
    /// Client → guest: send the process group this signal (number as on Linux x86-64).
    Signal(u8),
    /// Guest → client, last: how the process ended.
    Exit(Exit),
    /// Guest → client, to who attaches to a job: so many bytes of output are remembered no more.
    Missed(u64),
    /// Guest → client, last: nothing more will come although the job goes on; why.
    Left(String),
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 + signal number where a signal ended it; 126 or 127 where it could not be started.
    pub code: i32,
    /// Why it could not be started, or what else went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Why bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is over [`PAYLOAD_MAX`].
    #[error("frame of {0} bytes is over the limit of 65536")]
    TooLong(usize),
    /// No such kind.
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    /// The payload does not fit its kind.
    #[error("malformed payload of frame kind {0}")]
    Malformed(u8),
}

impl Frame {
    /// Appends the frame to `out`. Data longer than [`PAYLOAD_MAX`] becomes several frames.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Stdin(data) => encode_data(0, data, out),
            Self::Stdout(data) => encode_data(1, data, out),
            Self::Stderr(data) => encode_data(2, data, out),
            Self::Resize(size) => {
                let mut payload = [0; 4];
                payload[..2].copy_from_slice(&size.columns.to_be_bytes());
                payload[2..].copy_from_slice(&size.rows.to_be_bytes());
                encode_one(3, &payload, out);
            }
            Self::Signal(number) => encode_one(4, &[*number], out),
            Self::Exit(exit) => {
                let mut exit = exit.clone();
                // Bounded, so that the frame always fits.
                if let Some(message) = &mut exit.message {
                    *message = message.chars().take(4096).collect();
                }
                encode_one(5, &serde_json::to_vec(&exit).unwrap_or_default(), out);
            }
            Self::Missed(bytes) => encode_one(6, &bytes.to_be_bytes(), out),
            Self::Left(reason) => {
                let reason: String = reason.chars().take(4096).collect();
                encode_one(7, reason.as_bytes(), out);
            }
        }
    }

    /// Takes the next frame off `buffer`, or nothing while it is not whole.
    ///
    /// # Errors
    /// The bytes are no frame; the stream is of no use any more.
    pub fn decode(buffer: &mut BytesMut) -> Result<Option<Self>, FrameError> {
        if buffer.len() < HEADER {
            return Ok(None);
        }
        let kind = buffer[0];
        let length = u32::from_be_bytes([buffer[1], buffer[2], buffer[3], buffer[4]]) as usize;
        if length > PAYLOAD_MAX {
            return Err(FrameError::TooLong(length));
        }
        if buffer.len() < HEADER + length {
            buffer.reserve(HEADER + length - buffer.len());
            return Ok(None);
        }
        buffer.advance(HEADER);
        let payload = buffer.split_to(length).freeze();
        let malformed = FrameError::Malformed(kind);
        Ok(Some(match kind {
            0 => Self::Stdin(payload),
            1 => Self::Stdout(payload),
            2 => Self::Stderr(payload),
            3 if payload.len() == 4 => Self::Resize(TerminalSize {
                columns: u16::from_be_bytes([payload[0], payload[1]]),
                rows: u16::from_be_bytes([payload[2], payload[3]]),
            }),
            4 if payload.len() == 1 => Self::Signal(payload[0]),
            5 => Self::Exit(serde_json::from_slice(&payload).map_err(|_| malformed)?),
            6 => Self::Missed(u64::from_be_bytes(payload[..].try_into().map_err(|_| malformed)?)),
            7 => Self::Left(String::from_utf8(payload.into()).map_err(|_| malformed)?),
            3 | 4 => return Err(malformed),
            other => return Err(FrameError::UnknownKind(other)),
        }))
    }
}

fn encode_data(kind: u8, data: &[u8], out: &mut BytesMut) {
    if data.is_empty() {
        return encode_one(kind, data, out);
    }
    for chunk in data.chunks(PAYLOAD_MAX) {
        encode_one(kind, chunk, out);
    }
}

fn encode_one(kind: u8, payload: &[u8], out: &mut BytesMut) {
    debug_assert!(payload.len() <= PAYLOAD_MAX);
    out.reserve(HEADER + payload.len());
    out.put_u8(kind);
    out.put_u32(payload.len() as u32);
    out.put_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(frame: Frame) {
        let mut buffer = BytesMut::new();
        frame.encode(&mut buffer);
        for cut in 0..buffer.len() {
            assert_eq!(Frame::decode(&mut BytesMut::from(&buffer[..cut])), Ok(None));
        }
        assert_eq!(Frame::decode(&mut buffer), Ok(Some(frame)));
        assert!(buffer.is_empty());
    }

    #[test]
    fn every_kind_comes_back_and_waits_until_it_is_whole() {
        round_trip(Frame::Stdin(Bytes::new()));
        round_trip(Frame::Stdout(Bytes::from_static(b"out")));
        round_trip(Frame::Stderr(Bytes::from_static(b"err")));
        round_trip(Frame::Resize(TerminalSize { columns: 80, rows: 24 }));
        round_trip(Frame::Signal(15));
        round_trip(Frame::Exit(Exit { code: 130, message: Some("gone".into()) }));
        round_trip(Frame::Missed(u64::MAX));
        round_trip(Frame::Left("another has attached".into()));
    }

    #[test]
    fn a_lying_length_is_refused_before_it_is_believed() {
        let mut buffer = BytesMut::from(&[1u8, 0xff, 0xff, 0xff, 0xff][..]);
        assert_eq!(Frame::decode(&mut buffer), Err(FrameError::TooLong(0xffff_ffff)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = Frame::decode(&mut buffer) {}
        }
    }
}
