//! The **comparison** of one host's inventory with the rows and operations of the lab: what is to be done about each thing
//! that one side has and the other lacks. Pure.
//!
//! Directories come before their rows (a publication renames, then commits) and go after them. So what has no row is only
//! looked at once the operations that made it had ended before it was listed, and what has no directory only where its row
//! was there before the listing and still is after it.

use std::{
    collections::{HashMap, HashSet},
    fmt::Display,
    hash::Hash,
    time::Duration,
};

use contract::{
    ImageId, KernelId, OperationId,
    agent::{Fence, ImageHere, Inventory, KernelHere, KernelsHere, StagingHere},
    image::GcKind,
};
use time::OffsetDateTime;

use crate::db::{maker::Maker, replica::Replica};

/// A directory younger than this is left to whoever may be at it, in spite of all.
pub const SETTLED: Duration = Duration::from_secs(60);

/// What hosts keep in directories and the lab in rows: images and kernels.
pub trait Object: Copy + Eq + Hash + Display {
    /// A row, as it is told.
    fn row(&self) -> String;

    /// Its directory, below the host's state directory.
    fn directory(&self) -> String;

    /// The staging of an operation, as it is told.
    fn staging(operation: OperationId) -> String;

    /// What is to be done about one that its host lacks.
    fn help(replica: &Replica<Self>) -> String;
}

impl Object for ImageId {
    fn row(&self) -> String {
        self.to_string()
    }

    fn directory(&self) -> String {
        format!("images/{self}")
    }

    fn staging(operation: OperationId) -> String {
        operation.to_string()
    }

    fn help(replica: &Replica<Self>) -> String {
        match replica.vms {
            0 => format!(
                "pull it to {} to have it back, make it anew if it was promoted, registered or built, or `warren image rm` it",
                replica.host
            ),
            1 => "the disk of 1 VM builds on it: bring the directory back from a backup".to_owned(),
            vms => format!("the disks of {vms} VMs build on it: bring the directory back from a backup"),
        }
    }
}

impl Object for KernelId {
    fn row(&self) -> String {
        format!("kernel {self}")
    }

    fn directory(&self) -> String {
        format!("kernel-objects/{self}")
    }

    fn staging(operation: OperationId) -> String {
        format!("kernel-objects/.staging-{operation}")
    }

    fn help(replica: &Replica<Self>) -> String {
        let needed = match replica.vms {
            0 => String::new(),
            vms => format!(", as {vms} there do"),
        };
        format!(
            "it is sent there again when a VM is to boot it{needed}, if another host has it; else import the same files again"
        )
    }
}

/// One directory of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Here<I> {
    /// Whose it is.
    pub id: I,
    /// The digest its record tells.
    pub digest: Option<String>,
    /// What is wrong with it.
    pub damage: Option<String>,
    /// Who made it.
    pub operations: Vec<OperationId>,
    /// What it takes of the disk, in bytes.
    pub disk_bytes: u64,
    /// How long it has been there, in seconds.
    pub age_s: u64,
}

impl From<ImageHere> for Here<ImageId> {
    fn from(here: ImageHere) -> Self {
        let ImageHere { image, digest, damage, operations, disk_bytes, age_s } = here;
        Self { id: image, digest, damage, operations, disk_bytes, age_s }
    }
}

impl From<KernelHere> for Here<KernelId> {
    fn from(here: KernelHere) -> Self {
        let KernelHere { kernel, digest, damage, operation, disk_bytes, age_s } = here;
        Self { id: kernel, digest, damage, operations: operation.into_iter().collect(), disk_bytes, age_s }
    }
}

/// What a host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing<I> {
    /// What was published.
    pub all: Vec<Here<I>>,
    /// What is staged.
    pub stagings: Vec<StagingHere>,
    /// What is not Warren's.
    pub strays: Vec<String>,
}

impl From<Inventory> for Listing<ImageId> {
    fn from(inventory: Inventory) -> Self {
        let Inventory { images, stagings, strays, .. } = inventory;
        Self { all: images.into_iter().map(Here::from).collect(), stagings, strays }
    }
}

impl From<KernelsHere> for Listing<KernelId> {
    fn from(here: KernelsHere) -> Self {
        let KernelsHere { kernels, stagings, strays } = here;
        Self { all: kernels.into_iter().map(Here::from).collect(), stagings, strays }
    }
}

impl<I> Listing<I> {
    /// The operations that it names.
    pub fn operations(&self) -> Vec<OperationId> {
        let stagings = self.stagings.iter().map(|here| here.operation);
        stagings.chain(self.all.iter().flat_map(|here| here.operations.iter().copied())).collect()
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mend<I = ImageId> {
    /// Have the host end a staging.
    Discard(Fence),
    /// Have the host remove a directory that these operations made.
    Reclaim(I, Vec<OperationId>),
    /// Note that a replica is missing, or that it is not any more.
    Note(Replica<I>, bool),
    /// Nothing, and why.
    Nothing,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<I = ImageId> {
    /// What kind of thing.
    pub kind: GcKind,
    /// Which one.
    pub what: String,
    /// What it takes of the disk, in bytes.
    pub disk_bytes: u64,
    /// What is to be done.
    pub mend: Mend<I>,
    /// What there is to say about it.
    pub why: Option<String>,
}

/// What a host's inventory is compared with.
#[derive(Debug)]
pub struct Rows<'a, I = ImageId> {
    /// The host's replicas as they were before the listing.
    pub before: &'a [Replica<I>],
    /// As they are after it.
    pub after: &'a [Replica<I>],
    /// Those whose files the host owes the removal of.
    pub owed: &'a HashSet<I>,
    /// The operations of the host's directories that the lab knows.
    pub makers: &'a HashMap<OperationId, Maker>,
    /// When the listing began, by the database's clock.
    pub listed_at: OffsetDateTime,
    /// How old a staging of an operation must be that the lab does not know.
    pub grace: Duration,
}

impl<I: Object> Rows<'_, I> {
    /// Whether this very replica was there before the listing: it was not published, or brought back, meanwhile.
    fn was_there(&self, replica: &Replica<I>) -> bool {
        self.before.iter().any(|before| before.id == replica.id && before.created_at == replica.created_at)
    }
}

/// Compares.
pub fn compare<I: Object>(listing: &Listing<I>, rows: &Rows<'_, I>) -> Vec<Found<I>> {
    let mut found: Vec<Found<I>> = listing.stagings.iter().filter_map(|here| staging(here, rows)).collect();
    for here in &listing.all {
        found.extend(match rows.after.iter().find(|replica| replica.id == here.id) {
            Some(replica) => with_row(here, replica, rows),
            None => without_row(here, rows),
        });
    }
    let here: HashSet<I> = listing.all.iter().map(|here| here.id).collect();
    for replica in rows.after.iter().filter(|replica| !here.contains(&replica.id)) {
        if rows.was_there(replica) {
            found.push(missing(replica, "its directory is gone", 0));
        }
    }
    let stray = |what: &String| Found {
        kind: GcKind::Stray,
        what: what.clone(),
        disk_bytes: 0,
        mend: Mend::Nothing,
        why: Some("it is not Warren's: look into it and remove it by hand".to_owned()),
    };
    found.extend(listing.strays.iter().map(stray));
    found
}

fn staging<I: Object>(here: &StagingHere, rows: &Rows<'_, I>) -> Option<Found<I>> {
    let operation = here.operation;
    let (mend, why) = match rows.makers.get(&operation) {
        Some(Maker::Ended { at, epoch }) if *at < rows.listed_at => {
            (Mend::Discard(Fence { operation, epoch: *epoch }), None)
        }
        Some(_) => return None,
        None if here.working => {
            (Mend::Nothing, Some("the host is at it for an operation the lab does not know".to_owned()))
        }
        None if here.age_s < rows.grace.as_secs() => {
            let hours = rows.grace.as_secs_f64() / 3600.0;
            (Mend::Nothing, Some(format!("the lab does not know its operation; it is removed when {hours:.1} h old")))
        }
        None => (Mend::Discard(Fence { operation, epoch: here.epoch }), None),
    };
    Some(Found { kind: GcKind::Staging, what: I::staging(operation), disk_bytes: here.disk_bytes, mend, why })
}

fn with_row<I: Object>(here: &Here<I>, replica: &Replica<I>, rows: &Rows<'_, I>) -> Option<Found<I>> {
    if !rows.was_there(replica) {
        return None;
    }
    let damage = match (&here.damage, &here.digest) {
        (Some(damage), _) => Some(damage.clone()),
        (None, Some(digest)) if *digest != replica.digest => Some(format!("its record says {digest}")),
        _ => None,
    };
    match damage {
        Some(damage) => Some(missing(replica, &damage, here.disk_bytes)),
        None if replica.missing => Some(Found {
            kind: GcKind::Returned,
            what: replica.id.row(),
            disk_bytes: here.disk_bytes,
            mend: Mend::Note(replica.clone(), false),
            why: None,
        }),
        None => None,
    }
}

fn missing<I: Object>(replica: &Replica<I>, damage: &str, disk_bytes: u64) -> Found<I> {
    let mend = if replica.missing { Mend::Nothing } else { Mend::Note(replica.clone(), true) };
    let why = Some(format!("{damage}; {}", I::help(replica)));
    Found { kind: GcKind::Missing, what: replica.id.row(), disk_bytes, mend, why }
}

fn without_row<I: Object>(here: &Here<I>, rows: &Rows<'_, I>) -> Option<Found<I>> {
    // Who removes these is known.
    if rows.owed.contains(&here.id) {
        return None;
    }
    let ended = |operation: &OperationId| match rows.makers.get(operation) {
        Some(Maker::Ended { at, .. }) => Some(*at < rows.listed_at),
        Some(Maker::Open) => Some(false),
        None => None,
    };
    let ends: Vec<Option<bool>> = here.operations.iter().map(ended).collect();
    let (mend, why) = if ends.contains(&Some(false)) {
        return None;
    } else if let (true, Some(damage)) = (ends.is_empty(), &here.damage) {
        (Mend::Nothing, Some(format!("{damage}, so who made it cannot be told: remove it by hand")))
    } else if ends.contains(&None) {
        let why = "an operation made it that the lab does not know: was the database restored? Remove it by hand";
        (Mend::Nothing, Some(why.to_owned()))
    } else if here.age_s < SETTLED.min(rows.grace).as_secs() {
        (Mend::Nothing, Some(format!("it is removed when {} s old", SETTLED.as_secs())))
    } else {
        (Mend::Reclaim(here.id, here.operations.clone()), None)
    };
    let what = here.id.directory();
    Some(Found { kind: GcKind::Directory, what, disk_bytes: here.disk_bytes, mend, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(3600);

    struct Story {
        before: Vec<Replica>,
        after: Vec<Replica>,
        owed: HashSet<ImageId>,
        makers: HashMap<OperationId, Maker>,
    }

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(seconds)
    }

    fn replica(image: ImageId) -> Replica {
        let host = "h1".parse().unwrap();
        Replica { id: image, host, digest: "sha256:a".into(), missing: false, created_at: at(1), vms: 0 }
    }

    fn here(image: ImageId, operations: &[OperationId]) -> ImageHere {
        let digest = Some("sha256:a".to_owned());
        ImageHere { image, digest, damage: None, operations: operations.to_vec(), disk_bytes: 7, age_s: 100 }
    }

    fn story() -> Story {
        Story { before: vec![], after: vec![], owed: HashSet::new(), makers: HashMap::new() }
    }

    impl Story {
        fn told(&self, inventory: &Inventory) -> Vec<(GcKind, Mend)> {
            let rows = Rows {
                before: &self.before,
                after: &self.after,
                owed: &self.owed,
                makers: &self.makers,
                listed_at: at(1000),
                grace: GRACE,
            };
            compare(&Listing::from(inventory.clone()), &rows)
                .into_iter()
                .map(|found| (found.kind, found.mend))
                .collect()
        }

        fn of_image(&self, here: ImageHere) -> Vec<(GcKind, Mend)> {
            self.told(&Inventory { images: vec![here], ..Inventory::default() })
        }
    }

    #[test]
    fn a_staging_goes_once_its_operation_has_ended_before_it_was_listed() {
        let operation = OperationId::new();
        let here = StagingHere { operation, working: false, epoch: 2, disk_bytes: 1, age_s: 10 };
        let told = |makers: &[(OperationId, Maker)], here: StagingHere| {
            let story = Story { makers: makers.iter().copied().collect(), ..story() };
            story.told(&Inventory { stagings: vec![here], ..Inventory::default() })
        };
        let discard = |epoch| vec![(GcKind::Staging, Mend::Discard(Fence { operation, epoch }))];
        assert_eq!(told(&[(operation, Maker::Open)], here.clone()), []);
        assert_eq!(told(&[(operation, Maker::Ended { at: at(1000), epoch: 5 })], here.clone()), []);
        assert_eq!(told(&[(operation, Maker::Ended { at: at(999), epoch: 5 })], here.clone()), discard(5));
        assert_eq!(told(&[], here.clone()), [(GcKind::Staging, Mend::Nothing)]);
        let old = StagingHere { age_s: 3600, ..here };
        assert_eq!(told(&[], old.clone()), discard(2));
        assert_eq!(told(&[], StagingHere { working: true, ..old }), [(GcKind::Staging, Mend::Nothing)]);
    }

    #[test]
    fn a_directory_without_a_row_goes_once_all_who_made_it_have_ended() {
        let (image, first, second) = (ImageId::new(), OperationId::new(), OperationId::new());
        let ended = Maker::Ended { at: at(1), epoch: 1 };
        let told = |makers: &[(OperationId, Maker)], here: ImageHere| {
            Story { makers: makers.iter().copied().collect(), ..story() }.of_image(here)
        };
        let both = here(image, &[first, second]);
        let stays = [(GcKind::Directory, Mend::Nothing)];
        assert_eq!(told(&[(first, ended), (second, Maker::Open)], both.clone()), []);
        assert_eq!(told(&[(first, ended), (second, Maker::Ended { at: at(1001), epoch: 1 })], both.clone()), []);
        assert_eq!(told(&[(first, ended)], both.clone()), stays);
        let all = [(first, ended), (second, ended)];
        let reclaim = Mend::Reclaim(image, vec![first, second]);
        assert_eq!(told(&all, both.clone()), [(GcKind::Directory, reclaim)]);
        assert_eq!(told(&all, ImageHere { age_s: 59, ..both.clone() }), stays);
        let bare = ImageHere { digest: None, damage: Some("no record".into()), operations: vec![], ..both.clone() };
        assert_eq!(told(&all, bare), stays);
        assert_eq!(Story { owed: HashSet::from([image]), ..story() }.of_image(both), []);
    }

    #[test]
    fn a_row_without_its_directory_is_noted_and_the_note_goes_when_it_is_back() {
        let image = ImageId::new();
        let row = replica(image);
        let noted = |missing| Replica { missing, ..row.clone() };
        let with = |before: Option<Replica>, after: Replica| Story {
            before: before.into_iter().collect(),
            after: vec![after],
            ..story()
        };
        let note = |missing: bool| Mend::Note(noted(!missing), missing);
        let whole = here(image, &[OperationId::new()]);
        let none = Inventory::default();
        assert_eq!(with(Some(row.clone()), row.clone()).told(&none), [(GcKind::Missing, note(true))]);
        // Published, or brought back, while the host was listing.
        assert_eq!(with(None, row.clone()).told(&none), []);
        assert_eq!(with(Some(row.clone()), Replica { created_at: at(2), ..row.clone() }).told(&none), []);
        assert_eq!(with(Some(noted(true)), noted(true)).told(&none), [(GcKind::Missing, Mend::Nothing)]);
        assert_eq!(with(Some(row.clone()), row.clone()).of_image(whole.clone()), []);
        assert_eq!(with(Some(noted(true)), noted(true)).of_image(whole.clone()), [(GcKind::Returned, note(false))]);
        for damaged in [
            ImageHere { damage: Some("cut".into()), ..whole.clone() },
            ImageHere { digest: Some("sha256:b".into()), ..whole },
        ] {
            assert_eq!(with(Some(row.clone()), row.clone()).of_image(damaged.clone()), [(GcKind::Missing, note(true))]);
            assert_eq!(with(None, row.clone()).of_image(damaged), []);
        }
    }
}
