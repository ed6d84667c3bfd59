//! The guest's end of an export: the changes of a workspace as a tar archive.
//!
//! The archive is plain (ustar, with GNU's long names): `changes.json` first, a [`ChangeList`]; then `tree/<path>` for each file that was added or
//! has another content or mode, in the list's order; then `git/objects/…` for what commits made in the VM consist of. What the list
//! says of a file is what is sent: one that changes meanwhile ends the export.

use std::io::{self, Read, Write};

use contract::{
    FileName,
    worktree::{ChangeList, ExportOrder, TransferSummary},
};
use tar::{Builder, EntryType, Header};

use crate::{
    BlobHasher, GuestError, Mtime, StateDir, Transfer,
    files::{Root, Stat},
    loss::{digest_of, left_behind},
    receive::{YOUNG, now, recover_at},
    repo,
    row::{Kind, Row},
    scan::{Difference, Scan, Seen, scan},
    site::{Present, Site},
    state::Base,
    walk::WARNINGS_MAX,
};

/// The first entry.
pub(crate) const LIST: &str = "changes.json";
/// How much of a file is read at once, in bytes.
const CHUNK: usize = 128 * 1024;
/// The most bytes a client sends to say that it has taken everything: it says so by ending, and sends none.
const ACKNOWLEDGEMENT_MAX: u64 = 4096;

/// The guest's end of an export: writes the archive, then reads `from_client` to its end, by which the client says that it has taken
/// everything: only then the export counts (`advance`, or permission to prepare over those changes). Blocking.
///
/// # Errors
/// See the variants.
pub fn export(
    order: &ExportOrder,
    state: &StateDir,
    from_client: impl Read,
    to_client: impl Write,
    watch: &Transfer,
) -> Result<TransferSummary, GuestError> {
    watch.begin("scanning", 0);
    let none = || GuestError::NoWorkspace(order.path.clone());
    let site = Site::find(&order.path, state)?.ok_or_else(none)?;
    recover_at(&site.state)?;
    let since = now();
    let Present::Prepared(base, root) = site.look()? else { return Err(none()) };
    let scan = scan(&base, &root, false, watch)?;
    let differences = scan.differences(&base, &root, order.max_entries, watch)?;
    let objects = if order.commits { objects(&base, &root, &scan)? } else { Vec::new() };
    let files = || differences.iter().filter_map(|difference| difference.after.as_ref());
    let content = files().map(|(kind, _)| kind.size()).chain(objects.iter().map(|object| object.size)).sum::<u64>();
    if content > order.max_bytes {
        let most = order.max_bytes;
        return Err(GuestError::TooMuch(format!("{content} bytes changed, over the limit of {most}")));
    }
    watch.begin("sending", content);
    let losses = left_behind(&base, &scan);
    let warnings: Vec<_> = losses.iter().chain(&scan.remarks).take(WARNINGS_MAX).cloned().collect();
    let list = ChangeList {
        generation: Some(base.head.generation),
        about: base.head.about.clone(),
        head: scan.repository.head.clone(),
        branch: scan.repository.branch.clone(),
        changes: differences.iter().map(Difference::change).collect(),
        warnings: warnings.clone(),
        losses: Some(losses),
    };
    let taken = Export { root: &root, watch }.write(list, &differences, &objects, to_client)?;
    // An end without the client's word is an error of the stream.
    let more = io::copy(&mut from_client.take(ACKNOWLEDGEMENT_MAX), &mut io::sink()).map_err(GuestError::Stream)?;
    if more > 0 {
        return Err(GuestError::Protocol("it sent something into an export"));
    }
    let summary = TransferSummary {
        entries: differences.len() as u64,
        bytes: content,
        moved_files: taken,
        moved_bytes: content,
        unchanged: differences.is_empty() && objects.is_empty(),
        warnings,
    };
    let noted = if order.advance {
        let mut next = advance(order, *base, &root, &scan, &differences, &objects, since)?;
        next.head.summary = Some(summary.clone());
        next.save(&site.state)
    } else {
        let mut head = base.head;
        head.exported = Some(digest_of(&differences, &scan.repository, order.commits));
        head.save(&site.state)
    };
    noted.map_err(GuestError::files("noting the export"))?;
    Ok(summary)
}

/// A file of a repository's objects that the base has not.
struct Object {
    /// Below the workspace.
    path: Vec<u8>,
    size: u64,
}

fn objects(base: &Base, root: &Root, scan: &Scan) -> Result<Vec<Object>, GuestError> {
    if scan.repository.head == base.head.repository.head {
        return Ok(Vec::new());
    }
    let wrong = || GuestError::files("looking for the commits' objects");
    let mut objects = Vec::new();
    for path in repo::object_files(root).map_err(wrong())? {
        if base.find(&path).is_some() {
            continue;
        }
        if let Some(stat) = root.stat(&path).map_err(wrong())?.filter(Stat::is_file) {
            objects.push(Object { path, size: stat.size });
        }
    }
    Ok(objects)
}

/// One export under way.
struct Export<'a> {
    root: &'a Root,
    watch: &'a Transfer,
}

impl Export<'_> {
    /// Writes the archive; how many files are in it.
    fn write(
        &self,
        list: ChangeList,
        differences: &[Difference],
        objects: &[Object],
        to: impl Write,
    ) -> Result<u64, GuestError> {
        let text = serde_json::to_vec(&list).map_err(|error| GuestError::files("listing changes")(error.into()))?;
        let mut archive = Builder::new(to);
        append(&mut archive, LIST.as_bytes(), text.len() as u64, Mtime::default(), &text[..])?;
        drop((text, list));
        let mut count = 0;
        for difference in differences {
            let Some((Kind::File { size, digest, .. }, stat)) = &difference.after else { continue };
            let name = [b"tree/", &difference.path[..]].concat();
            self.file(&mut archive, &name, &difference.path, *size, stat.mtime, Some(digest))?;
            count += 1;
        }
        for object in objects {
            let name = [b"git/", &object.path[b".git/".len()..]].concat();
            self.file(&mut archive, &name, &object.path, object.size, Mtime::default(), None)?;
            count += 1;
        }
        archive.into_inner().and_then(|mut to| to.flush()).map_err(GuestError::Stream)?;
        Ok(count)
    }

    fn file(
        &self,
        archive: &mut Builder<impl Write>,
        name: &[u8],
        path: &[u8],
        size: u64,
        mtime: Mtime,
        digest: Option<&[u8; 20]>,
    ) -> Result<(), GuestError> {
        if self.watch.is_aborted() {
            return Err(GuestError::Aborted);
        }
        let changed = || GuestError::Changed(FileName(path.to_vec()));
        let file = self.root.file(path).map_err(|_| changed())?;
        if file.metadata().map_err(|_| changed())?.len() != size {
            return Err(changed());
        }
        let mut reader = Checked {
            from: io::BufReader::with_capacity(CHUNK, file),
            hash: BlobHasher::new(size),
            left: size,
            watch: self.watch,
        };
        append(archive, name, size, mtime, &mut reader).map_err(|error| match error {
            GuestError::Stream(error) if error.kind() == io::ErrorKind::UnexpectedEof => changed(),
            error => error,
        })?;
        if digest.is_some_and(|digest| reader.hash.finish() != *digest) {
            return Err(changed());
        }
        Ok(())
    }
}

/// A file that gives exactly the bytes it was listed with, or an error.
struct Checked<'a, R> {
    from: R,
    hash: BlobHasher,
    left: u64,
    watch: &'a Transfer,
}

impl<R: Read> Read for Checked<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let count = self.from.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.hash.update(&buffer[..count]);
        self.left -= count as u64;
        self.watch.add(count as u64);
        Ok(count)
    }
}

/// Appends a regular file. Names of more than a header's 100 bytes go before it as GNU's long name.
fn append(
    archive: &mut Builder<impl Write>,
    name: &[u8],
    size: u64,
    mtime: Mtime,
    content: impl Read,
) -> Result<(), GuestError> {
    let mut header = Header::new_gnu();
    header.set_mode(0o600);
    header.set_mtime(u64::try_from(mtime.secs).unwrap_or(0));
    header.set_entry_type(EntryType::Regular);
    header.set_size(size);
    let path = FileName(name.to_vec());
    archive.append_data(&mut header, path.as_path(), content).map_err(GuestError::Stream)
}

/// The base with what was taken out in it.
fn advance(
    order: &ExportOrder,
    base: Base,
    root: &Root,
    scan: &Scan,
    differences: &[Difference],
    objects: &[Object],
    since: i64,
) -> Result<Base, GuestError> {
    let young = since - YOUNG;
    // What is this young may be written again within the same tick of the clock: it is read to be compared.
    let settled = |stat: Stat| if stat.mtime.secs < young { stat } else { Stat::default() };
    let mut rows: Vec<(Row, Stat)> = Vec::with_capacity(base.rows.len() + differences.len());
    let changed = |path: &[u8]| differences.binary_search_by(|difference| difference.path[..].cmp(path)).is_ok();
    for (index, row) in base.rows.iter().enumerate().filter(|(_, row)| row.is_git() || !changed(&row.path)) {
        let stat = match scan.seen[index] {
            Seen::Equal(stat) => settled(stat),
            _ => base.stats[index],
        };
        rows.push((row.clone(), stat));
    }
    for difference in differences {
        if let Some((kind, stat)) = &difference.after {
            let row = Row { path: difference.path.clone(), mtime: stat.mtime, kind: kind.clone() };
            rows.push((row, settled(*stat)));
        }
    }
    add_objects(&mut rows, root, objects)?;
    rows.sort_unstable_by(|a, b| a.0.path.cmp(&b.0.path));
    let (rows, stats) = rows.into_iter().unzip();
    let mut head = base.head;
    head.generation = order.operation;
    head.digest = None;
    head.exported = None;
    head.rows = crate::state::Head::rows_of(order.operation);
    if order.commits {
        // Only HEAD's commits went along: other branches and stashes are still changes.
        head.repository = head.repository.with_head_of(&scan.repository);
        head.about.head.clone_from(&scan.repository.head);
        head.about.branch.clone_from(&scan.repository.branch);
    }
    Ok(Base { head, rows, stats })
}

/// Objects that went along are in the base now: the next export does not have them again.
fn add_objects(rows: &mut Vec<(Row, Stat)>, root: &Root, objects: &[Object]) -> Result<(), GuestError> {
    let mut known: std::collections::HashSet<Vec<u8>> = rows.iter().map(|(row, _)| row.path.clone()).collect();
    let wrong = || GuestError::files("looking at the commits' objects");
    for object in objects {
        // Only that they are there counts: what a later prepare needs of them it gets anew.
        for path in [crate::files::split(&object.path).0, &object.path[..]] {
            let Some(stat) = root.stat(path).map_err(wrong())? else { continue };
            if !known.insert(path.to_vec()) {
                continue;
            }
            let kind = match stat.is_dir() {
                true => Kind::Directory { mode: stat.bits() },
                false => Kind::File { mode: stat.bits(), size: object.size, digest: [0; 20] },
            };
            rows.push((Row { path: path.to_vec(), mtime: stat.mtime, kind }, stat));
        }
    }
    Ok(())
}
