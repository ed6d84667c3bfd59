//! Stories of kernels that rows and hosts do not agree about, and of those that nothing uses.

use std::time::Duration;

use contract::{
    KernelId,
    host::HostState,
    image::{GcKind, GcOutcome},
};
use serde_json::json;

use crate::{
    fake_host::FakeHost,
    fake_kernels::kernel,
    gc::{operation, told},
    kernels::{Kernels, kernel_of},
    lab::{Lab, registry},
};

#[tokio::test]
async fn what_hosts_and_rows_lack_of_each_other_of_kernels_is_found_and_mended() {
    let kernels = Kernels::start().await;
    let (lab, hosts) = (&kernels.lab, &kernels.hosts);
    let _second = FakeHost::start(&lab.bus, "h2").await;
    let stable = kernels.imported("/srv/6.1", "stable").await;
    kernels.place(&stable, "h2").await.unwrap();
    assert_eq!(told(&lab.gc(false).await), []);

    let (ended, stray) = (operation(lab, "failed").await, KernelId::new());
    hosts.stage(&"h1".parse().unwrap(), ended, &kernel("left"));
    hosts.leave("h2", stray, ended, "left");
    hosts.lose("h2", stable.id);
    hosts.set_age(100);
    let sql = lab.sql().await;
    let gone = "insert into image.kernel_replica (kernel_id, host_id, created_at) values ($1, 'gone', now() - interval '7 hours')";
    sql.execute(gone, &[&stable.id.0]).await.unwrap();
    let of_kernel = format!("kernel {}", stable.id);
    let expected = |outcome: GcOutcome| {
        vec![
            (GcKind::Staging, format!("kernel-objects/.staging-{ended}"), outcome),
            (GcKind::Directory, format!("kernel-objects/{stray}"), outcome),
            (GcKind::Missing, of_kernel.clone(), outcome),
            (GcKind::HostGone, of_kernel.clone(), outcome),
        ]
    };
    let sorted = |report: &contract::image::GcReport| {
        let mut told = told(report);
        told.sort_by_key(|(kind, ..)| *kind);
        told
    };
    assert_eq!(sorted(&lab.gc(true).await), expected(GcOutcome::Pending));
    assert_eq!((hosts.published().len(), hosts.stagings()), (2, 1), "a dry run changes nothing");
    assert_eq!(sorted(&lab.gc(false).await), expected(GcOutcome::Mended));
    assert_eq!((hosts.published(), hosts.stagings()), (vec![("h1".to_owned(), stable.id)], 0));
    let shown = kernels.get("stable").await.unwrap();
    assert_eq!((shown.hosts, shown.missing), (vec!["h1".parse().unwrap()], vec!["h2".parse().unwrap()]));
    assert_eq!(told(&lab.gc(false).await), [(GcKind::Missing, of_kernel.clone(), GcOutcome::Left)]);

    // Whole again, by whatever way: noticed, or brought.
    hosts.leave("h2", stable.id, ended, "/srv/6.1");
    assert_eq!(told(&lab.gc(false).await), [(GcKind::Returned, of_kernel.clone(), GcOutcome::Mended)]);
    hosts.lose("h2", stable.id);
    lab.gc(false).await;
    let placed = kernel_of(&kernels.place(&stable, "h2").await.unwrap());
    assert_eq!((placed.hosts.len(), placed.missing.len()), (2, 0));
    assert_eq!(told(&lab.gc(false).await), []);
    // A host that was down while its kernel was deleted, and that nobody has any more, owes nothing.
    hosts.set_away("h2", true);
    kernels.delete("stable").await.unwrap();
    lab.registry.put("h2", HostState::Down, 512);
    assert_eq!(told(&lab.gc(true).await), [(GcKind::Owed, format!("kernel-objects/{}", stable.id), GcOutcome::Left)]);
    lab.registry.forget("h2");
    assert_eq!(
        told(&lab.gc(false).await),
        [(GcKind::Owed, format!("kernel-objects/{}", stable.id), GcOutcome::Mended)]
    );
    hosts.lose("h2", stable.id);
    kernels.assert_nothing_left().await;
}

#[tokio::test]
async fn a_kernel_that_came_along_goes_when_nothing_uses_it_and_one_that_was_imported_stays() {
    let kernels = Kernels::of(Lab::start_with(|gc| gc.age = Some(Duration::ZERO)).await).await;
    let (lab, hosts) = (&kernels.lab, &kernels.hosts);
    for (image, content) in [("web", "/srv/web"), ("db", "/srv/db")] {
        lab.host.bundle(&registry(image), kernel(content), hosts);
        lab.pull(&registry(image), image).await.unwrap();
    }
    let (web, db) =
        (kernels.get(&kernel("/srv/web").digest).await.unwrap(), kernels.get(&kernel("/srv/db").digest).await.unwrap());
    // One of the two is imported too, and loses its name again; a third was only imported.
    for path in ["/srv/db", "/srv/own", "/srv/other"] {
        let request = json!({ "source": { "path": path }, "name": "mine", "replace": true, "wait": true });
        kernel_of(&lab.call::<contract::kernel::Import>(request, None).await.unwrap());
    }
    assert_eq!((hosts.published().len(), told(&lab.gc(false).await)), (4, vec![]));
    for image in ["web", "db"] {
        lab.delete(image).await.unwrap();
    }
    let of_web = format!("kernel {}", web.id);
    // Since when it is unused is noted by a round that may change something.
    assert_eq!(told(&lab.gc(true).await), []);
    assert_eq!(told(&lab.gc(false).await), [(GcKind::Unnamed, of_web, GcOutcome::Mended)]);
    assert_eq!(told(&lab.gc(false).await), []);
    let left: Vec<_> = hosts.published().into_iter().map(|(_, kernel)| kernel).collect();
    assert!(left.len() == 3 && !left.contains(&web.id) && left.contains(&db.id), "{left:?}");
    for content in ["/srv/db", "/srv/own", "/srv/other"] {
        kernels.delete(&kernel(content).digest).await.unwrap();
    }
    kernels.assert_nothing_left().await;
}
