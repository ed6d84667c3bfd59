//! What a kernel of a package has to be before a guest may boot it: an ELF file of this architecture that a VMM can start, which says of
//! which release it is, with modules that were made for that release.

use memchr::memmem;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};

use super::{
    initramfs::Module,
    offer::{OfferError, refuse, shown},
};

/// The ELF note a VMM starts a kernel by without a boot loader (PVH: include/xen/interface/elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY).
const PVH_NOTE: (&[u8], u32) = (b"Xen", 18);

/// The most segments and notes that are looked at: a kernel has a dozen of each, and segments may lie over each other.
const SEGMENTS_MAX: usize = 128;
const NOTES_MAX: usize = 1024;

/// Refuses a kernel no VMM of Warren's could start; its release.
pub(super) fn kernel(vmlinux: &[u8]) -> Result<String, OfferError> {
    let damaged = |error: object::Error| OfferError::Refused(format!("its vmlinux is no ELF file of 64 bits: {error}"));
    let file = ElfFile64::<object::Endianness>::parse(vmlinux).map_err(damaged)?;
    let (header, endian) = (file.elf_header(), file.endian());
    if header.e_machine(endian) != object::elf::EM_X86_64 {
        return refuse("its vmlinux is not for this architecture (amd64)");
    }
    let (mut pvh, mut count) = (false, 0);
    for segment in header.program_headers(endian, vmlinux).map_err(damaged)?.iter().take(SEGMENTS_MAX) {
        let Some(mut notes) = segment.notes(endian, vmlinux).map_err(damaged)? else { continue };
        while let Some(note) = notes.next().map_err(damaged)? {
            count += 1;
            if count > NOTES_MAX {
                return refuse("its vmlinux has too many notes");
            }
            pvh |= (note.name(), note.n_type(endian)) == PVH_NOTE;
        }
    }
    if !pvh {
        return refuse("its vmlinux cannot be started by a VMM: it has no PVH entry (CONFIG_PVH)");
    }
    release(vmlinux).map_or_else(|| refuse("its vmlinux does not say which Linux it is"), Ok)
}

/// What `uname -r` will print: `Linux version <release> (<builder>…`, as init/version.c has it.
fn release(vmlinux: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    memmem::find_iter(vmlinux, BANNER).find_map(|at| {
        let rest = vmlinux.get(at + BANNER.len()..)?;
        let end = rest.iter().take(128).position(|byte| *byte == b' ')?;
        let release = std::str::from_utf8(rest.get(..end)?).ok()?;
        let plain = release.starts_with(|c: char| c.is_ascii_digit())
            && release.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_+~".contains(&byte));
        (plain && rest.get(end + 1) == Some(&b'(')).then(|| release.to_owned())
    })
}

/// A module says for which kernel it was made, in `.modinfo`: `vermagic=<release> <options>` (include/linux/vermagic.h).
pub(super) fn module((name, bytes): &Module, release: &str) -> Result<(), OfferError> {
    const MAGIC: &[u8] = b"vermagic=";
    let of = memmem::find(bytes, MAGIC).map(|at| {
        let rest = &bytes[at + MAGIC.len()..];
        let end = rest.iter().take(128).position(|byte| matches!(byte, b' ' | 0)).unwrap_or(0);
        String::from_utf8_lossy(&rest[..end]).into_owned()
    });
    match of {
        Some(of) if of == release => Ok(()),
        Some(of) => {
            refuse(format!("the module {} is for {} and the kernel is {}", shown(name), shown(&of), shown(release)))
        }
        None => refuse(format!("{} is no kernel module", shown(name))),
    }
}
