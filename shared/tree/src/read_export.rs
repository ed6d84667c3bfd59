//! The client's end of an export. A guest may send anything: nothing here is believed that is not checked, nothing is written but regular
//! files with checked names below a directory of our own, and nothing grows beyond its limit.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use contract::{
    FileName,
    worktree::{Change, ChangeList, Node},
};
use tar::EntryType;

use crate::{
    BlobHasher, Mtime, ReadError,
    entry::{PATH_MAX, check_node, check_path, parent},
    export::LIST,
    repo::{is_id, is_object_file},
    row::is_git,
};

mod list;

/// What an export may have at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Changes.
    pub entries: u64,
    /// Bytes of all files, objects of commits included.
    pub bytes: u64,
}

/// Bytes of the list that each change may take, and that there may be in any case.
const LIST_BYTES: (u64, u64) = (2 * PATH_MAX as u64 + 1024, 1 << 20);
/// The longest list, in bytes: some hundred thousand changes.
const LIST_MAX: u64 = 128 << 20;
/// The most files of objects.
const OBJECTS_MAX: u64 = 1_000_000;
/// Bytes of headers that each file may take: its own, and a long name's with its blocks.
const HEADERS: u64 = 512 * 10;
/// How much is moved at once, in bytes.
const CHUNK: usize = 128 * 1024;
/// The longest text of the guest's in a list, in bytes.
const TEXT_MAX: usize = 4096;

/// The client's end of an export: changed files come to be below `quarantine/tree`, objects of commits below `quarantine/git/objects`, and
/// nothing anywhere else. `quarantine` has to be an empty directory of nobody else's. Files have mode 0600 whatever the list says of them;
/// links are in the list only. Each file has the size and digest that the list says. Blocking.
///
/// # Errors
/// See the variants; what is in the quarantine is of no use then.
pub fn read_export(from_guest: impl Read, quarantine: &Path, limits: Limits) -> Result<ChangeList, ReadError> {
    let most =
        LIST_MAX.saturating_add(limits.bytes).saturating_add((limits.entries + OBJECTS_MAX).saturating_mul(HEADERS));
    let mut archive = tar::Archive::new(Bounded { from: from_guest, left: most });
    // Raw: what stands for another entry's name or size is looked at here and not taken into memory unseen.
    let entries = archive.entries().map_err(damaged)?.raw(true);
    let mut reader =
        Reader { quarantine, limits, list: None, expected: 0, files: Vec::new(), bytes: 0, objects: HashSet::new() };
    let mut long = None;
    for entry in entries {
        let mut entry = entry.map_err(damaged)?;
        if entry.header().entry_type() == EntryType::GNULongName {
            if long.is_some() {
                return hostile("a name follows a name");
            }
            long = Some(long_name(&mut entry)?);
            continue;
        }
        let name = long.take().unwrap_or_else(|| entry.header().path_bytes().into_owned());
        if !matches!(entry.header().entry_type(), EntryType::Regular) {
            return hostile(format!("{} is no regular file", shown(&name)));
        }
        let size = entry.header().entry_size().map_err(damaged)?;
        reader.entry(&name, size, &mut entry)?;
    }
    if long.is_some() {
        return hostile("its last name has no file");
    }
    reader.finish()
}

fn hostile<T>(why: impl Into<String>) -> Result<T, ReadError> {
    Err(ReadError::Hostile(why.into()))
}

fn damaged(error: io::Error) -> ReadError {
    if error.get_ref().is_some_and(|inner| inner.is::<OverLimit>()) {
        return ReadError::TooMuch("its limits allow".to_owned());
    }
    ReadError::Stream(error)
}

fn shown(name: &[u8]) -> String {
    crate::wire::text(name)
}

#[derive(Debug, thiserror::Error)]
#[error("more came than is taken")]
struct OverLimit;

/// A reader that fails after so many bytes.
struct Bounded<R> {
    from: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| io::Error::other(OverLimit))?;
        Ok(count)
    }
}

fn long_name(entry: &mut impl Read) -> Result<Vec<u8>, ReadError> {
    let mut name = Vec::new();
    entry.take(PATH_MAX as u64 + 64).read_to_end(&mut name).map_err(damaged)?;
    if name.pop() != Some(0) || name.contains(&0) {
        return hostile("a name is too long or has no end");
    }
    Ok(name)
}

/// What was read so far.
struct Reader<'a> {
    quarantine: &'a Path,
    limits: Limits,
    list: Option<ChangeList>,
    /// The files the list promises, by its order: index of the change.
    files: Vec<usize>,
    /// How many of them came.
    expected: usize,
    bytes: u64,
    objects: HashSet<Vec<u8>>,
}

impl Reader<'_> {
    fn entry(&mut self, name: &[u8], size: u64, content: &mut impl Read) -> Result<(), ReadError> {
        if self.list.is_none() {
            if name != LIST.as_bytes() {
                return hostile("it does not begin with its list");
            }
            return self.take_list(size, content);
        }
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limits.bytes {
            return Err(ReadError::TooMuch(format!("{} bytes", self.limits.bytes)));
        }
        match name.strip_prefix(b"tree/") {
            Some(path) => self.file(path, size, content),
            None => self.object(name, size, content),
        }
    }

    fn take_list(&mut self, size: u64, content: &mut impl Read) -> Result<(), ReadError> {
        let most = self.limits.entries.saturating_mul(LIST_BYTES.0).saturating_add(LIST_BYTES.1).min(LIST_MAX);
        if size > most {
            return Err(ReadError::TooMuch(format!("{} changes", self.limits.entries)));
        }
        let list = list::read(content, self.quarantine, self.limits)?;
        check_list(&list, self.limits)?;
        let is_file = |change: &Change| matches!(change.after, Some(Node::File { .. }));
        self.files = (0..list.changes.len()).filter(|index| is_file(&list.changes[*index])).collect();
        self.list = Some(list);
        Ok(())
    }

    /// The next file of the list.
    fn file(&mut self, path: &[u8], size: u64, content: &mut impl Read) -> Result<(), ReadError> {
        let index = self.files.get(self.expected).copied();
        let change = index.and_then(|index| self.list.as_ref().map(|list| &list.changes[index]));
        let Some(Change { path: listed, after: Some(Node::File { size: promised, digest, .. }), .. }) = change else {
            return hostile(format!("{} is not in its list", shown(path)));
        };
        if listed.0 != path || *promised != size {
            return hostile(format!("{} is not what its list says", shown(path)));
        }
        // The list's paths were checked, and these are the same bytes.
        let place = self.quarantine.join("tree").join(listed.as_path());
        if write(&place, size, content)? != *digest {
            return hostile(format!("{} has another digest than its list says", shown(path)));
        }
        self.expected += 1;
        Ok(())
    }

    fn object(&mut self, name: &[u8], size: u64, content: &mut impl Read) -> Result<(), ReadError> {
        let well_formed = name.strip_prefix(b"git/").is_some_and(is_object_file);
        if !well_formed {
            return hostile(format!("{} is no file of an export", shown(name)));
        }
        if self.objects.len() as u64 == OBJECTS_MAX || !self.objects.insert(name.to_vec()) {
            return hostile(format!("{} comes twice, or too many objects do", shown(name)));
        }
        let place = self.quarantine.join(FileName(name.to_vec()).as_path());
        write(&place, size, content).map(drop)
    }

    fn finish(self) -> Result<ChangeList, ReadError> {
        match self.list {
            None => hostile("it has no list"),
            Some(_) if self.expected < self.files.len() => {
                hostile(format!("{} files of its list did not come", self.files.len() - self.expected))
            }
            Some(list) => Ok(list),
        }
    }
}

/// Writes a new file; its digest.
fn write(place: &Path, size: u64, content: &mut impl Read) -> Result<String, ReadError> {
    let wrote = |source| ReadError::Write { path: PathBuf::from(place), source };
    if let Some(above) = place.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(above).map_err(wrote)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(place).map_err(wrote)?;
    let (mut hash, mut left, mut buffer) =
        (BlobHasher::new(size), size, vec![0; CHUNK.min(usize::try_from(size).unwrap_or(CHUNK))]);
    while left > 0 {
        let count = content.read(&mut buffer).map_err(damaged)?;
        if count == 0 || count as u64 > left {
            return Err(ReadError::Stream(io::ErrorKind::UnexpectedEof.into()));
        }
        hash.update(&buffer[..count]);
        file.write_all(&buffer[..count]).map_err(wrote)?;
        left -= count as u64;
    }
    Ok(hex::encode(hash.finish()))
}

/// Checks a list: as many changes as are taken, in order, each at a path of the tree that is not git's, and all of them possible together.
fn check_list(list: &ChangeList, limits: Limits) -> Result<(), ReadError> {
    if list.changes.len() as u64 > limits.entries {
        return Err(ReadError::TooMuch(format!("{} changes", limits.entries)));
    }
    check_texts(list)?;
    let mut after: HashMap<&[u8], Option<&Node>> = HashMap::new();
    let (mut last, mut bytes) = (None, 0_u64);
    for change in &list.changes {
        let path = &change.path;
        let wrong = |why: String| ReadError::Hostile(format!("{}: {why}", shown(&path.0)));
        check_path(path).map_err(|error| wrong(shown(error.to_string().as_bytes())))?;
        if is_git(&path.0) {
            return Err(wrong("it is git's own".to_owned()));
        }
        if last.is_some_and(|last| last >= &path.0) {
            return Err(wrong("it is not in order, or twice there".to_owned()));
        }
        if change.before.is_none() && change.after.is_none() {
            return Err(wrong("nothing became nothing".to_owned()));
        }
        for node in change.before.iter().chain(&change.after) {
            check_node(path, node, Mtime::default()).map_err(|error| wrong(shown(error.to_string().as_bytes())))?;
        }
        if let Some(Node::File { size, .. }) = &change.after {
            bytes = bytes.saturating_add(*size);
        }
        let mut above = parent(&path.0);
        while let Some(place) = above.filter(|_| change.after.is_some()) {
            if after.get(place).is_some_and(|node| !matches!(node, Some(Node::Directory { .. }))) {
                return Err(wrong("it is in something that is no directory".to_owned()));
            }
            above = parent(place);
        }
        after.insert(&path.0, change.after.as_ref());
        last = Some(&path.0);
    }
    if bytes > limits.bytes {
        return Err(ReadError::TooMuch(format!("{} bytes", limits.bytes)));
    }
    Ok(())
}

fn check_texts(list: &ChangeList) -> Result<(), ReadError> {
    let plain = |text: &str| text.len() <= TEXT_MAX && !text.chars().any(char::is_control);
    let ids = list.head.iter().chain(&list.about.head).chain(&list.about.base);
    if !ids.into_iter().all(|id| is_id(id)) {
        return hostile("a commit's id is none");
    }
    let about = &list.about;
    let texts = list.branch.iter().chain(&about.branch).chain(&about.upstream).chain([&about.origin]);
    if !texts.into_iter().all(|text| plain(text)) {
        return hostile("a text of its list is too long or has control characters");
    }
    // Names of files are in them, and those may be anything.
    for lines in list.losses.iter().chain([&list.warnings]) {
        if lines.len() > crate::walk::WARNINGS_MAX || lines.iter().any(|text| text.len() > 2 * TEXT_MAX) {
            return hostile("it has too many warnings");
        }
    }
    Ok(())
}

/// Whether a directory is fit to read an export into.
pub(crate) fn check_quarantine(quarantine: &Path) -> Result<(), ReadError> {
    let wrote = |source| ReadError::Write { path: quarantine.to_owned(), source };
    match fs::read_dir(quarantine).map_err(wrote)?.next() {
        None => Ok(()),
        Some(_) => Err(wrote(io::ErrorKind::DirectoryNotEmpty.into())),
    }
}
