//! Garbage collected while the same images are pulled, tagged and deleted, and by several at once.

use std::time::Duration;

use contract::{
    ErrorCode,
    image::{GcKind, Tag},
};
use futures::future::join_all;
use image_service::Server;
use serde_json::json;

use crate::{
    gc::{operation, pull_on, told},
    lab::{Lab, count, image_of, registry},
};

/// How often each race is run: either side comes first in some.
const ROUNDS: usize = 25;

/// A lab that removes images at once that have no name.
async fn eager() -> Lab {
    Lab::start_with(|gc| (gc.age, gc.grace) = (Some(Duration::ZERO), Duration::ZERO)).await
}

#[tokio::test]
async fn a_pull_and_the_collection_of_the_same_digest_at_once_leave_the_image_whole() {
    let lab = eager().await;
    let (mut kept, mut anew) = (0, 0);
    for round in 0..ROUNDS {
        let source = registry(&format!("s{round}"));
        let old = image_of(&lab.pull(&source, "first").await.unwrap());
        // The name goes elsewhere, so the image has none.
        lab.pull(&registry("other"), "other").await.unwrap();
        let tag = json!({ "image": "other", "name": "first", "replace": true, "wait": true });
        lab.call::<Tag>(tag, None).await.unwrap();
        let late = Duration::from_millis(if round % 2 == 0 { 0 } else { round as u64 });
        let pull = async {
            tokio::time::sleep(late).await;
            lab.pull(&source, "second").await
        };
        let (pulled, report) = tokio::join!(pull, lab.gc(false));
        let pulled = image_of(&pulled.unwrap());
        if pulled.id == old.id {
            kept += 1;
        } else {
            anew += 1;
        }
        let shown = lab.image("second").await.unwrap();
        assert_eq!((shown.id, shown.hosts.as_slice()), (pulled.id, std::slice::from_ref(&lab.host.id)), "{report:?}");
        assert!(lab.host.images().contains(&pulled.id), "{round}: {report:?}");
        lab.delete("second").await.unwrap();
        lab.delete("first").await.unwrap();
    }
    eprintln!("the pull came first {kept} times, the collection {anew} times");
    lab.delete("other").await.unwrap();
    assert_eq!(told(&lab.gc(false).await), []);
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_repair_and_rounds_at_once_leave_the_replica_whole() {
    let lab = eager().await;
    let image = image_of(&lab.pull(&registry("debian"), "debian").await.unwrap());
    for round in 0..ROUNDS {
        lab.host.lose(image.id);
        if round % 2 == 0 {
            lab.gc(false).await;
        }
        let pulls = join_all((0..3).map(|_| pull_on(&lab, "debian", "debian", "h1")));
        let rounds = join_all((0..3).map(|_| lab.gc(false)));
        let (pulled, _) = tokio::join!(pulls, rounds);
        for pulled in pulled {
            assert_eq!(pulled.unwrap().id, image.id);
        }
        // Lost only after the pulls had asked: then it is found now, and the next pull brings it back.
        lab.gc(false).await;
        pull_on(&lab, "debian", "debian", "h1").await.unwrap();
        assert_eq!(told(&lab.gc(false).await), [], "{round}");
        assert_eq!((lab.host.images(), lab.host.staging()), (vec![image.id], vec![]), "{round}");
    }
    lab.delete("debian").await.unwrap();
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn two_replicas_of_the_service_collect_at_once() {
    let lab = eager().await;
    let second = Server::start(lab.config.clone()).await.unwrap();
    let image = image_of(&lab.pull(&registry("debian"), "debian").await.unwrap());
    for _ in 0..5 {
        let ended = operation(&lab, "cancelled").await;
        for _ in 0..4 {
            lab.host.leave_image(contract::ImageId::new(), &[ended]);
        }
        lab.host.leave_staging(ended);
        let reports = join_all((0..6).map(|n| lab.gc(n == 5))).await;
        // Each thing once, and those who came later found nothing.
        let sum = |kind| reports.iter().map(|report| report.count(kind).mended).sum::<u64>();
        assert_eq!((sum(GcKind::Directory), sum(GcKind::Staging)), (4, 1), "{reports:?}");
        assert_eq!((lab.host.images(), lab.host.staging()), (vec![image.id], vec![]));
    }
    let sql = lab.sql().await;
    assert_eq!(count(&sql, "select count(*) from image.reconciler where until <= clock_timestamp()").await, 1);
    second.shutdown().await;
}

#[tokio::test]
async fn pulls_names_deletes_and_rounds_at_once_leave_the_lab_in_order() {
    let lab = eager().await;
    for round in 0..6 {
        let pulls = join_all((0..6).map(|n| {
            let (source, name) = (registry(&format!("r{}", (round + n) % 4)), format!("n{}", n % 3));
            let request = json!({ "source": { "registry": source }, "name": name, "if_newer": true, "wait": true });
            lab.call::<contract::image::Pull>(serde_json::from_value(request).unwrap(), None)
        }));
        let deletes = join_all((0..3).map(|n| {
            let name = format!("n{n}");
            let lab = &lab;
            async move { lab.delete(&name).await }
        }));
        let rounds = join_all((0..4).map(|_| lab.gc(false)));
        let (pulled, deleted, _) = tokio::join!(pulls, deletes, rounds);
        for end in pulled.into_iter().chain(deleted) {
            let known = [ErrorCode::NotFound, ErrorCode::Aborted];
            assert!(end.as_ref().err().is_none_or(|error| known.contains(&error.code)), "{end:?}");
        }
    }
    lab.gc(false).await;
    lab.gc(false).await;
    assert_eq!(told(&lab.gc(true).await), []);
    let sql = lab.sql().await;
    let lost = "select count(*) from image.name n where not exists \
         (select from image.replica r where r.image_id = n.image_id and r.missing_at is null)";
    assert_eq!(count(&sql, lost).await, 0);
    assert_eq!(count(&sql, "select count(*) from image.image").await, lab.host.images().len() as i64);
    for n in 0..3 {
        drop(lab.delete(&format!("n{n}")).await);
    }
    lab.assert_nothing_left().await;
}
