//! The service killed in the middle of what is done with kernels, and started again: what was begun ends, done or undone with nothing left, and
//! what somebody else did with the same kernel meanwhile stays.

use contract::{
    OperationId,
    host::HostState,
    kernel::{Delete, Import, Place},
    operation::{Operation, OperationState},
};
use futures::{StreamExt, stream};
use serde_json::json;
use testkit::{Postgres, wait_until};
use tokio::process::Child;

use crate::{
    crashes::{AT_ONCE, Crash},
    fake_kernels::FakeKernels,
    kernels::{Kernels, kernel_of},
    lab::{BOUND, count},
};

/// A lab with kernels on `h1` and `h2`, whose service dies at one point.
struct Dying {
    crash: Crash,
    hosts: FakeKernels,
    child: Child,
}

impl Dying {
    async fn at(postgres: &Postgres, point: &'static str, story: &str) -> Self {
        let crash = Crash::of_story(postgres, point, story).await;
        crash.lab.registry.put("h2", HostState::Up, 512);
        let hosts = FakeKernels::default();
        for host in ["h1", "h2"] {
            hosts.add(&crash.lab.bus, host).await;
        }
        let child = crash.start().await;
        Self { crash, hosts, child }
    }

    async fn import(&self, name: &str, host: &str) -> OperationId {
        let request = json!({ "source": { "path": "/srv/6.1" }, "name": name, "host": host });
        self.crash.accepted::<Import>("kernel.import", request).await
    }

    async fn place(&self, kernel: &contract::kernel::Kernel) -> OperationId {
        self.crash.accepted::<Place>("kernel.place", json!({ "kernel": kernel.id, "host": "h2" })).await
    }

    /// Started again, as it was when it died but for the operation, which waits for its worker as long as it is told to.
    async fn revived(self, id: OperationId, cancelled: bool, waits: bool) -> (Kernels, Child) {
        self.crash.died(self.child).await;
        if cancelled {
            self.crash.cancel_requested(id).await;
        }
        if waits {
            lease(&self.crash.lab.sql().await, id, "1 hour").await;
        }
        let child = self.crash.start().await;
        (Kernels { lab: self.crash.lab, hosts: self.hosts }, child)
    }
}

async fn lease(sql: &tokio_postgres::Client, id: OperationId, more: &str) {
    let set = format!("update operations.operation set lease_until = now() + interval '{more}' where id = $1");
    sql.execute(&set, &[&id.0]).await.unwrap();
}

impl Kernels {
    /// The end of an operation whose worker died long ago.
    async fn adopted(&self, id: OperationId) -> Operation {
        lease(&self.lab.sql().await, id, "-1 second").await;
        self.lab.ended(id).await
    }

    /// What rows say of hosts is what hosts have.
    async fn assert_rows_are_true(&self, point: &str) {
        let rows = "select host_id, kernel_id from image.kernel_replica order by host_id, kernel_id";
        let rows = self.lab.sql().await.query(rows, &[]).await.unwrap();
        let rows: Vec<_> = rows.iter().map(|row| (row.get(0), contract::KernelId(row.get(1)))).collect();
        assert_eq!((rows, self.hosts.stagings()), (self.hosts.published(), 0), "{point}");
    }
}

const IMPORT_POINTS: [&str; 9] = [
    "kernel.import/place/before",
    "kernel.import/place/recorded",
    "kernel.import/stage/before",
    "kernel.import/stage/after",
    "kernel.import/stage/recorded",
    "kernel.import/publish/before",
    "kernel.import/publish/renamed",
    "kernel.import/publish/after",
    "kernel.import/publish/recorded",
];

/// Each point twice: the operation goes on, or is cancelled.
fn stories<const N: usize>(points: [&'static str; N]) -> impl Iterator<Item = (&'static str, bool)> {
    points.into_iter().flat_map(|point| [(point, false), (point, true)])
}

#[tokio::test]
async fn an_import_killed_at_each_step_ends_well_or_cancelled_leaves_nothing() {
    let postgres = &Postgres::start().await;
    let story = |(point, cancelled): (&'static str, bool)| async move {
        let dying = Dying::at(postgres, point, if cancelled { "_cancelled" } else { "" }).await;
        let id = dying.import("stable", "h1").await;
        let (kernels, _child) = dying.revived(id, cancelled, false).await;
        let ended = kernels.lab.ended(id).await;
        // All was done when the cancel came.
        if cancelled && point != "kernel.import/publish/recorded" {
            assert_eq!(ended.state, OperationState::Cancelled, "{point}: {ended:?}");
        } else {
            let kernel = kernel_of(&ended);
            assert_eq!(kernels.get("stable").await.unwrap(), kernel, "{point}");
            assert_eq!(kernels.hosts.published(), [("h1".to_owned(), kernel.id)], "{point}");
            kernels.delete("stable").await.unwrap();
        }
        kernels.assert_nothing_left().await;
    };
    stream::iter(stories(IMPORT_POINTS)).map(story).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}

const PLACE_POINTS: [&str; 7] = [
    "kernel.place/fetch/before",
    "kernel.place/fetch/after",
    "kernel.place/fetch/recorded",
    "kernel.place/publish/before",
    "kernel.place/publish/renamed",
    "kernel.place/publish/after",
    "kernel.place/publish/recorded",
];

#[tokio::test]
async fn a_placement_killed_at_each_step_ends_well_or_cancelled_leaves_rows_that_are_true() {
    let postgres = &Postgres::start().await;
    let story = |(point, cancelled): (&'static str, bool)| async move {
        let dying = Dying::at(postgres, point, if cancelled { "_cancelled" } else { "" }).await;
        let import = dying.import("stable", "h1").await;
        let kernel = kernel_of(&dying.crash.lab.ended(import).await);
        let id = dying.place(&kernel).await;
        let (kernels, _child) = dying.revived(id, cancelled, false).await;
        let ended = kernels.lab.ended(id).await;
        let hosts = kernels.get("stable").await.unwrap().hosts.len();
        if cancelled && point != "kernel.place/publish/recorded" {
            assert_eq!(ended.state, OperationState::Cancelled, "{point}: {ended:?}");
            // What was committed stays: somebody may use it by now.
            assert_eq!(hosts, if point == "kernel.place/publish/after" { 2 } else { 1 }, "{point}");
        } else {
            assert_eq!((ended.attempts, kernel_of(&ended).hosts.len(), hosts), (2, 2, 2), "{point}");
        }
        kernels.assert_rows_are_true(point).await;
        // Whatever became of it, it can be brought there, once.
        assert_eq!(kernel_of(&kernels.place(&kernel, "h2").await.unwrap()).hosts.len(), 2, "{point}");
        kernels.assert_rows_are_true(point).await;
        kernels.delete("stable").await.unwrap();
        kernels.assert_nothing_left().await;
    };
    stream::iter(stories(PLACE_POINTS)).map(story).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}

const DELETE_POINTS: [&str; 4] = [
    "kernel.delete/delete/before",
    "kernel.delete/delete/withdrawn",
    "kernel.delete/delete/after",
    "kernel.delete/delete/recorded",
];

#[tokio::test]
async fn a_delete_killed_at_each_step_ends_well_and_cancelled_it_is_whole_or_gone() {
    let postgres = &Postgres::start().await;
    let story = |(point, cancelled): (&'static str, bool)| async move {
        let dying = Dying::at(postgres, point, if cancelled { "_cancelled" } else { "" }).await;
        let import = dying.import("stable", "h1").await;
        let kernel = kernel_of(&dying.crash.lab.ended(import).await);
        let place = dying.place(&kernel).await;
        dying.crash.lab.ended(place).await;
        let id = dying.crash.accepted::<Delete>("kernel.delete", json!({ "kernel": "stable" })).await;
        let (kernels, _child) = dying.revived(id, cancelled, false).await;
        let ended = kernels.lab.ended(id).await;
        if !cancelled {
            assert_eq!(ended.state, OperationState::Succeeded, "{point}: {ended:?}");
            assert_eq!(
                ended.result.unwrap(),
                json!({ "kernel_id": kernel.id, "name": "stable", "deleted": true, "owed": [] }),
                "{point}"
            );
        } else if kernels.get("stable").await.is_ok() {
            assert_eq!((point, kernels.hosts.published().len()), ("kernel.delete/delete/before", 2));
            kernels.delete("stable").await.unwrap();
        }
        // Without its rows a kernel is gone, and its files are owed until they are.
        let (sql, owed) = (kernels.lab.sql().await, "select count(*) from image.kernel_removal");
        wait_until("nothing owed", BOUND, async || (count(&sql, owed).await == 0).then_some(())).await;
        kernels.assert_nothing_left().await;
    };
    stream::iter(stories(DELETE_POINTS)).map(story).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}

#[tokio::test]
async fn who_brings_a_kernel_that_a_dead_worker_left_half_published_takes_it_and_both_end_well() {
    let postgres = &Postgres::start().await;
    let story = |(point, cancelled): (&'static str, bool)| async move {
        let dying = Dying::at(postgres, point, if cancelled { "_two_cancelled" } else { "_two" }).await;
        let placed = point.starts_with("kernel.place");
        let (id, kernel) = if placed {
            let import = dying.import("stable", "h1").await;
            let kernel = kernel_of(&dying.crash.lab.ended(import).await);
            (dying.place(&kernel).await, Some(kernel.id))
        } else {
            (dying.import("stable", "h2").await, None)
        };
        let (kernels, _child) = dying.revived(id, cancelled, true).await;
        assert_eq!((kernels.hosts.published().len(), kernels.hosts.stagings()), (if placed { 2 } else { 1 }, 0));
        let request = json!({ "source": { "path": "/srv/6.1" }, "name": "second", "host": "h2", "wait": true });
        let second = kernel_of(&kernels.lab.call::<Import>(request, None).await.unwrap());
        assert!(kernel.is_none_or(|kernel| kernel == second.id), "{point}");
        let first = kernels.adopted(id).await;
        if cancelled {
            assert_eq!(first.state, OperationState::Cancelled, "{point}: {first:?}");
        } else {
            assert_eq!(kernel_of(&first).id, second.id, "{point}");
            assert_eq!(kernels.get("stable").await.unwrap().id, second.id, "{point}");
        }
        kernels.assert_rows_are_true(point).await;
        assert!(kernels.get("second").await.unwrap().hosts.contains(&"h2".parse().unwrap()), "{point}");
        kernels.delete(&second.id.to_string()).await.unwrap();
        kernels.assert_nothing_left().await;
    };
    let points = ["kernel.place/publish/renamed", "kernel.import/publish/renamed"];
    stream::iter(stories(points)).map(story).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}
