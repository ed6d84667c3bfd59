//! **Samples** of what distributions ship kernels in, for tests.

use std::io::{self, Write};

use super::initramfs;

/// A kernel as far as it is looked at: an ELF file with a PVH note that says its release.
pub fn vmlinux(release: &str) -> Vec<u8> {
    let mut elf = vec![0; 64 + 56];
    elf[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    let banner = format!("Linux version %s\0Linux version {release} (builder@host) #1\0");
    for (at, bytes) in [
        (16, &2u16.to_le_bytes()[..]),
        (18, &62u16.to_le_bytes()),
        (20, &1u32.to_le_bytes()),
        (32, &64u64.to_le_bytes()),
        (52, &64u16.to_le_bytes()),
        (54, &56u16.to_le_bytes()),
        (56, &1u16.to_le_bytes()),
        // One segment of notes (PT_NOTE), behind the headers.
        (64, &4u32.to_le_bytes()),
        (72, &120u64.to_le_bytes()),
        (96, &20u64.to_le_bytes()),
        (104, &20u64.to_le_bytes()),
        (112, &4u64.to_le_bytes()),
    ] {
        elf[at..at + bytes.len()].copy_from_slice(bytes);
    }
    for word in [4u32, 4, 18] {
        elf.extend_from_slice(&word.to_le_bytes());
    }
    elf.extend_from_slice(b"Xen\0\0\0\0\x01");
    elf.extend_from_slice(banner.as_bytes());
    elf
}

/// A package's files: the kernel, and the modules guests need, packed as asked.
pub fn tar(release: &str, of: &str, ending: &str, pack: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut archive = ::tar::Builder::new(Vec::new());
    let mut add = |path: &str, bytes: &[u8]| {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, path, bytes).unwrap();
    };
    add(&format!("./boot/vmlinuz-{release}"), &vmlinux(release));
    add("./usr/share/doc/linux/copyright", b"GPL");
    for name in initramfs::MODULES {
        let module = format!("\0vermagic={of} SMP mod_unload \0");
        // Deep enough that its name does not fit into a header.
        let path = format!("./lib/modules/{release}/kernel/{}{name}.ko{ending}", "drivers/virtio/".repeat(8));
        add(&path, &pack(module.as_bytes()));
    }
    archive.into_inner().unwrap()
}

pub fn plain(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

pub fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut packer = liblzma::write::XzEncoder::new(Vec::new(), 1);
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

pub fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

pub fn deb(data: &str, bytes: &[u8]) -> Vec<u8> {
    let mut package = ar::Builder::new(Vec::new());
    for (name, bytes) in [("debian-binary", &b"2.0\n"[..]), ("control.tar.xz", b"nothing"), (data, bytes)] {
        package.append(&ar::Header::new(name.as_bytes().to_vec(), bytes.len() as u64), bytes).unwrap();
    }
    package.into_inner().unwrap()
}

/// An RPM with the files of a tar archive.
pub fn rpm(archive: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    for entry in ::tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let (name, size) = (entry.path().unwrap().to_string_lossy().into_owned(), entry.size());
        let builder = cpio::newc::Builder::new(&name).mode(0o100_644).nlink(1);
        let mut writer = builder.write(&mut payload, u32::try_from(size).unwrap());
        io::copy(&mut entry, &mut writer).unwrap();
        writer.finish().unwrap();
    }
    cpio::newc::trailer(&mut payload).unwrap();
    let mut package = [&[0xed, 0xab, 0xee, 0xdb][..], &[0; 92]].concat();
    // One entry and five bytes of data in each header; the first is padded.
    for padding in [3, 0] {
        package.extend([0x8e, 0xad, 0xe8, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5]);
        package.extend(vec![0; 16 + 5 + padding]);
    }
    package.extend(zst(&payload));
    package
}
