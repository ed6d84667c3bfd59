//! Deletes: of what is in use, beside a pull of the same name, and with a host that is away.

use contract::{ErrorCode, operation::OperationState};
use serde_json::json;
use testkit::wait_until;

use crate::{
    fake_host::FakeHost,
    kernels::Kernels,
    lab::{BOUND, Lab, count, image_of, registry},
};

/// Gives the lab a VM on `h1` as vm-lifecycle would have reserved it.
pub async fn insert_vm(sql: &tokio_postgres::Client, name: &str, image: contract::ImageId) {
    let register = "select vm.host_register('h1', '10.77.0.0/16', 24, gen_random_uuid(), 8, 8192, 8192, 'fake', '0')";
    sql.execute(register, &[]).await.unwrap();
    sql.execute(
        "insert into vm.vm (id, name, host_id, image_id, image_name, cpus, memory_mib, disk_mib, ssh_keys, epoch) \
         values (gen_random_uuid(), $1, 'h1', $2, 'debian', 1, 256, 1024, '{}', 1)",
        &[&name, &image.0],
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn an_image_in_use_stays() {
    let lab = Lab::start().await;
    let image = image_of(&lab.pull(&registry("debian"), "debian").await.unwrap());
    let sql = lab.sql().await;
    insert_vm(&sql, "web", image.id).await;
    insert_vm(&sql, "db", image.id).await;
    for reference in ["debian", &image.id.to_string()] {
        let error = lab.delete(reference).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::FailedPrecondition);
        assert!(error.message.contains("2 VMs: db, web"), "{error}");
        assert_eq!(error.details.unwrap()["vms"], json!(["db", "web"]));
    }
    assert_eq!(lab.image("debian").await.unwrap(), image);
    assert_eq!(lab.host.images(), [image.id]);
    sql.execute("delete from vm.vm", &[]).await.unwrap();
    lab.delete("debian").await.unwrap();
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_vm_reserved_at_the_last_moment_keeps_its_image() {
    let lab = Lab::start().await;
    let image = image_of(&lab.pull(&registry("debian"), "debian").await.unwrap());
    let mut sql = lab.sql().await;
    // The reservation has not committed when the delete looks for users; the foreign key makes the delete wait.
    let reservation = sql.transaction().await.unwrap();
    insert_vm(reservation.client(), "web", image.id).await;
    let delete = lab.delete("debian");
    let commit = async {
        let watch = lab.sql().await;
        let waiting =
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%image.replica%'";
        wait_until("the delete's wait", BOUND, async || (count(&watch, waiting).await == 1).then_some(())).await;
        reservation.commit().await.unwrap();
    };
    let (deleted, ()) = tokio::join!(delete, commit);
    let error = deleted.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    assert!(error.message.contains("VM web"), "{error}");
    assert_eq!(lab.image("debian").await.unwrap(), image);
    assert_eq!(lab.host.images(), [image.id]);
}

#[tokio::test]
async fn a_name_deleted_while_another_pull_to_it_runs_goes_to_that_pull() {
    let lab = Lab::start().await;
    let slow = registry("slow");
    lab.host.block(&slow);
    let pulling = lab.pulling(&slow, "debian").await;
    assert_eq!(lab.delete("debian").await.unwrap_err().code, ErrorCode::NotFound);
    // A second pull to the name was accepted before either had it, and is through first.
    let first = image_of(&lab.pull(&registry("quick"), "debian").await.unwrap());
    lab.delete("debian").await.unwrap();
    assert_eq!(lab.host.images(), []);
    lab.host.release(&slow);
    let second = image_of(&lab.ended(pulling).await);
    assert_ne!(first.id, second.id);
    assert_eq!(lab.image("debian").await.unwrap(), second);
    assert_eq!(lab.host.images(), [second.id]);
}

#[tokio::test]
async fn a_host_that_is_away_owes_the_files() {
    let lab = Lab::start().await;
    let image = image_of(&lab.pull(&registry("debian"), "debian").await.unwrap());
    lab.host.set_away(true);
    let deleted = lab.delete("debian").await.unwrap();
    assert_eq!(deleted.state, OperationState::Succeeded);
    assert_eq!(deleted.result.unwrap()["owed"], json!(["h1"]));
    assert_eq!(lab.image("debian").await.unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(lab.host.images(), [image.id]);
    // The name is free at once.
    lab.host.set_away(false);
    let again = image_of(&lab.pull(&registry("debian"), "debian").await.unwrap());
    wait_until("the removal", BOUND, async || (lab.host.images() == [again.id]).then_some(())).await;
    lab.delete("debian").await.unwrap();
    lab.assert_owes_nothing().await;
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_host_that_hangs_holds_up_nothing_but_what_it_owes() {
    let kernels = Kernels::start().await;
    let lab = &kernels.lab;
    let _other = FakeHost::start(&lab.bus, "h2").await;
    lab.host.hang(true);
    let sql = lab.sql().await;
    let operation = contract::OperationId::new();
    for (table, id, host) in [
        ("removal", "image_id", "h1"),
        ("removal", "image_id", "h1"),
        ("removal", "image_id", "h2"),
        ("kernel_removal", "kernel_id", "h2"),
    ] {
        let owe = format!(
            "insert into image.{table} ({id}, host_id, operation_id, epoch, try_at) values (gen_random_uuid(), $1, $2, 1, now())"
        );
        sql.execute(&owe, &[&host, &operation.0]).await.unwrap();
    }
    let owed = "select count(*) from image.removal where host_id = 'h2'";
    let kernel = "select count(*) from image.kernel_removal";
    wait_until("the other host's files to go", BOUND, async || {
        (count(&sql, owed).await + count(&sql, kernel).await == 0).then_some(())
    })
    .await;
    assert_eq!(count(&sql, "select count(*) from image.removal").await, 2);
    lab.host.hang(false);
    lab.assert_owes_nothing().await;
}
