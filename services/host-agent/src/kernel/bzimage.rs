//! The ELF kernel inside a bzImage (Linux Documentation/x86/boot.rst). Under emulation a guest would unpack it with
//! emulated instructions at each boot; the host does it once.

use std::io::Read;

/// The largest uncompressed kernel, in bytes: ten times a distribution's.
const KERNEL_MAX: usize = 512 * 1024 * 1024;
/// What the LZ4 legacy format unpacks at once (lz4_Frame_format.md, "Legacy frame").
const LZ4_BLOCK: usize = 8 * 1024 * 1024;
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// The uncompressed kernel of a vmlinux or bzImage.
pub(super) fn vmlinux(image: &[u8]) -> Result<Vec<u8>, String> {
    if image.starts_with(b"\x7fELF") {
        return Ok(image.to_vec());
    }
    let payload = payload(image).ok_or("it is neither an ELF file nor a bzImage")?;
    let kernel = if let Some(blocks) = payload.strip_prefix(&LZ4_LEGACY[..]) {
        lz4(blocks)?
    } else if payload.starts_with(&[0x1f, 0x8b]) {
        unpack(flate2::read::GzDecoder::new(payload))?
    } else if payload.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        unpack(zstd::Decoder::new(payload).map_err(|error| error.to_string())?)?
    } else {
        return Err("its payload is packed with neither LZ4, gzip nor zstd".to_owned());
    };
    if kernel.starts_with(b"\x7fELF") { Ok(kernel) } else { Err("its payload is no ELF file".to_owned()) }
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let sectors = match *image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = ((sectors + 1) * 512).checked_add(word(0x248)?)?;
    // The last four bytes are the unpacked size.
    image.get(start..start.checked_add(word(0x24c)?)?.checked_sub(4)?)
}

fn lz4(mut blocks: &[u8]) -> Result<Vec<u8>, String> {
    let mut kernel = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    while let Some((length, rest)) = blocks.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let packed = rest.get(..length).ok_or("its LZ4 payload is cut short")?;
        let unpacked = lz4_flex::block::decompress_into(packed, &mut block).map_err(|error| error.to_string())?;
        kernel.extend_from_slice(&block[..unpacked]);
        if kernel.len() > KERNEL_MAX {
            return Err("it unpacks to more than 512 MiB".to_owned());
        }
        blocks = &rest[length..];
    }
    Ok(kernel)
}

fn unpack(reader: impl Read) -> Result<Vec<u8>, String> {
    let mut kernel = Vec::new();
    reader.take(KERNEL_MAX as u64 + 1).read_to_end(&mut kernel).map_err(|error| error.to_string())?;
    if kernel.len() > KERNEL_MAX { Err("it unpacks to more than 512 MiB".to_owned()) } else { Ok(kernel) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_kernel_is_refused_without_panic() {
        assert!(vmlinux(b"").is_err());
        assert!(vmlinux(&[0; 1024]).is_err());
        let mut lying = vec![0; 0x1000];
        lying[0x202..0x206].copy_from_slice(b"HdrS");
        lying[0x248..0x250].copy_from_slice(&[0xff; 8]);
        assert!(vmlinux(&lying).is_err());
    }
}
