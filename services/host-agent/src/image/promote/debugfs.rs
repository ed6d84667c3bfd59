//! Conversations with `debugfs`, by which the inside of a filesystem is looked at and changed without mounting it. It follows links
//! within that filesystem only.
//!
//! Whatever a guest chose never becomes part of a script: scripts name constant paths, and entries whose names are [`plain`].

use contract::ApiError;

use crate::image::tool::{Given, Patient};

const PROGRAM: &str = "debugfs";

/// What kind of thing an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Link,
    Other,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub name: String,
    pub kind: Kind,
    /// The permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// Whether a name means to `debugfs` what it says: nothing that it or its quoting would take for something else.
pub(super) fn plain(name: &str) -> bool {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "._-:@+=,~".contains(c);
    !name.is_empty() && name.len() <= 255 && !matches!(name, "." | "..") && name.chars().all(harmless)
}

/// A filesystem in conversation.
pub(super) struct Inside<'a>(pub &'a Patient<'a>);

impl Inside<'_> {
    /// The entries of a directory with [`plain`] names, whatever links lead there; none where there is no directory.
    ///
    /// # Errors
    /// The tool cannot be run; `failed_precondition` where there are too many.
    pub(super) fn list(&self, dir: &str) -> Result<Vec<Entry>, ApiError> {
        // The dot, so that a link at the end is followed too.
        let said = self.0.run(PROGRAM, &["-R", &format!("ls -p {dir}/.")], &[], b"", &[])?;
        if said.cut {
            // What was not seen may be what is to be taken out.
            let message = format!("the VM's disk has more entries in {dir}/ than can be looked at");
            return Err(ApiError::failed_precondition(message).hint("take away those that are not needed there"));
        }
        Ok(said.output.split(|byte| *byte == b'\n').filter_map(entry).collect())
    }

    /// The entry of that name in a directory.
    ///
    /// # Errors
    /// As [`Inside::list`].
    pub(super) fn find(&self, dir: &str, name: &str) -> Result<Option<Entry>, ApiError> {
        Ok(self.list(dir)?.into_iter().find(|entry| entry.name == name))
    }

    /// A file's content, which is text and short; nothing where it is something else or longer than a few megabytes.
    ///
    /// # Errors
    /// The tool cannot be run.
    pub(super) fn read(&self, dir: &str, name: &str) -> Result<Option<String>, ApiError> {
        const LONGEST: usize = 1 << 20;
        let Some(Entry { kind: Kind::File, .. }) = self.find(dir, name)? else { return Ok(None) };
        let said = self.0.run(PROGRAM, &["-R", &format!("cat {dir}/./{name}")], &[], b"", &[])?;
        // Its own banner goes to the same place, in the first line.
        let content = match said.output.iter().position(|byte| *byte == b'\n') {
            Some(end) if said.output.starts_with(b"debugfs ") => &said.output[end + 1..],
            _ => &said.output[..],
        };
        if content.len() > LONGEST {
            return Ok(None);
        }
        Ok(std::str::from_utf8(content).ok().map(str::to_owned))
    }

    /// Runs a script that changes the filesystem.
    ///
    /// # Errors
    /// The tool cannot be run, or was ended by one of its limits. What a command of it did not do shows when it is looked at again.
    pub(super) fn change(&self, script: &str, given: &[Given]) -> Result<(), ApiError> {
        let said = self.0.run(PROGRAM, &["-w", "-f", "-"], &[], script.as_bytes(), given)?;
        match said.code() {
            Some(0) => {
                tracing::trace!(output = %String::from_utf8_lossy(&said.output), "changed a filesystem");
                Ok(())
            }
            _ => Err(ApiError::invalid_argument(format!(
                "the disk's filesystem cannot be changed: {}",
                said.last_line()
            ))),
        }
    }

    /// Puts a file with that content in a directory that is there, in place of what has its name.
    ///
    /// # Errors
    /// As [`Inside::change`], and that it is not there afterwards.
    pub(super) fn put(&self, dir: &str, name: &str, content: &[u8], like: &Like) -> Result<(), ApiError> {
        let given = Given::new(content).map_err(|error| ApiError::internal(format!("no memory is left: {error}")))?;
        let mut script = String::new();
        if self.find(dir, name)?.is_some() {
            script.push_str(&format!("rm {dir}/./{name}\n"));
        }
        script.push_str(&format!("cd {dir}/.\nwrite {} {name}\n", given.path()));
        for (field, value) in [
            ("mode", format!("0{:o}", 0o100_000 | like.mode)),
            ("uid", like.uid.to_string()),
            ("gid", like.gid.to_string()),
        ] {
            script.push_str(&format!("set_inode_field {name} {field} {value}\n"));
        }
        self.change(&script, &[given])?;
        match self.find(dir, name)? {
            Some(Entry { kind: Kind::File, mode, uid, gid, .. })
                if (mode, uid, gid) == (like.mode, like.uid, like.gid) =>
            {
                Ok(())
            }
            _ => Err(ApiError::invalid_argument(format!("{dir}/{name} cannot be written in the disk's filesystem"))
                .hint("is the disk full, or is something there that is no file?")),
        }
    }
}

/// Whose a file is and who may do what with it.
pub(super) struct Like {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// Reads a line of `ls -p`: `/inode/mode/uid/gid/name/size/`. As no name has a slash, no name can pass for another line.
fn entry(line: &[u8]) -> Option<Entry> {
    let line = std::str::from_utf8(line).ok()?;
    let fields: Vec<&str> = line.split('/').collect();
    let ["", inode, mode, uid, gid, name, _size, ""] = fields[..] else { return None };
    // 0: removed.
    if inode.parse::<u64>().ok()? == 0 || !plain(name) {
        return None;
    }
    let mode = u32::from_str_radix(mode, 8).ok()?;
    let kind = match mode & 0o170_000 {
        0o100_000 => Kind::File,
        0o040_000 => Kind::Directory,
        0o120_000 => Kind::Link,
        _ => Kind::Other,
    };
    let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
    Some(Entry { name: name.to_owned(), kind, mode: mode & 0o7777, uid, gid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_with_plain_names_are_entries() {
        let file = entry(b"/12/100600/0/7/ssh_host_rsa_key/4/").unwrap();
        assert_eq!((file.kind, file.mode, file.uid, file.gid), (Kind::File, 0o600, 0, 7));
        assert_eq!(entry(b"/13/120777/0/0/instance/4/").unwrap().kind, Kind::Link);
        for hostile in [
            &b"/12/100600/0/0/a\"b/4/"[..],
            b"/12/100600/0/0/a b/4/",
            b"/12/100600/0/0/../4/",
            b"/12/100600/0/0/\xff/4/",
            b"/0/0/0/0/gone/4/",
            b"ssh_host_x/4/",
            b"/12/100600/0/0/first half of a name",
            b"debugfs 1.47.0 (5-Feb-2023)",
        ] {
            assert_eq!(entry(hostile), None, "{}", String::from_utf8_lossy(hostile));
        }
    }
}
