//! The **packing** of a root filesystem: what stands in the layer of a bundle.
//!
//! ```text
//! magic 0x184D2A57 · length of what follows up to the first frame     (a skippable frame of RFC 8878, so that the whole is zstd)
//!   "warren-rootfs-1\0" · size of the root filesystem (u64)
//!   for each chunk of 1 MiB: length of its frame (u32), 0 where the chunk is all zeros
//! the frames of the chunks that are not
//! ```
//!
//! All numbers are little endian. The table tells where each chunk's frame begins and where what is in it belongs, so chunks are packed and
//! unpacked side by side and none can overlap another. Whether zeros were a hole in the file makes no difference, so the same root filesystem gives
//! the same bytes (with the same version of zstd).

use contract::ApiError;

/// Bytes of a chunk: large enough to pack well, small enough that many in memory are little.
pub(super) const CHUNK: usize = 1 << 20;
/// The level of compression: past it time grows faster than what is saved.
pub(super) const LEVEL: i32 = 3;
/// How many chunks are worked on at once, and are in memory.
pub(super) const AT_ONCE: usize = 4;
/// What stands before the table.
pub(super) const HEAD: usize = 8 + NAME.len() + 8;

const SKIPPABLE: u32 = 0x184D_2A57;
const NAME: &[u8; 16] = b"warren-rootfs-1\0";

/// How many chunks a root filesystem of that size has.
pub(super) fn chunks(size: u64) -> u64 {
    size.div_ceil(CHUNK as u64)
}

/// The bytes of a chunk: the last one may be shorter.
pub(super) fn chunk_length(size: u64, chunk: u64) -> usize {
    let left = size.saturating_sub(chunk * CHUNK as u64);
    usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK))
}

/// What stands before the frames.
pub(super) fn header(size: u64, table: &[u32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + table.len() * 4);
    bytes.extend(SKIPPABLE.to_le_bytes());
    // A table of as many chunks as there may be is far below 4 GiB: limits::unpacked.
    let length = u32::try_from(HEAD - 8 + table.len() * 4).unwrap_or(u32::MAX);
    bytes.extend(length.to_le_bytes());
    bytes.extend(NAME);
    bytes.extend(size.to_le_bytes());
    bytes.extend(table.iter().flat_map(|length| length.to_le_bytes()));
    bytes
}

/// Checks what stands before the table against the size the bundle's configuration names.
///
/// # Errors
/// `invalid_argument`: it is of another format or size.
pub(super) fn check_head(head: &[u8; HEAD], size: u64) -> Result<(), ApiError> {
    let length = HEAD as u64 - 8 + chunks(size) * 4;
    let wanted =
        [&SKIPPABLE.to_le_bytes()[..], &u32::try_from(length).unwrap_or(0).to_le_bytes(), NAME, &size.to_le_bytes()];
    if head[..] == wanted.concat() {
        return Ok(());
    }
    Err(ApiError::invalid_argument(
        "the bundle's root filesystem is packed in another way, or of another size, than its configuration says",
    )
    .hint("it may have been made by a newer version of Warren"))
}

/// Checks a table before anything is read by it.
///
/// # Errors
/// `invalid_argument`: a frame is longer than its chunk can give, or all are longer or shorter than the layer.
pub(super) fn check_table(table: &[u32], size: u64, packed: u64) -> Result<(), ApiError> {
    let refuse = |why: &str| Err(ApiError::invalid_argument(format!("the bundle's table of chunks {why}")));
    let mut sum = HEAD as u64 + table.len() as u64 * 4;
    for (chunk, length) in (0..).zip(table) {
        if *length as usize > zstd::zstd_safe::compress_bound(chunk_length(size, chunk)) {
            return refuse(&format!("has a frame of {length} bytes for chunk {chunk}"));
        }
        sum += u64::from(*length);
    }
    if sum != packed {
        return refuse(&format!("makes up {sum} bytes, and the layer has {packed}"));
    }
    Ok(())
}
