//! The **tar program**, which keeps all that a directory's files are: owners, extended attributes, hard links, devices, times.

use std::{
    io::{self, Read},
    path::Path,
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

/// The first thing it complains of. Reads to the end.
pub fn complaint(mut stderr: impl Read) -> String {
    let mut text = Vec::new();
    let read = stderr.by_ref().take(SAID).read_to_end(&mut text).and_then(|_| io::copy(&mut stderr, &mut io::sink()));
    tracing::trace!(?read, "what tar said was read");
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(200).collect()
}
