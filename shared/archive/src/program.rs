//! The **tar program**, which keeps all that a directory's files are: owners, extended attributes, hard links, devices, times.

use std::{
    ffi::OsString,
    io::{self, Read},
    os::unix::{ffi::OsStringExt, fs::MetadataExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// How it is told to keep everything: pax(1) headers have what older ones cannot, sockets have no place in an archive, and no link is followed.
const ARGUMENTS: [&str; 9] = [
    "--create",
    "--format=pax",
    "--pax-option=delete=atime,delete=ctime",
    "--numeric-owner",
    "--xattrs",
    "--xattrs-include=*",
    "--sort=name",
    "--warning=no-file-ignored",
    "--one-file-system",
];
/// Filesystems whose files a kernel makes up.
const MADE_UP: [&str; 16] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "proc",
    "securityfs",
    "sysfs",
    "tracefs",
];
/// Bytes of what it says that are kept.
const SAID: u64 = 64 << 10;

/// Its exit code where files changed while they were read (tar(1)).
pub const CHANGED: i32 = 1;

/// The program, as it writes all that is below a directory to its standard output; what it complains of comes from its standard error.
pub fn whole(directory: &Path) -> Command {
    let mut command = Command::new("tar");
    command.args(ARGUMENTS).args(["--file=-", "."]).env("LC_ALL", "C").current_dir(directory);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What is mounted below a directory and would be missing in its archive, which stays on one filesystem: all but what a kernel makes up, as
/// `/proc` and `/dev`, which a machine gets anew. Nothing where mounts cannot be listed.
pub fn mounted_below(directory: &Path) -> Vec<PathBuf> {
    let (Ok(directory), Ok(table)) = (directory.canonicalize(), std::fs::read("/proc/self/mountinfo")) else {
        return Vec::new();
    };
    let device = |path: &Path| path.symlink_metadata().map(|metadata| metadata.dev()).ok();
    let (below, here) = (|at: &PathBuf| at.starts_with(&directory) && *at != directory, device(&directory));
    let mounts = table.split(|byte| *byte == b'\n').filter_map(mount);
    mounts.filter(below).filter(|at| device(at) != here).collect()
}

/// Where something is mounted, by a line of proc_pid_mountinfo(5); nothing for what a kernel makes up.
fn mount(line: &[u8]) -> Option<PathBuf> {
    let mut fields = line.split(|byte| *byte == b' ');
    let at = fields.nth(4)?;
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    if MADE_UP.iter().any(|made_up| made_up.as_bytes() == kind) {
        return None;
    }
    let (mut path, mut rest) = (Vec::with_capacity(at.len()), at);
    while let Some((byte, more)) = rest.split_first() {
        // Spaces and their like stand there as a backslash and three octal digits.
        let digits = more.get(..3).filter(|_| *byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        path.push(escaped.unwrap_or(*byte));
        rest = if escaped.is_some() { &more[3..] } else { more };
    }
    Some(PathBuf::from(OsString::from_vec(path)))
}

/// The first thing it complains of. Reads to the end.
pub fn complaint(mut stderr: impl Read) -> String {
    let mut text = Vec::new();
    let read = stderr.by_ref().take(SAID).read_to_end(&mut text).and_then(|_| io::copy(&mut stderr, &mut io::sink()));
    tracing::trace!(?read, "what tar said was read");
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_below_a_directory_is_found() {
        let line = br"36 35 98:0 / /srv/a\040b\134c rw,noatime master:1 - ext4 /dev/sda rw,errors=continue";
        assert_eq!(mount(line), Some(PathBuf::from(r"/srv/a b\c")));
        assert_eq!(mount(b"36 35 0:5 / /srv/dev rw - devtmpfs udev rw"), None);
        assert_eq!(mount(b""), None);
        // On every Linux something is mounted below the root that is none of a kernel's inventions, or nothing is at all.
        assert!(mounted_below(Path::new("/proc/self/fd")).is_empty());
        assert!(mounted_below(Path::new("/")).iter().all(|at| at.is_absolute() && at != Path::new("/")));
    }
}
