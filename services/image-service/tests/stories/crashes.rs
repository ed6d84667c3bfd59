//! The service killed at each recorded step, and started again: what was begun ends, done or undone with nothing left.

use std::{path::PathBuf, process::Stdio, time::Duration};

use contract::{
    ErrorCode, OperationId,
    image::{Gc, GcKind, GcOutcome, Pull},
    operation::{Cancel, Operation, OperationState},
};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use testkit::{Postgres, wait_until};
use tokio::process::{Child, Command};

use crate::gc::{operation, pull_on, told};
use crate::lab::{BOUND, Lab, count, image_of, registry};

/// How many labs at once: each has a nats-server and a service.
pub const AT_ONCE: usize = 4;

/// A lab whose service is a process of its own, which dies at one point.
pub struct Crash {
    pub lab: Lab,
    point: &'static str,
    dir: tempfile::TempDir,
}

impl Crash {
    async fn at(point: &'static str) -> Self {
        Self { lab: Lab::engines().await, point, dir: tempfile::tempdir().unwrap() }
    }

    /// In a database of its own on a shared PostgreSQL.
    pub async fn on(postgres: &Postgres, point: &'static str) -> Self {
        Self::of_story(postgres, point, "").await
    }

    /// As [`Crash::on`], where several stories die at the same point.
    pub async fn of_story(postgres: &Postgres, point: &'static str, story: &str) -> Self {
        let url = postgres.create_database(&(point.replace(['.', '/'], "_") + story)).await;
        Self { lab: Lab::on(url).await, point, dir: tempfile::tempdir().unwrap() }
    }

    fn mark(&self) -> PathBuf {
        self.dir.path().join("mark")
    }

    /// Starts the service, and waits until it answers.
    pub async fn start(&self) -> Child {
        let child = Command::new(env!("CARGO_BIN_EXE_image-service"))
            .env("WARREN_NATS_URL", &self.lab.config.nats_url)
            .env("WARREN_DATABASE_URL", &self.lab.config.database_url)
            .env("WARREN_FAULT", self.point)
            .env("WARREN_FAULT_MARK", self.mark())
            .env("WARREN_IMAGE_RECONCILE", "0")
            .env("WARREN_IMAGE_GC_AGE", "60")
            .env("WARREN_IMAGE_GC_GRACE", "0")
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        // Verbs about kernels are served last.
        wait_until("the service", BOUND, async || self.lab.call::<contract::kernel::List>(json!({}), None).await.ok())
            .await;
        child
    }

    /// Waits until the service has died at the point, and makes the lease run out at once.
    pub async fn died(&self, mut child: Child) {
        let status = tokio::time::timeout(BOUND, child.wait()).await;
        let status = status.unwrap_or_else(|_| panic!("{} was never reached", self.point)).unwrap();
        assert!(!status.success() && self.mark().exists(), "{}: {status}", self.point);
        let expire =
            "update operations.operation set lease_until = now() - interval '1 second' where state = 'running'";
        self.lab.sql().await.execute(expire, &[]).await.unwrap();
    }

    pub async fn cancel_requested(&self, id: OperationId) {
        let cancel = "update operations.operation set cancel_requested = true where id = $1";
        self.lab.sql().await.execute(cancel, &[&id.0]).await.unwrap();
    }

    async fn pull(&self) -> OperationId {
        let request = json!({ "source": { "registry": registry("debian") }, "name": "debian" });
        self.accepted::<Pull>("image.pull", request).await
    }

    async fn delete(&self) -> OperationId {
        self.accepted::<contract::image::Delete>("image.delete", json!({ "image": "debian" })).await
    }

    /// Asks for an operation. The service may die before it has answered; then the row tells.
    pub async fn accepted<V: contract::Verb<Reply = Operation>>(&self, kind: &str, request: Value) -> OperationId {
        let answer = tokio::time::timeout(Duration::from_secs(3), self.lab.call::<V>(request, None)).await;
        if let Ok(Ok(operation)) = answer {
            return operation.id;
        }
        let (sql, look) = (self.lab.sql().await, "select id from operations.operation where kind = $1");
        wait_until("the accepted operation", BOUND, async || {
            sql.query_opt(look, &[&kind]).await.unwrap().map(|row| OperationId(row.get(0)))
        })
        .await
    }
}

const PULL_POINTS: [&str; 13] = [
    "image.pull/place/before",
    "image.pull/place/after",
    "image.pull/place/recorded",
    "image.pull/resolve/before",
    "image.pull/resolve/after",
    "image.pull/resolve/recorded",
    "image.pull/stage/before",
    "image.pull/stage/after",
    "image.pull/stage/recorded",
    "image.pull/publish/before",
    "image.pull/publish/renamed",
    "image.pull/publish/after",
    "image.pull/publish/recorded",
];

#[tokio::test]
async fn a_pull_killed_at_each_step_ends_well() {
    let postgres = &Postgres::start().await;
    let story = |point| async move {
        let crash = Crash::on(postgres, point).await;
        let child = crash.start().await;
        let id = crash.pull().await;
        crash.died(child).await;
        let _child = crash.start().await;
        let lab = &crash.lab;
        let ended = lab.ended(id).await;
        let image = image_of(&ended);
        assert_eq!(ended.attempts, 2, "{point}");
        assert_eq!(lab.image("debian").await.unwrap(), image, "{point}");
        assert_eq!((lab.host.images(), lab.host.staging()), (vec![image.id], vec![]), "{point}");
        assert_eq!(count(&lab.sql().await, "select count(*) from image.image").await, 1, "{point}");
        lab.delete("debian").await.unwrap();
        lab.assert_nothing_left().await;
    };
    stream::iter(PULL_POINTS).map(story).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}

#[tokio::test]
async fn a_pull_killed_at_each_step_and_cancelled_leaves_nothing() {
    let postgres = &Postgres::start().await;
    let story = |point| async move {
        let crash = Crash::on(postgres, point).await;
        let child = crash.start().await;
        let id = crash.pull().await;
        crash.died(child).await;
        crash.cancel_requested(id).await;
        let _child = crash.start().await;
        let lab = &crash.lab;
        let ended = lab.ended(id).await;
        if point == "image.pull/publish/recorded" {
            // All was done when the cancel came.
            assert_eq!(ended.state, OperationState::Succeeded, "{point}");
            lab.delete("debian").await.unwrap();
        } else {
            assert_eq!(ended.state, OperationState::Cancelled, "{point}: {ended:?}");
            assert_eq!(lab.image("debian").await.unwrap_err().code, ErrorCode::NotFound, "{point}");
        }
        lab.assert_nothing_left().await;
    };
    stream::iter(PULL_POINTS).map(story).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}

#[tokio::test]
async fn an_undo_killed_in_the_middle_is_finished() {
    let crash = Crash::at("image.pull/stage/undone").await;
    let child = crash.start().await;
    let source = registry("debian");
    crash.lab.host.block(&source);
    let id = crash.pull().await;
    wait_until("the download", BOUND, async || (crash.lab.host.asked(&source) > 0).then_some(())).await;
    crash.lab.call::<Cancel>(json!({ "id": id }), None).await.unwrap();
    crash.died(child).await;
    let _child = crash.start().await;
    assert_eq!(crash.lab.ended(id).await.state, OperationState::Cancelled);
    crash.lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_delete_killed_at_each_point_ends_well() {
    let points = [
        "image.delete/delete/before",
        "image.delete/delete/withdrawn",
        "image.delete/delete/after",
        "image.delete/delete/recorded",
    ];
    let postgres = &Postgres::start().await;
    let story = |point| async move {
        let crash = Crash::on(postgres, point).await;
        let child = crash.start().await;
        let lab = &crash.lab;
        lab.pull(&registry("debian"), "debian").await.unwrap();
        let id = crash.delete().await;
        crash.died(child).await;
        let _child = crash.start().await;
        assert_eq!(lab.ended(id).await.state, OperationState::Succeeded, "{point}");
        lab.assert_nothing_left().await;
    };
    stream::iter(points).map(story).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}

#[tokio::test]
async fn a_tag_and_a_rename_killed_at_each_point_end_well() {
    let points = [
        "image.tag/tag/before",
        "image.tag/tag/after",
        "image.tag/tag/recorded",
        "image.rename/rename/before",
        "image.rename/rename/after",
        "image.rename/rename/recorded",
    ];
    let postgres = &Postgres::start().await;
    let story = |point: &'static str| async move {
        let crash = Crash::on(postgres, point).await;
        let child = crash.start().await;
        let lab = &crash.lab;
        let image = image_of(&lab.pull(&registry("debian"), "debian").await.unwrap());
        let (id, left) = if point.starts_with("image.tag") {
            let request = json!({ "image": "debian", "name": "new" });
            (crash.accepted::<contract::image::Tag>("image.tag", request).await, 2)
        } else {
            let request = json!({ "from": "debian", "to": "new" });
            (crash.accepted::<contract::image::Rename>("image.rename", request).await, 1)
        };
        crash.died(child).await;
        let _child = crash.start().await;
        assert_eq!(image_of(&lab.ended(id).await).id, image.id, "{point}");
        assert_eq!(lab.image("new").await.unwrap().names.len(), left, "{point}");
        lab.delete(&image.id.to_string()).await.unwrap();
        lab.assert_nothing_left().await;
    };
    stream::iter(points).map(story).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}

#[tokio::test]
async fn a_collection_of_garbage_killed_at_each_point_is_done_by_the_next() {
    let points = [
        "image.gc/staging/mended",
        "image.gc/directory/mended",
        "image.gc/missing/mended",
        "image.gc/host_gone/before",
        "image.gc/unnamed/submitted",
        "image.collect/collect/before",
        "image.collect/collect/withdrawn",
        "image.collect/collect/after",
        "image.collect/collect/recorded",
    ];
    let postgres = &Postgres::start().await;
    let story = |point| async move {
        let crash = Crash::on(postgres, point).await;
        let child = crash.start().await;
        let lab = &crash.lab;
        let sql = lab.sql().await;
        let old = pull_on(lab, "debian", "debian", "h1").await.unwrap();
        lab.host.push(&registry("debian"), "of today");
        let new = pull_on(lab, "debian", "debian", "h1").await.unwrap();
        let ended = operation(lab, "failed").await;
        lab.host.leave_staging(ended);
        lab.host.leave_image(contract::ImageId::new(), &[ended]);
        lab.host.lose(new.id);
        sql.execute("insert into image.replica (image_id, host_id) values ($1, 'gone')", &[&new.id.0]).await.unwrap();
        let long_ago = "update image.image set unnamed_at = now() - interval '1 hour' where id = $1";
        sql.execute(long_ago, &[&old.id.0]).await.unwrap();

        let died = crash.died(child);
        tokio::pin!(died);
        tokio::select! {
            _ = lab.call::<Gc>(json!({}), None) => died.await,
            () = &mut died => {}
        }
        sql.execute("update image.reconciler set until = now()", &[]).await.unwrap();
        let _child = crash.start().await;
        lab.gc(false).await;
        wait_until("all but the lost one gone", BOUND, async || {
            (lab.host.images().is_empty() && lab.host.staging().is_empty()).then_some(())
        })
        .await;
        wait_until("the collection's end", BOUND, async || {
            let open = "select count(*) from operations.operation where state in ('queued', 'running')";
            (count(&sql, open).await == 0).then_some(())
        })
        .await;
        let report = lab.gc(true).await;
        assert_eq!(told(&report), [(GcKind::Missing, new.id.to_string(), GcOutcome::Left)], "{point}");
        let shown = lab.image("debian").await.unwrap();
        assert_eq!((shown.hosts.len(), shown.missing.as_slice()), (0, [lab.host.id.clone()].as_slice()), "{point}");
        pull_on(lab, "debian", "debian", "h1").await.unwrap();
        assert_eq!(told(&lab.gc(true).await), [], "{point}");
        lab.delete("debian").await.unwrap();
        lab.assert_nothing_left().await;
    };
    stream::iter(points).map(story).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}

#[tokio::test]
async fn a_service_told_to_stop_ends_in_order() {
    let crash = Crash::at("nowhere").await;
    let mut child = crash.start().await;
    crash.lab.pull(&registry("debian"), "debian").await.unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id().unwrap().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = tokio::time::timeout(Duration::from_secs(15), child.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
}
