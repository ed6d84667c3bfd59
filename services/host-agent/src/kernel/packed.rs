//! **Packed** bytes, told by how they begin: what kernels, their modules and the archives in packages are packed with.
//! Whoever reads the unpacked bytes bounds how many there may be.

use std::io::{self, BufRead, Read};

use liblzma::{read::XzDecoder, stream::Stream};

/// The most memory one unpacker may take, in bytes: the largest dictionaries in use (`xz -9`, `zstd --ultra -22`) fit.
const MEMORY_MAX: u64 = 192 * 1024 * 1024;

/// The unpacked bytes, or the bytes themselves when they are packed with nothing that is known.
///
/// # Errors
/// They cannot be read, or not be unpacked.
pub(super) fn open<'a>(mut bytes: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let head = bytes.fill_buf()?;
    Ok(match head {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(bytes)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::with_buffer(bytes)?),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            Box::new(XzDecoder::new_stream(bytes, Stream::new_stream_decoder(MEMORY_MAX, 0)?))
        }
        // The properties of every encoder there is, and the low half of a dictionary's size that is a power of two.
        [0x5d, 0, 0, ..] => Box::new(XzDecoder::new_stream(bytes, Stream::new_lzma_decoder(MEMORY_MAX)?)),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Box::new(bzip2::read::MultiBzDecoder::new(bytes)),
        _ => Box::new(bytes),
    })
}

/// Whether bytes that begin so are packed with something [`open`] unpacks.
pub(super) fn is_packed(head: &[u8]) -> bool {
    matches!(
        head,
        [0x1f, 0x8b, ..]
            | [0x28, 0xb5, 0x2f, 0xfd, ..]
            | [0xfd, b'7', b'z', b'X', b'Z', 0, ..]
            | [0x5d, 0, 0, ..]
            | [b'B', b'Z', b'h', b'1'..=b'9', ..]
    )
}

/// All unpacked bytes.
///
/// # Errors
/// They cannot be unpacked, or are more than `max`.
pub(super) fn all(packed: &[u8], max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(packed)?.take(max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max {
        return Err(io::Error::other(format!("it unpacks to more than {} MiB", max >> 20)));
    }
    Ok(bytes)
}
