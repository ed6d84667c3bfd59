//! sftp (version 3 with OpenSSH's extensions): guest-agent run once more, as the logged-in user, on standard
//! input and output. The kernel decides what that user may do, and nobody else waits for its disk.

use std::{
    collections::HashMap,
    fs::{self, File, Metadata, OpenOptions, ReadDir},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::ExitCode,
};

use nix::{
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
    sys::{
        stat::{UtimensatFlags, futimens, utimensat},
        time::TimeSpec,
    },
};
use russh_sftp::{
    protocol::{Attrs, Data, FileAttributes, Handle, Name, OpenFlags, Packet, Status, StatusCode, Version},
    server::{Handler, StatusReply},
};
use tokio::{
    net::unix::pipe::{Receiver, Sender},
    sync::oneshot,
};

/// The argument that makes guest-agent an sftp server.
pub const ARGUMENT: &str = "sftp-server";
/// The most open files and directories.
const HANDLES_MAX: usize = 256;
/// The most bytes of one read.
const READ_MAX: u32 = 255 * 1024;
/// How many names one answer lists.
const NAMES_MAX: usize = 100;
/// Permissions a new file or directory gets where the client says nothing; the process' mask is applied.
const FILE_MODE: u32 = 0o666;
const DIRECTORY_MODE: u32 = 0o777;
/// OpenSSH's extensions that are understood.
const POSIX_RENAME: &str = "posix-rename@openssh.com";
const HARD_LINK: &str = "hardlink@openssh.com";
const FSYNC: &str = "fsync@openssh.com";

/// Serves one client on standard input and output, to its end.
pub fn main() -> ExitCode {
    let served = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .and_then(|runtime| runtime.block_on(serve()));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sftp-server: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> io::Result<()> {
    let (input, output): (OwnedFd, OwnedFd) = (nix::unistd::dup(io::stdin())?, nix::unistd::dup(io::stdout())?);
    let stream = tokio::io::join(Receiver::from_owned_fd(input)?, Sender::from_owned_fd(output)?);
    let (ended, end) = oneshot::channel();
    russh_sftp::server::run(stream, Server { open: HashMap::new(), next: 0, _ended: Ended(Some(ended)) }).await;
    // It is over when the library drops the server; that the sender is gone then is all there is to know.
    end.await.map_or(Ok(()), Ok)
}

struct Ended(Option<oneshot::Sender<()>>);

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(ended) = self.0.take() {
            ended.send(()).unwrap_or_default();
        }
    }
}

struct Server {
    open: HashMap<String, Open>,
    next: u64,
    _ended: Ended,
}

enum Open {
    File { file: File, append: bool },
    Directory { path: PathBuf, entries: ReadDir },
}

/// A failure as the client is told.
struct Failure(StatusReply);

impl From<Failure> for StatusReply {
    fn from(failure: Failure) -> Self {
        failure.0
    }
}

impl From<StatusCode> for Failure {
    fn from(code: StatusCode) -> Self {
        Self(code.into())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let code = match error.kind() {
            io::ErrorKind::NotFound => StatusCode::NoSuchFile,
            io::ErrorKind::PermissionDenied => StatusCode::PermissionDenied,
            io::ErrorKind::Unsupported => StatusCode::OpUnsupported,
            _ => StatusCode::Failure,
        };
        Self(StatusReply::new(code).with_message(error.to_string()))
    }
}

impl From<nix::Error> for Failure {
    fn from(errno: nix::Error) -> Self {
        io::Error::from(errno).into()
    }
}

fn done(id: u32) -> Status {
    Status { id, status_code: StatusCode::Ok, error_message: "Ok".into(), language_tag: "en".into() }
}

fn attributes(metadata: &Metadata) -> FileAttributes {
    FileAttributes {
        size: Some(metadata.len()),
        uid: Some(metadata.uid()),
        user: None,
        gid: Some(metadata.gid()),
        group: None,
        permissions: Some(metadata.mode()),
        atime: Some(u32::try_from(metadata.atime()).unwrap_or_default()),
        mtime: Some(u32::try_from(metadata.mtime()).unwrap_or_default()),
    }
}

fn listed(filename: String, attrs: FileAttributes) -> russh_sftp::protocol::File {
    let longname = long_name(&filename, &attrs);
    russh_sftp::protocol::File { filename, longname, attrs }
}

/// A line as `ls -ln` prints it; clients show it to people.
fn long_name(name: &str, attrs: &FileAttributes) -> String {
    let mode = attrs.permissions.unwrap_or_default();
    let kind = match mode & libc::S_IFMT {
        libc::S_IFDIR => 'd',
        libc::S_IFLNK => 'l',
        libc::S_IFCHR => 'c',
        libc::S_IFBLK => 'b',
        libc::S_IFIFO => 'p',
        libc::S_IFSOCK => 's',
        _ => '-',
    };
    let mut line = String::from(kind);
    for (bit, letter) in (0..9).rev().zip("rwxrwxrwx".chars()) {
        line.push(if mode & (1 << bit) != 0 { letter } else { '-' });
    }
    let (uid, gid) = (attrs.uid.unwrap_or_default(), attrs.gid.unwrap_or_default());
    let time = i64::from(attrs.mtime.unwrap_or_default());
    format!("{line}    1 {uid:<8} {gid:<8} {:>8} {} {name}", attrs.size.unwrap_or_default(), date(time))
}

/// `YYYY-MM-DD hh:mm` of a Unix time, in UTC (Howard Hinnant's civil_from_days).
fn date(time: i64) -> String {
    let (days, seconds) = (time.div_euclid(86400) + 719_468, time.rem_euclid(86400));
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) =
        (day_of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}", seconds / 3600, seconds / 60 % 60)
}

/// Both times of a file; the protocol sets them together.
fn times(attrs: &FileAttributes) -> Option<(TimeSpec, TimeSpec)> {
    Some((TimeSpec::new(i64::from(attrs.atime?), 0), TimeSpec::new(i64::from(attrs.mtime?), 0)))
}

fn set_by_path(path: &Path, attrs: &FileAttributes) -> Result<(), Failure> {
    if let Some(size) = attrs.size {
        OpenOptions::new().write(true).open(path)?.set_len(size)?;
    }
    if let (Some(uid), Some(gid)) = (attrs.uid, attrs.gid) {
        std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
    }
    if let Some(mode) = attrs.permissions {
        fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some((atime, mtime)) = times(attrs) {
        utimensat(AT_FDCWD, path, &atime, &mtime, UtimensatFlags::FollowSymlink)?;
    }
    Ok(())
}

fn set_by_file(file: &File, attrs: &FileAttributes) -> Result<(), Failure> {
    if let Some(size) = attrs.size {
        file.set_len(size)?;
    }
    if let (Some(uid), Some(gid)) = (attrs.uid, attrs.gid) {
        std::os::unix::fs::fchown(file, Some(uid), Some(gid))?;
    }
    if let Some(mode) = attrs.permissions {
        file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some((atime, mtime)) = times(attrs) {
        futimens(file, &atime, &mtime)?;
    }
    Ok(())
}

/// The absolute path without links; its last part need not exist.
fn real_path(path: &str) -> io::Result<PathBuf> {
    let path = Path::new(if path.is_empty() { "." } else { path });
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent =
                path.parent().map_or(Path::new("."), |p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
            match path.file_name() {
                Some(name) => Ok(fs::canonicalize(parent)?.join(name)),
                None => Err(error),
            }
        }
        outcome => outcome,
    }
}

/// Takes strings off an extension's data: four bytes of length, then so many bytes.
fn strings<const COUNT: usize>(mut data: &[u8]) -> Result<[String; COUNT], Failure> {
    let mut found = [const { String::new() }; COUNT];
    for string in &mut found {
        let (length, rest) = data.split_first_chunk::<4>().ok_or(StatusCode::BadMessage)?;
        let length = u32::from_be_bytes(*length) as usize;
        let bytes = rest.get(..length).ok_or(StatusCode::BadMessage)?;
        *string = String::from_utf8(bytes.to_vec()).map_err(|_| StatusCode::BadMessage)?;
        data = &rest[length..];
    }
    Ok(found)
}

impl Server {
    fn insert(&mut self, id: u32, open: Open) -> Result<Handle, Failure> {
        if self.open.len() >= HANDLES_MAX {
            return Err(io::Error::other("too many open files").into());
        }
        self.next += 1;
        let handle = self.next.to_string();
        self.open.insert(handle.clone(), open);
        Ok(Handle { id, handle })
    }

    fn file(&self, handle: &str) -> Result<(&File, bool), Failure> {
        match self.open.get(handle) {
            Some(Open::File { file, append }) => Ok((file, *append)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "no such open file").into()),
        }
    }
}

impl Handler for Server {
    type Error = Failure;

    fn unimplemented(&self) -> Self::Error {
        StatusCode::OpUnsupported.into()
    }

    async fn init(&mut self, _: u32, _: HashMap<String, String>) -> Result<Version, Self::Error> {
        let mut version = Version::new();
        for extension in [POSIX_RENAME, HARD_LINK, FSYNC] {
            version.extensions.insert(extension.into(), "1".into());
        }
        Ok(version)
    }

    async fn open(
        &mut self,
        id: u32,
        path: String,
        flags: OpenFlags,
        attrs: FileAttributes,
    ) -> Result<Handle, Self::Error> {
        let append = flags.contains(OpenFlags::APPEND);
        let mut options = OpenOptions::from(flags);
        options.mode(attrs.permissions.unwrap_or(FILE_MODE) & 0o7777);
        let file = options.open(&path)?;
        self.insert(id, Open::File { file, append })
    }

    async fn close(&mut self, id: u32, handle: String) -> Result<Status, Self::Error> {
        match self.open.remove(&handle) {
            Some(_) => Ok(done(id)),
            None => Err(StatusCode::Failure.into()),
        }
    }

    async fn read(&mut self, id: u32, handle: String, offset: u64, length: u32) -> Result<Data, Self::Error> {
        let (file, _) = self.file(&handle)?;
        let mut data = vec![0; length.min(READ_MAX) as usize];
        let read = file.read_at(&mut data, offset)?;
        if read == 0 && length > 0 {
            return Err(StatusCode::Eof.into());
        }
        data.truncate(read);
        Ok(Data { id, data })
    }

    async fn write(&mut self, id: u32, handle: String, offset: u64, data: Vec<u8>) -> Result<Status, Self::Error> {
        match self.file(&handle)? {
            (mut file, true) => io::Write::write_all(&mut file, &data)?,
            (file, false) => file.write_all_at(&data, offset)?,
        }
        Ok(done(id))
    }

    async fn lstat(&mut self, id: u32, path: String) -> Result<Attrs, Self::Error> {
        Ok(Attrs { id, attrs: attributes(&fs::symlink_metadata(path)?) })
    }

    async fn stat(&mut self, id: u32, path: String) -> Result<Attrs, Self::Error> {
        Ok(Attrs { id, attrs: attributes(&fs::metadata(path)?) })
    }

    async fn fstat(&mut self, id: u32, handle: String) -> Result<Attrs, Self::Error> {
        Ok(Attrs { id, attrs: attributes(&self.file(&handle)?.0.metadata()?) })
    }

    async fn setstat(&mut self, id: u32, path: String, attrs: FileAttributes) -> Result<Status, Self::Error> {
        set_by_path(Path::new(&path), &attrs).map(|()| done(id))
    }

    async fn fsetstat(&mut self, id: u32, handle: String, attrs: FileAttributes) -> Result<Status, Self::Error> {
        set_by_file(self.file(&handle)?.0, &attrs).map(|()| done(id))
    }

    async fn opendir(&mut self, id: u32, path: String) -> Result<Handle, Self::Error> {
        let entries = fs::read_dir(&path)?;
        self.insert(id, Open::Directory { path: path.into(), entries })
    }

    async fn readdir(&mut self, id: u32, handle: String) -> Result<Name, Self::Error> {
        let Some(Open::Directory { path, entries }) = self.open.get_mut(&handle) else {
            return Err(StatusCode::Failure.into());
        };
        let mut files = Vec::new();
        for entry in entries.by_ref() {
            // The protocol's names are text here; one that is not could not be asked for again.
            let Ok(name) = entry?.file_name().into_string() else { continue };
            if let Ok(metadata) = fs::symlink_metadata(path.join(&name)) {
                files.push(listed(name, attributes(&metadata)));
            }
            if files.len() >= NAMES_MAX {
                break;
            }
        }
        if files.is_empty() { Err(StatusCode::Eof.into()) } else { Ok(Name { id, files }) }
    }

    async fn remove(&mut self, id: u32, path: String) -> Result<Status, Self::Error> {
        fs::remove_file(path)?;
        Ok(done(id))
    }

    async fn mkdir(&mut self, id: u32, path: String, attrs: FileAttributes) -> Result<Status, Self::Error> {
        let mode = attrs.permissions.unwrap_or(DIRECTORY_MODE) & 0o7777;
        std::os::unix::fs::DirBuilderExt::mode(&mut fs::DirBuilder::new(), mode).create(path)?;
        Ok(done(id))
    }

    async fn rmdir(&mut self, id: u32, path: String) -> Result<Status, Self::Error> {
        fs::remove_dir(path)?;
        Ok(done(id))
    }

    async fn realpath(&mut self, id: u32, path: String) -> Result<Name, Self::Error> {
        let real = real_path(&path)?.into_os_string().into_string().map_err(|_| StatusCode::Failure)?;
        Ok(Name { id, files: vec![listed(real, FileAttributes::default())] })
    }

    async fn rename(&mut self, id: u32, from: String, to: String) -> Result<Status, Self::Error> {
        // Version 3's rename never replaces.
        renameat2(AT_FDCWD, from.as_str(), AT_FDCWD, to.as_str(), RenameFlags::RENAME_NOREPLACE)?;
        Ok(done(id))
    }

    async fn readlink(&mut self, id: u32, path: String) -> Result<Name, Self::Error> {
        let target = fs::read_link(path)?.into_os_string().into_string().map_err(|_| StatusCode::Failure)?;
        Ok(Name { id, files: vec![listed(target, FileAttributes::default())] })
    }

    /// OpenSSH sends the target first, against the draft, and so does everybody since.
    async fn symlink(&mut self, id: u32, target: String, link: String) -> Result<Status, Self::Error> {
        std::os::unix::fs::symlink(target, link)?;
        Ok(done(id))
    }

    async fn extended(&mut self, id: u32, request: String, data: Vec<u8>) -> Result<Packet, Self::Error> {
        match request.as_str() {
            POSIX_RENAME => {
                let [from, to] = strings(&data)?;
                fs::rename(from, to)?;
            }
            HARD_LINK => {
                let [from, to] = strings(&data)?;
                fs::hard_link(from, to)?;
            }
            FSYNC => {
                let [handle] = strings(&data)?;
                self.file(&handle)?.0.sync_all()?;
            }
            _ => return Err(StatusCode::OpUnsupported.into()),
        }
        Ok(Packet::Status(done(id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extension_strings_are_bounded_by_their_data() {
        let Ok([a, b]) = strings::<2>(b"\0\0\0\x01a\0\0\0\0") else { panic!("two strings") };
        assert_eq!((a.as_str(), b.as_str()), ("a", ""));
        assert!(strings::<1>(b"\xff\xff\xff\xffa").is_err());
        assert!(strings::<1>(b"\0\0").is_err());
        assert!(strings::<1>(b"\0\0\0\x01\xff").is_err());
    }

    #[test]
    fn a_listing_reads_like_ls() {
        let attrs =
            FileAttributes { permissions: Some(0o120_777), mtime: Some(951_782_400), ..FileAttributes::empty() };
        let line = long_name("link", &attrs);
        assert!(line.starts_with("lrwxrwxrwx ") && line.ends_with("2000-02-29 00:00 link"), "{line}");
        assert_eq!(date(4_294_967_295), "2106-02-07 06:28");
    }

    #[test]
    fn a_real_path_may_lack_its_last_part() {
        let directory = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(directory.path()).unwrap();
        let new = root.join("a/../new");
        fs::create_dir(root.join("a")).unwrap();
        assert_eq!(real_path(new.to_str().unwrap()).unwrap(), root.join("new"));
        assert!(real_path(root.join("no/new").to_str().unwrap()).is_err());
    }
}
