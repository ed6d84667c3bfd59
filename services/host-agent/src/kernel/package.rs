//! A kernel as its **packages** hold it, made into what guests boot.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::{
    BootFiles, FORMAT, KernelError, Making, bzimage, check, file_error, initramfs,
    offer::{Limits, OfferError, Parts},
};

/// The files directly in a directory, sorted: the packages of one kernel. Links are not followed.
pub(super) fn files(dir: &Path) -> Result<Vec<PathBuf>, KernelError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(file_error(dir))? {
        let entry = entry.map_err(file_error(dir))?;
        if entry.file_type().map_err(file_error(&entry.path()))?.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Makes the boot files of a kernel's packages, or finds those made earlier. Blocking.
pub(super) fn prepare(state_dir: &Path, packages: &[PathBuf], agent: &[u8]) -> Result<BootFiles, KernelError> {
    let mut hasher = Sha256::new();
    hasher.update([FORMAT]);
    hasher.update(Sha256::digest(agent));
    for package in packages {
        // Each by its digest, so that where one ends and the next begins makes a difference.
        hasher.update(digest(package).map_err(file_error(package))?);
    }
    let making = Making::new(state_dir, &hex::encode(hasher.finalize())[..16])?;
    if let Some(release) = making.made()? {
        return Ok(making.files(release));
    }
    let draft = making.draft()?;
    let scratch = draft.path().join("parts");
    fs::create_dir(&scratch).map_err(file_error(&scratch))?;
    let mut parts = Parts::new(&scratch, Limits::default(), CancellationToken::new());
    for package in packages {
        let refused = |source| KernelError::Package { path: package.clone(), source };
        let file = File::open(package).map_err(file_error(package))?;
        let name = package.file_name().unwrap_or_default().to_string_lossy();
        parts.file(&name, file).map_err(refused)?;
    }
    let place = packages.first().and_then(|package| package.parent()).unwrap_or(state_dir);
    let (vmlinux, modules, release) = assemble(&parts, place)?;
    making.finish(&draft, &vmlinux, &initramfs::build(agent, &modules)?, &release)?;
    fs::remove_dir_all(&scratch).map_err(file_error(&scratch))?;
    making.publish(draft)?;
    Ok(making.files(release))
}

/// A file's SHA-256.
fn digest(path: &Path) -> io::Result<[u8; 32]> {
    let (mut file, mut hasher, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; 64 * 1024]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().into()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// The kernel, the modules guests need and the release, each looked at.
pub(super) fn assemble(parts: &Parts<'_>, place: &Path) -> Result<Assembled, KernelError> {
    if parts.image.is_none() {
        let why = "none of its files is or holds a kernel".to_owned();
        return Err(KernelError::Package { path: place.to_owned(), source: OfferError::Refused(why) });
    }
    let modules = (!parts.modules.is_empty()).then(|| parts.modules_dir());
    looked_at(&parts.image_path(), modules.as_deref(), parts.release.as_deref(), place)
}

/// The kernel as a VMM takes it, the modules guests need, and the release.
pub(super) type Assembled = (Vec<u8>, Vec<initramfs::Module>, String);

/// A kernel's file and modules, each looked at; `release` is what its modules are said to be of.
pub(super) fn looked_at(
    image: &Path,
    modules: Option<&Path>,
    of: Option<&str>,
    place: &Path,
) -> Result<Assembled, KernelError> {
    let refused = |source| KernelError::Package { path: place.to_owned(), source };
    let bytes = fs::read(image).map_err(file_error(image))?;
    let vmlinux = bzimage::vmlinux(bytes).map_err(|why| KernelError::Format { path: place.to_owned(), why })?;
    let release = check::kernel(&vmlinux).map_err(refused)?;
    if let Some(other) = of.filter(|other| *other != release) {
        let why = format!("its kernel is {release:?} and its modules are those of {other:?}");
        return Err(refused(OfferError::Refused(why)));
    }
    let modules = modules.map(initramfs::modules).transpose()?.unwrap_or_default();
    modules.iter().try_for_each(|module| check::module(module, &release)).map_err(refused)?;
    Ok((vmlinux, modules, release))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        files::chain,
        kernel::samples::{deb, plain, rpm, tar, vmlinux, xz, zst},
    };

    /// The release that comes out of packages, and how many modules are in its initramfs; or what is wrong.
    fn made(packages: &[&[u8]]) -> Result<(String, usize), String> {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..packages.len()).map(|n| dir.path().join(format!("package-{n}"))).collect();
        for (path, bytes) in paths.iter().zip(packages) {
            fs::write(path, bytes).unwrap();
        }
        let state = dir.path().join("state");
        let outcome = prepare(&state, &paths, b"agent").map_err(|error| chain(&error));
        let left = fs::read_dir(state.join("kernels")).unwrap().count();
        assert_eq!(left, usize::from(outcome.is_ok()), "nothing is left beside it");
        let files = outcome?;
        let archive = fs::read(&files.initramfs).unwrap();
        let inside = fs::read_dir(files.vmlinux.parent().unwrap()).unwrap().count();
        assert_eq!((inside, &archive[..6]), (3, &b"070701"[..]));
        let again = prepare(&state, &paths, b"agent").unwrap();
        assert_eq!((&again.vmlinux, &again.release), (&files.vmlinux, &files.release));
        let other = prepare(&state, &paths, b"another agent").unwrap();
        assert_ne!(other.initramfs, files.initramfs, "each guest-agent has its initramfs");
        Ok((files.release, memchr::memmem::find_iter(&archive, b"vermagic=").count()))
    }

    #[test]
    fn a_kernel_comes_out_of_whatever_a_distribution_ships() {
        let files = tar("6.1.0-9", "6.1.0-9", "", plain);
        for package in [
            deb("data.tar.xz", &xz(&files)),
            deb("data.tar.zst", &zst(&tar("6.1.0-9", "6.1.0-9", ".zst", zst))),
            deb("data.tar", &files),
            rpm(&tar("6.1.0-9", "6.1.0-9", ".xz", xz)),
            xz(&files),
            files.clone(),
        ] {
            assert_eq!(made(&[&package]).unwrap(), ("6.1.0-9".to_owned(), initramfs::MODULES.len()));
        }
        // Its drivers are built in, and that is for the guest to find out.
        assert_eq!(made(&[&vmlinux("6.12.3+")]).unwrap(), ("6.12.3+".to_owned(), 0));
        // Ubuntu and Fedora ship the modules apart from the kernel.
        let mut apart = ::tar::Builder::new(Vec::new());
        for entry in ::tar::Archive::new(&files[..]).entries().unwrap().skip(1) {
            let mut entry = entry.unwrap();
            let (mut header, path) = (entry.header().clone(), entry.path().unwrap().into_owned());
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            apart.append_data(&mut header, path, &bytes[..]).unwrap();
        }
        let modules = deb("data.tar.zst", &zst(&apart.into_inner().unwrap()));
        let both = made(&[&vmlinux("6.1.0-9"), &modules]).unwrap();
        assert_eq!(both, ("6.1.0-9".to_owned(), initramfs::MODULES.len()));
    }

    #[test]
    fn what_is_wrong_with_a_package_is_said_and_leaves_nothing() {
        let good = tar("6.1", "6.1", "", plain);
        let cut = xz(&good);
        let nested = (0..6).fold(good.clone(), |inner, _| {
            let mut outer = ::tar::Builder::new(Vec::new());
            let mut header = ::tar::Header::new_gnu();
            header.set_size(inner.len() as u64);
            outer.append_data(&mut header, "inner", &inner[..]).unwrap();
            outer.into_inner().unwrap()
        });
        let mut other_machine = vmlinux("6.1");
        other_machine[18] = 0xb7;
        let mut no_pvh = vmlinux("6.1");
        no_pvh[128] = 17;
        let mut long = ::tar::Builder::new(Vec::new());
        let mut header = ::tar::Header::new_gnu();
        header.set_entry_type(::tar::EntryType::GNULongName);
        header.set_size(1 << 20);
        header.set_cksum();
        long.append(&header, &vec![b'a'; 1 << 20][..]).unwrap();
        for (packages, why) in [
            (vec![&b"#!/bin/sh"[..]], "is no kernel"),
            (vec![&[]], "is no kernel"),
            (vec![&deb("data.tar.xz", &cut[..cut.len() / 2])], "package-0"),
            (vec![&deb("control", b"")], "has no data"),
            (vec![&[0xed, 0xab, 0xee, 0xdb, 1, 2]], "is damaged"),
            (vec![&[&[0xed, 0xab, 0xee, 0xdb][..], &[0xff; 4000]].concat()], "one of its headers is none"),
            (vec![&good, &good], "two kernels"),
            (vec![&good, &deb("data.tar", &tar("6.2", "6.2", "", plain))], "two kernels"),
            (vec![&nested], "none of its files is or holds a kernel"),
            (vec![&tar("6.1", "6.2", "", plain)], "is for \"6.2\""),
            (vec![&tar("6.1", "6.1", ".xz", plain)[..], &[]], "is no kernel"),
            (vec![&other_machine], "not for this architecture"),
            (vec![&no_pvh], "no PVH entry"),
            (vec![&vmlinux("no release")], "does not say which Linux"),
            (vec![b"\x7fELF\x02\x01\x01\0 and nothing more"], "no ELF file"),
            (vec![&long.into_inner().unwrap()], "a name that is too long"),
        ] as [(Vec<&[u8]>, &str); 16]
        {
            let error = made(&packages).expect_err(why);
            assert!(error.contains(why), "{error} does not say {why}");
        }
    }

    #[test]
    fn packages_whose_headers_lie_are_refused_and_take_no_memory() {
        let ar = |name: &str, size: &str| format!("!<arch>\n{name:<16}{:<32}{size:<10}`\n", "0").into_bytes();
        let cpio = |name_size: &str, size: &str| {
            let header =
                format!("070701{}000041ed{}{size}{}{name_size}00000000", "0".repeat(8), "0".repeat(32), "0".repeat(32));
            assert_eq!(header.len(), 110);
            let mut package = rpm(&::tar::Builder::new(Vec::new()).into_inner().unwrap());
            package.truncate(96 + 40 + 37);
            [package, zst(&[header.as_bytes(), &[0; 4 << 20]].concat())].concat()
        };
        let nested = |count: usize| {
            let inner = deb("data.tar.zst", &zst(&tar_of("x/y", &vec![0; 1 << 20])));
            let mut outer = ::tar::Builder::new(Vec::new());
            for n in 0..count {
                let mut header = ::tar::Header::new_gnu();
                header.set_size(inner.len() as u64);
                outer.append_data(&mut header, format!("a{n}"), &inner[..]).unwrap();
            }
            outer.into_inner().unwrap()
        };
        for (package, why) in [
            // A table of names, a name in the table that is not there, and a name as long as ten digits say.
            (ar("//", "9999999999"), "is damaged"),
            (ar("/123", "0"), "has no data"),
            (ar("#1/9999999999", "9999999999"), "is damaged"),
            (ar("data.tar", "many"), "one of its headers is none"),
            (cpio("ffffffff", "00000000"), "a name that is too long"),
            (cpio("00000004", "ffffffff"), "is cut short"),
            (cpio("0000000z", "00000000"), "has no header"),
        ] {
            let error = made(&[&package]).expect_err(why);
            assert!(error.contains(why), "{error} does not say {why}");
        }
        let dir = tempfile::tempdir().unwrap();
        let taken = |count, cancel: &CancellationToken| {
            let limits = Limits { bytes: 8 << 20, ..Limits::default() };
            let mut parts = Parts::new(dir.path(), limits, cancel.clone());
            parts.file("all", &nested(count)[..]).map_err(|error| chain(&error))
        };
        let cancel = CancellationToken::new();
        taken(5, &cancel).unwrap();
        assert!(taken(12, &cancel).unwrap_err().contains("too much"), "all packages have one budget");
        cancel.cancel();
        assert!(taken(5, &cancel).unwrap_err().contains("told to end"));
    }

    #[test]
    fn modules_are_unpacked_once_and_within_a_bound() {
        let of = |module: &dyn Fn(&str) -> Vec<u8>, ending: &str| {
            let mut archive = ::tar::Builder::new(Vec::new());
            let files =
                initramfs::MODULES.map(|name| (format!("lib/modules/6.1/kernel/{name}.ko{ending}"), module(name)));
            for (path, bytes) in [("boot/vmlinuz".to_owned(), vmlinux("6.1"))].into_iter().chain(files) {
                let mut header = ::tar::Header::new_gnu();
                header.set_size(bytes.len() as u64);
                archive.append_data(&mut header, path, &bytes[..]).unwrap();
            }
            archive.into_inner().unwrap()
        };
        let module = |size: usize| [&b"\0vermagic=6.1 \0"[..], &vec![0; size]].concat();
        assert_eq!(made(&[&of(&|_| zst(&module(1 << 20)), ".zst")]).unwrap().1, initramfs::MODULES.len());
        // What stands there as it is is taken as it is: unpacked, these were too many bytes.
        assert_eq!(made(&[&of(&|_| zst(&module(20 << 20)), "")]).unwrap().1, initramfs::MODULES.len());
        let large = made(&[&of(&|_| zst(&module(20 << 20)), ".zst")]).unwrap_err();
        assert!(large.contains("more than 64 MiB"), "{large}");
    }

    fn tar_of(path: &str, bytes: &[u8]) -> Vec<u8> {
        let mut archive = ::tar::Builder::new(Vec::new());
        let mut header = ::tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, path, bytes).unwrap();
        archive.into_inner().unwrap()
    }

    #[test]
    fn an_offer_is_bounded_in_files_and_bytes() {
        let taken = |limits| {
            let dir = tempfile::tempdir().unwrap();
            let package = deb("data.tar.xz", &xz(&tar("6.1", "6.1", "", plain)));
            Parts::new(dir.path(), limits, CancellationToken::new())
                .file("package", &package[..])
                .map_err(|error| chain(&error))
        };
        let limits = Limits::default();
        taken(limits).unwrap();
        assert!(taken(Limits { entries: 5, ..limits }).unwrap_err().contains("more than 5 files"));
        assert!(taken(Limits { kept: 300, ..limits }).unwrap_err().contains("larger than a kernel may be"));
        assert!(taken(Limits { bytes: 4000, ..limits }).unwrap_err().contains("too much"));
    }
}
