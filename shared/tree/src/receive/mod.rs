//! The guest's end of a prepare.
//!
//! What is compared first is cheap: a digest, then what `stat` says of each file. What is made is noted in a journal before it is there, so
//! that whatever ends the guest, the next start or prepare removes it, or finishes what had begun to take its place.

mod carry;
mod in_place;
mod place;
mod plan;
mod stage;

use std::{
    io::{self, Read, Write},
    path::Path,
};

use contract::{
    FileName,
    worktree::{ImportOrder, Placing, TransferSummary},
};

pub(crate) use self::place::{YOUNG, abandon, now, recover_at};
use self::plan::{Plan, Source};
use crate::{
    GuestError, StateDir, Transfer,
    error::broken,
    files::Root,
    loss::loss,
    row::{self, Kind, Row},
    scan::{Scan, Seen, scan},
    site::{Present, Site, names},
    state::{Base, Head, Journal, Step, Way},
    wire::{self, Hello, ROWS_MAX, Tag, Whole},
};

impl StateDir {
    /// Finishes or removes what a guest that died left behind; the failures, for the log.
    pub fn recover(&self) -> Vec<GuestError> {
        let all = match self.all() {
            Ok(all) => all,
            Err(source) => return vec![GuestError::Files { what: "reading the workspaces".to_owned(), source }],
        };
        all.iter().filter_map(|state| recover_at(state).err()).collect()
    }
}

/// The guest's end of a prepare; files become `owner`'s (user and group id), or the process's own. Blocking.
///
/// # Errors
/// See the variants; the old tree is what it was.
pub fn receive(
    order: &ImportOrder,
    state: &StateDir,
    owner: Option<(u32, u32)>,
    mut from_client: impl Read,
    mut to_client: impl Write,
    watch: &Transfer,
) -> Result<TransferSummary, GuestError> {
    watch.begin("comparing", 0);
    let hello = hello(&mut from_client)?;
    if let Some(site) = Site::find(&order.path, state)? {
        match recover_at(&site.state) {
            Err(GuestError::Damaged(_)) if order.force => abandon(&site.state)?,
            outcome => outcome?,
        }
        if let Some(summary) = keep(order, &site, owner, &hello, watch)? {
            say(&mut to_client, Tag::Same, &[])?;
            return done(&mut to_client, summary);
        }
    }
    let staging = |site: &Path| staging_of(site, order);
    let site = Site::make(&order.path, state, owner, |state, path, made| {
        let (path, staging) = (FileName::from(path.as_os_str()), FileName(staging(path)));
        Journal { path, staging, made: names(made), step: Step::Staging }.save(state)
    })?;
    let mut import = Import { order, owner, site: &site, watch, hello };
    let outcome = import.run(&mut from_client, &mut to_client);
    if outcome.is_err() {
        // Removes what was made, unless it had begun to take its place: then it is finished.
        recover_at(&site.state)?;
    }
    done(&mut to_client, outcome?)
}

fn staging_of(path: &Path, order: &ImportOrder) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    let name = path.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
    [b".", &name[..name.len().min(64)], b".warren-", order.operation.to_string().as_bytes()].concat()
}

fn say(to: &mut impl Write, tag: Tag, payload: &[u8]) -> Result<(), GuestError> {
    wire::write(to, tag, payload).and_then(|()| to.flush()).map_err(GuestError::Stream)
}

/// Tells what was done. The tree is in its place; a client that does not hear of it any more finds it out by itself.
fn done(to: &mut impl Write, summary: TransferSummary) -> Result<TransferSummary, GuestError> {
    let text = serde_json::to_vec(&summary).unwrap_or_default();
    say(to, Tag::Done, &text).unwrap_or_default();
    Ok(summary)
}

fn hello(from: &mut impl Read) -> Result<Hello, GuestError> {
    let mut message = Vec::new();
    match wire::read(from, &mut message).map_err(broken)? {
        Tag::Hello => Hello::decode(&message).map_err(GuestError::Protocol),
        Tag::Fail => Err(GuestError::Client(wire::text(&message))),
        _ => Err(GuestError::Protocol("it does not begin with its first message")),
    }
}

/// Keeps the tree that is there where it is the one to be there already; only what is known of it changes.
fn keep(
    order: &ImportOrder,
    site: &Site,
    owner: Option<(u32, u32)>,
    hello: &Hello,
    watch: &Transfer,
) -> Result<Option<TransferSummary>, GuestError> {
    let Present::Prepared(mut base, root) = site.look()? else { return Ok(None) };
    let same = base.head.digest.as_deref() == Some(&hex::encode(hello.digest)[..]) && base.head.owner == owner;
    if !same || order.clean || !scan(&base, &root, false, watch)?.is_untouched(&base, &root) {
        return Ok(None);
    }
    (base.head.generation, base.head.about) = (order.operation, order.about.clone());
    let (entries, bytes) = (base.rows.len() as u64, base.rows.iter().map(|row| row.kind.size()).sum());
    let summary = TransferSummary { entries, bytes, unchanged: true, ..TransferSummary::default() };
    base.head.summary = Some(summary.clone());
    base.head.save(&site.state).map_err(GuestError::files("noting the prepare"))?;
    Ok(Some(summary))
}

/// A prepare that has something to do.
struct Import<'a> {
    order: &'a ImportOrder,
    owner: Option<(u32, u32)>,
    site: &'a Site,
    watch: &'a Transfer,
    hello: Hello,
}

/// What was there, compared.
struct Old {
    base: Base,
    root: Root,
    scan: Scan,
}

impl Import<'_> {
    fn run(&mut self, from: &mut impl Read, to: &mut impl Write) -> Result<TransferSummary, GuestError> {
        let since = place::now();
        let mut old = self.old()?;
        say(to, Tag::Send, &[])?;
        let rows = self.rows(from)?;
        let in_place = self.order.placing == Placing::InPlace && old.is_some();
        let plan = Plan::make(&rows, old.as_ref(), self.owner, in_place);
        self.check_room(&rows, &plan)?;
        say(to, Tag::Want, &wire::encode_bits(&plan.wanted()).map_err(GuestError::Stream)?)?;
        let staging = self.site.staging(self.order.operation);
        let stage = stage::Stage::make(self.site, &staging, self.owner, self.watch)?;
        let placing = place::Placing { site: self.site, staging: &staging, since };
        placing.note(Step::Staged { inode: stage.inode()? })?;
        let (moved_files, moved_bytes) = if in_place {
            stage.flat(&rows, &plan, old.as_ref())?;
            stage.contents(from, &rows, &plan, |index| index.to_string().into_bytes())?
        } else {
            stage.tree(&rows, &plan, old.as_ref())?;
            let moved = stage.contents(from, &rows, &plan, |index| rows[index].path.clone())?;
            stage.settle(&rows, old.as_ref().map(|old| &old.root))?;
            if let Some(old) = &mut old {
                stage.note_links(&rows, &plan, old)?;
            }
            moved
        };
        end(from)?;
        if self.watch.is_aborted() {
            return Err(GuestError::Aborted);
        }
        self.watch.begin("placing", 0);
        stage.sync()?;
        let (entries, bytes) = (rows.len() as u64, rows.iter().map(|row| row.kind.size()).sum());
        if let Some(old) = old.as_mut().filter(|_| in_place) {
            self.look_again(old, &rows, &plan)?;
        }
        let swap = if in_place { None } else { Some(stage.inode()?) };
        let way = Way { swap, clean: self.order.clean, force: self.order.force, removed: false };
        let mut summary = TransferSummary { entries, bytes, moved_files, moved_bytes, ..TransferSummary::default() };
        let next = self.next(rows, summary.clone());
        summary.warnings = placing.begin(next, way, old.map(|old| (old.base, old.scan)))?;
        Ok(summary)
    }

    /// What is there, if it may be replaced.
    fn old(&self) -> Result<Option<Old>, GuestError> {
        let shown = || self.site.shown.clone();
        let wrong = |why: &str| GuestError::Path { path: shown(), why: why.to_owned() };
        let (base, root) = match self.site.look()? {
            Present::Nothing => return Ok(None),
            Present::NoDirectory => return Err(wrong("it is a file or a link")),
            _ if self.order.placing == Placing::Swap && self.site.is_mount()? => {
                return Err(wrong("a filesystem is mounted there, which cannot be swapped; name a directory in it"));
            }
            Present::Foreign { empty } => {
                if !empty && !self.order.force {
                    return Err(GuestError::Occupied(shown()));
                }
                return Ok(None);
            }
            Present::Prepared(base, root) => (*base, root),
        };
        let scan = scan(&base, &root, true, self.watch)?;
        if let Some(mount) = &scan.mount {
            return Err(wrong(&format!("something else is mounted at {mount} in it; unmount it first")));
        }
        if !self.order.force
            && let Some(what) = loss(&base, &root, &scan, self.watch)?
        {
            return Err(GuestError::Unexported { path: shown(), what });
        }
        Ok(Some(Old { base, root, scan }))
    }

    /// Looks once more at a tree whose files are to be replaced one by one: it may have changed while contents came.
    fn look_again(&self, old: &mut Old, rows: &[Row], plan: &Plan) -> Result<(), GuestError> {
        let raced = |what: String| Err(GuestError::Raced { path: self.site.shown.clone(), what });
        old.scan = scan(&old.base, &old.root, true, self.watch)?;
        if !self.order.force
            && let Some(what) = loss(&old.base, &old.root, &old.scan, self.watch)?
        {
            return raced(what);
        }
        for (row, _) in rows.iter().zip(&plan.sources).filter(|(_, source)| **source == Source::Stay) {
            let seen = old.base.find(&row.path).map(|index| old.scan.seen[index]);
            let stays = match row.kind {
                Kind::Directory { .. } => matches!(seen, Some(Seen::Same | Seen::Equal(_))),
                _ => seen == Some(Seen::Same),
            };
            if !stays {
                return raced(FileName(row.path.clone()).to_string());
            }
        }
        Ok(())
    }

    fn rows(&self, from: &mut impl Read) -> Result<Vec<Row>, GuestError> {
        let mut whole = Whole::new(from, Tag::List);
        let decoded = {
            let decoder = zstd::Decoder::new(&mut whole).map_err(GuestError::Stream)?;
            row::decode(decoder.single_frame().take(ROWS_MAX), self.hello.entries)
        };
        if let Some(why) = whole.failed.take() {
            return Err(GuestError::Client(why));
        }
        let (rows, digest) = decoded?;
        drain(&mut whole)?;
        if digest != self.hello.digest {
            return Err(GuestError::Protocol("the list is not the one its digest says"));
        }
        if rows.iter().map(|row| u128::from(row.kind.size())).sum::<u128>() != u128::from(self.hello.bytes) {
            return Err(GuestError::Protocol("the list has other sizes than it says"));
        }
        Ok(rows)
    }

    /// Refuses what the disk has no room for, before any of it is sent.
    fn check_room(&self, rows: &[Row], plan: &Plan) -> Result<(), GuestError> {
        let files = rows.iter().zip(&plan.sources);
        let blocks = |size: u64| size.div_ceil(4096).saturating_mul(4096);
        let made = files.filter(|(_, source)| !matches!(source, Source::Stay | Source::Link(_)));
        let (count, wanted) = made.fold((0_u64, ROOM), |(count, sum), (row, source)| {
            let size = if matches!(source, Source::Make) { 4096 } else { blocks(row.kind.size()) };
            (count + 1, sum.saturating_add(size))
        });
        let stat = nix::sys::statvfs::fstatvfs(&self.site.parent);
        let stat = stat.map_err(|errno| GuestError::files("asking for free space")(errno.into()))?;
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        if wanted > free {
            return Err(GuestError::NoRoom { free, wanted });
        }
        // Filesystems that make inodes as they need them say that they have none.
        if stat.files() > 0 && count > stat.files_available() {
            return Err(GuestError::NoInodes { free: stat.files_available(), wanted: count });
        }
        Ok(())
    }

    /// The base that is to be, with zero stats: they are taken when all is in its place.
    fn next(&self, rows: Vec<Row>, summary: TransferSummary) -> Base {
        let head = Head {
            path: FileName::from(self.site.path.as_os_str()),
            generation: self.order.operation,
            about: self.order.about.clone(),
            owner: self.owner,
            digest: Some(hex::encode(self.hello.digest)),
            rows: Head::rows_of(self.order.operation),
            root: (0, 0, 0, 0, 0),
            repository: crate::repo::Repository::default(),
            exported: None,
            summary: Some(summary),
        };
        let stats = vec![crate::files::Stat::default(); rows.len()];
        Base { head, rows, stats }
    }
}

/// Room that is left on the disk for everybody else, in bytes.
const ROOM: u64 = 16 << 20;

/// Reads on to the last piece.
fn drain(whole: &mut Whole<'_, impl Read>) -> Result<(), GuestError> {
    let more = io::copy(whole, &mut io::sink()).map_err(broken)?;
    if more > 0 {
        return Err(GuestError::Protocol("there is more than it says"));
    }
    Ok(())
}

fn end(from: &mut impl Read) -> Result<(), GuestError> {
    let mut message = Vec::new();
    match wire::read(from, &mut message).map_err(broken)? {
        Tag::End => Ok(()),
        Tag::Fail => Err(GuestError::Client(wire::text(&message))),
        _ => Err(GuestError::Protocol("it does not end")),
    }
}
