//! An **offer** is what somebody hands in as a kernel: packages (.deb, .rpm), archives of a package's files, or a bare vmlinux or bzImage.
//! Of all that only the kernel and its modules are kept; nothing in it is trusted.
//!
//! No name of an offer becomes a path before each of its parts is looked at, no link is ever made, and what is read, kept and counted
//! is bounded, so that a hostile package can at most be refused.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Cursor, Read},
    path::{Path, PathBuf},
};

use tokio_util::sync::CancellationToken;

use super::{
    bzimage,
    initramfs::MODULE_MAX,
    packages::{self, Budget, Inside},
    packed,
};

/// What an offer may ask of this host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The most unpacked bytes of all it holds, those left out and those of packages in archives counted.
    pub bytes: u64,
    /// The most files in it.
    pub entries: u64,
    /// The most bytes kept: the kernel and its unpacked modules.
    pub kept: u64,
}

impl Default for Limits {
    /// Three times the largest a distribution has: Ubuntu's generic modules unpack to about 700 MB in 7000 files.
    fn default() -> Self {
        Self { bytes: 4 << 30, entries: 50_000, kept: 2 << 30 }
    }
}

/// The longest path in an offer, in bytes.
const PATH_MAX: usize = 1024;
/// How much of a file is looked at to tell what it is: the magic of a bzImage is at 0x202.
const HEAD: usize = 0x400;
/// Archives may be in archives: the tar of a stream, a package in it, and the archive in that.
const DEPTH_MAX: u32 = 3;

/// Why an offer is refused.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// It is not what it should be; in words.
    #[error("{0}")]
    Refused(String),
    /// It cannot be read or its parts not be written.
    #[error("{what}")]
    Io {
        /// What was done.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

pub(super) fn refuse<T>(why: impl Into<String>) -> Result<T, OfferError> {
    Err(OfferError::Refused(why.into()))
}

pub(super) fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> OfferError {
    move |source| OfferError::Io { what: what.into(), source }
}

/// The parts kept so far, in a directory of their own: `image`, and `modules/…` as below `lib/modules/<release>`.
pub(super) struct Parts<'a> {
    dir: &'a Path,
    limits: Limits,
    budget: Budget,
    entries: u64,
    kept: u64,
    /// Where the kernel stood in the offer.
    pub image: Option<String>,
    /// The release its modules are of.
    pub release: Option<String>,
    /// The modules' files, by their path below the release's directory.
    pub modules: BTreeSet<String>,
}

impl<'a> Parts<'a> {
    /// Nothing yet, in an empty directory; what is unpacked is so until that is cancelled.
    pub fn new(dir: &'a Path, limits: Limits, cancel: CancellationToken) -> Self {
        let (image, release, modules) = (None, None, BTreeSet::new());
        let budget = Budget::new(limits.bytes, cancel);
        Self { dir, limits, budget, entries: 0, kept: 0, image, release, modules }
    }

    /// Where the kernel is kept.
    pub fn image_path(&self) -> PathBuf {
        self.dir.join("image")
    }

    /// Where the modules are kept.
    pub fn modules_dir(&self) -> PathBuf {
        self.dir.join("modules")
    }

    /// Takes a file that was handed in by itself: what it is is told by its content.
    pub fn file(&mut self, name: &str, bytes: impl Read) -> Result<(), OfferError> {
        self.nested(name, bytes, 0)
    }

    fn nested(&mut self, name: &str, mut bytes: impl Read, depth: u32) -> Result<(), OfferError> {
        if depth > DEPTH_MAX {
            return refuse(format!("{} is an archive in an archive in an archive", shown(name)));
        }
        let mut head = Vec::new();
        let unreadable = || format!("{} cannot be read", shown(name));
        (&mut bytes).take(HEAD as u64).read_to_end(&mut head).map_err(failed(unreadable()))?;
        let (is_kernel, is_deb, is_rpm) = (
            head.starts_with(b"\x7fELF") || bzimage::is_bzimage(&head),
            head.starts_with(b"!<arch>\n"),
            head.starts_with(&packages::RPM_MAGIC),
        );
        let is_archive = packed::is_packed(&head) || head.get(257..262).is_some_and(|magic| magic == b"ustar");
        // Boxed, as the parts of archives come here again.
        let all: Box<dyn Read + '_> = Box::new(Cursor::new(head).chain(bytes));
        if is_kernel {
            return self.keep_image(name, all);
        }
        let mut all = BufReader::with_capacity(64 * 1024, all);
        let budget = self.budget.clone();
        let mut take = |path: &str, inside: &mut dyn Read| match inside_path(path) {
            // Of an archive in a stream or package only the files of a package count; by itself it may hold packages.
            Some(_) => self.entry(path, inside),
            None if depth == 0 && !path.contains('/') => {
                self.count()?;
                self.nested(path, inside, depth + 1)
            }
            None => self.skip(inside),
        };
        if is_deb {
            packages::deb(&mut all, &budget, &mut take)
        } else if is_rpm {
            packages::rpm(&mut all, &budget, &mut take)
        } else if is_archive {
            let unpacked = packed::open(all).map_err(failed(unreadable()))?;
            packages::tar(budget.of(unpacked), &mut take)
        } else {
            refuse(format!(
                "{} is no kernel (vmlinux or bzImage), no package (.deb or .rpm) and no archive of a package's files",
                shown(name)
            ))
        }
    }

    /// Takes or leaves a file of a package or of an unpacked one, by its path.
    pub fn entry(&mut self, path: &str, mut bytes: &mut dyn Read) -> Result<(), OfferError> {
        self.count()?;
        match inside_path(path) {
            Some(Inside::Image { release }) => {
                if let Some(release) = release {
                    self.of_release(release)?;
                }
                self.keep_image(path, &mut bytes)
            }
            Some(Inside::Module { release, below }) => {
                self.of_release(release)?;
                self.keep_module(below, bytes)
            }
            None => self.skip(bytes),
        }
    }

    fn count(&mut self) -> Result<(), OfferError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return refuse(format!("it holds more than {} files", self.limits.entries));
        }
        Ok(())
    }

    /// Reads over what is not wanted; how much that may be is the archive's budget.
    fn skip(&mut self, bytes: &mut dyn Read) -> Result<(), OfferError> {
        self.count()?;
        io::copy(bytes, &mut io::sink()).map_err(failed("it cannot be unpacked")).map(drop)
    }

    fn of_release(&mut self, release: &str) -> Result<(), OfferError> {
        match &self.release {
            Some(known) if known != release => {
                refuse(format!("it holds the modules of two kernels, {known} and {release}: import one at a time"))
            }
            Some(_) => Ok(()),
            None => {
                self.release = Some(release.to_owned());
                Ok(())
            }
        }
    }

    fn keep_image(&mut self, path: &str, bytes: impl Read) -> Result<(), OfferError> {
        if let Some(other) = &self.image {
            return refuse(format!("it holds two kernels, {} and {}: import one at a time", shown(other), shown(path)));
        }
        self.image = Some(path.to_owned());
        let to = self.image_path();
        self.write(path, &to, bytes, bzimage::KERNEL_MAX as u64)
    }

    fn keep_module(&mut self, below: &str, bytes: &mut dyn Read) -> Result<(), OfferError> {
        // Kept unpacked, so that the same modules are the same kernel however they were packed.
        let plain = below.find(".ko.").map_or(below, |end| &below[..end + 3]).to_owned();
        let to = self.modules_dir().join(&plain);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(failed(format!("{} cannot be made", parent.display())))?;
        }
        if !self.modules.insert(plain) {
            return refuse(format!("it holds the module {} twice", shown(below)));
        }
        let unpacked: Box<dyn Read + '_> = match below.contains(".ko.") {
            true => {
                let unpacked =
                    packed::open(BufReader::new(bytes)).map_err(failed(format!("{} is damaged", shown(below))))?;
                Box::new(self.budget.of(unpacked))
            }
            false => Box::new(bytes),
        };
        self.write(below, &to, unpacked, MODULE_MAX as u64)
    }

    fn write(&mut self, name: &str, to: &Path, bytes: impl Read, max: u64) -> Result<(), OfferError> {
        let mut file = create(to).map_err(failed(format!("{} cannot be written", to.display())))?;
        let room = max.min(self.limits.kept - self.kept);
        let written = io::copy(&mut bytes.take(room + 1), &mut file)
            .map_err(failed(format!("{} cannot be unpacked", shown(name))))?;
        if written > room {
            return refuse(format!("with {} it is larger than a kernel may be ({} MiB)", shown(name), room >> 20));
        }
        self.kept += written;
        Ok(())
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

/// What the file of that path in a package is to a kernel; nothing for all else.
fn inside_path(path: &str) -> Option<Inside<'_>> {
    let path = path.strip_prefix("./").or_else(|| path.strip_prefix('/')).unwrap_or(path);
    let path = path.strip_prefix("usr/").unwrap_or(path);
    if path.len() > PATH_MAX
        || path.contains(char::is_control)
        || path.split('/').any(|part| matches!(part, "" | "." | ".."))
    {
        return None;
    }
    if let Some(file) = path.strip_prefix("boot/") {
        return (file.starts_with("vmlinu") && !file.contains('/')).then_some(Inside::Image { release: None });
    }
    let (release, below) = path.strip_prefix("lib/modules/")?.split_once('/')?;
    if matches!(below, "vmlinuz" | "vmlinux") {
        return Some(Inside::Image { release: Some(release) });
    }
    let list = matches!(below, "modules.builtin" | "modules.builtin.modinfo" | "modules.order");
    let name = below.rsplit('/').next().unwrap_or(below);
    let module = below.starts_with("kernel/")
        && [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().any(|ending| name.ends_with(ending));
    (list || module).then_some(Inside::Module { release, below })
}

/// The beginning of a name that may be hostile.
pub(super) fn shown(name: &str) -> String {
    format!("{:?}", name.chars().take(120).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kernel_and_its_modules_are_taken_whatever_they_are_called() {
        let is = |path| inside_path(path).is_some();
        assert!(is("./boot/vmlinuz-6.1.0") && is("boot/vmlinux-6") && is("usr/lib/modules/6.1/vmlinuz"));
        assert!(is("lib/modules/6.1/kernel/drivers/a.ko.zst") && is("/usr/lib/modules/6.1/modules.builtin"));
        for path in [
            "boot/vmlinuz/x",
            "boot/../boot/vmlinuz",
            "lib/modules/6.1/kernel/../../../../etc/x.ko",
            "lib/modules/../kernel/a.ko",
            "etc/passwd",
            "boot/initrd.img-6",
            "lib/modules/6.1/source",
            "lib/modules/6.1/kernel//a.ko",
            "lib/modules/6.1/modules.dep",
            "boot/config-6",
            "lib/modules/6.1/updates/a.ko",
            "lib/modules/6.1/kernel/a.ko\n0123  kernel/b.ko",
        ] {
            assert!(!is(path), "{path}");
        }
    }
}
