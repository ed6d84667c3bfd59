//! The ELF kernel inside a bzImage (Linux Documentation/x86/boot.rst). Under emulation a guest would unpack it with
//! emulated instructions at each boot; the host does it once.

use super::packed;

/// The largest uncompressed kernel, in bytes: ten times a distribution's.
pub(super) const KERNEL_MAX: usize = 512 * 1024 * 1024;
/// The largest bzImage, in bytes: it is held beside what comes out of it. Ten times a distribution's.
const BZIMAGE_MAX: usize = 128 * 1024 * 1024;
/// What the LZ4 legacy format unpacks at once (lz4_Frame_format.md, "Legacy frame").
const LZ4_BLOCK: usize = 8 * 1024 * 1024;
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// The uncompressed kernel of a vmlinux, which is the file itself, or of a bzImage.
pub(super) fn vmlinux(image: Vec<u8>) -> Result<Vec<u8>, String> {
    if image.starts_with(b"\x7fELF") {
        return Ok(image);
    }
    if image.len() > BZIMAGE_MAX {
        return Err(format!("it is a bzImage of more than {} MiB", BZIMAGE_MAX >> 20));
    }
    let payload = payload(&image).ok_or("it is neither an ELF file nor a bzImage")?;
    let kernel = if let Some(blocks) = payload.strip_prefix(&LZ4_LEGACY[..]) {
        lz4(blocks)?
    } else if packed::is_packed(payload) {
        packed::all(payload, KERNEL_MAX).map_err(|error| error.to_string())?
    } else {
        return Err("its payload is packed with none of LZ4, gzip, zstd, xz, lzma and bzip2".to_owned());
    };
    if kernel.starts_with(b"\x7fELF") { Ok(kernel) } else { Err("its payload is no ELF file".to_owned()) }
}

/// Whether a file that begins so is a bzImage.
pub(super) fn is_bzimage(head: &[u8]) -> bool {
    head.get(0x202..0x206).is_some_and(|magic| magic == b"HdrS")
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    if !is_bzimage(image) {
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A bzImage with that payload.
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 0x400];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len() + 4).unwrap().to_le_bytes());
        image.extend_from_slice(payload);
        image.extend_from_slice(&[0; 4]);
        image
    }

    #[test]
    fn every_packing_a_kernel_may_have_is_unpacked() {
        let elf = [&b"\x7fELF"[..], &[7; 100_000]].concat();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&elf).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&elf).unwrap();
        let options = liblzma::stream::LzmaOptions::new_preset(6).unwrap();
        let lzma = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
        let mut lzma = liblzma::write::XzEncoder::new_stream(Vec::new(), lzma);
        lzma.write_all(&elf).unwrap();
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(&elf).unwrap();
        let block = lz4_flex::block::compress(&elf);
        let lz4 = [&LZ4_LEGACY[..], &u32::try_from(block.len()).unwrap().to_le_bytes(), &block].concat();
        for payload in [
            gzip.finish().unwrap(),
            zstd::encode_all(&elf[..], 1).unwrap(),
            xz.finish().unwrap(),
            lzma.finish().unwrap(),
            bzip2.finish().unwrap(),
            lz4,
        ] {
            let head = payload[..4].to_vec();
            assert!(vmlinux(bzimage(&payload)).unwrap() == elf, "{head:x?}");
            assert!(vmlinux(bzimage(&payload[..payload.len() / 2])).is_err(), "{head:x?}, cut short");
        }
        assert!(vmlinux(bzimage(&elf)).unwrap_err().contains("packed with none"));
    }

    #[test]
    fn what_is_no_kernel_is_refused_without_panic() {
        assert!(vmlinux(Vec::new()).is_err());
        assert!(vmlinux(vec![0; 1024]).is_err());
        let mut lying = vec![0; 0x1000];
        lying[0x202..0x206].copy_from_slice(b"HdrS");
        lying[0x248..0x250].copy_from_slice(&[0xff; 8]);
        assert!(vmlinux(lying).is_err());
        // A bomb is cut off at the largest kernel.
        let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), KERNEL_MAX as u64 + 10), &mut bomb).unwrap();
        assert!(vmlinux(bzimage(&bomb.finish().unwrap())).unwrap_err().contains("more than 512 MiB"));
    }
}
