//! Stories of VMs and the kernels they boot: one of the lab's comes to whichever host the VM is on, one of a host's own is where it is.

mod common;

use common::{Lab, roomy};
use contract::{ErrorCode, vm};
use serde_json::json;

#[tokio::test]
async fn a_vm_has_its_kernel_for_life_and_it_comes_to_its_host() {
    let lab = Lab::start().await;
    let (one, two) = (lab.host("h1", roomy()).await, lab.host("h2", roomy()).await);
    let odd = lab.images.put_kernel(&lab.sql, "odd", &["h1"], false).await;
    // As before, where nobody names one.
    lab.create("plain", json!({ "host": "h1" })).await.unwrap();
    assert_eq!(lab.vm("plain").await.booted, None);
    lab.create("web", json!({ "host": "h2", "kernel": "odd" })).await.unwrap();
    let web = lab.vm("web").await;
    let booted = web.booted.clone().unwrap();
    assert_eq!((booted.id, &booted.digest, &booted.release), (odd.id, &odd.digest, &odd.release));
    assert_eq!(web.features.kernel.as_ref().unwrap().as_str(), "odd");
    assert_eq!(lab.images.kernel_hosts("odd"), ["h1", "h2"]);
    // It cannot be removed while the VM is there.
    let delete = lab.sql.execute("delete from image.kernel where id = $1", &[&odd.id.0]).await.unwrap_err();
    assert!(delete.as_db_error().unwrap().constraint() == Some("vm_kernel"), "{delete:?}");
    let default = lab.images.put_kernel(&lab.sql, "default", &["h2"], true).await;
    lab.create("db", json!({ "host": "h1" })).await.unwrap();
    assert_eq!(lab.vm("db").await.booted.unwrap().id, default.id);
    lab.order::<vm::Restart>("web").await.unwrap();
    assert_eq!(lab.vm("web").await.booted.unwrap().id, odd.id);
    // A host that has lost it is sent it again before the VM starts; what boots its host's own kernel needs none.
    let placed = async || {
        lab.sql
            .query_one("select count(*) from operations.operation where kind = 'kernel.place'", &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
    };
    let before = placed().await;
    two.lose_kernels();
    lab.order::<vm::Restart>("web").await.unwrap();
    assert_eq!(placed().await, before + 1);
    lab.order::<vm::Stop>("web").await.unwrap();
    lab.order::<vm::Start>("web").await.unwrap();
    lab.order::<vm::Start>("web").await.unwrap();
    assert_eq!(placed().await, before + 2, "what runs already needs no kernel");
    one.lose_kernels();
    lab.order::<vm::Restart>("plain").await.unwrap();
    assert_eq!(placed().await, before + 2);
    for vm in ["web", "db", "plain"] {
        lab.order::<vm::Delete>(vm).await.unwrap();
    }
    lab.sql.execute("delete from image.kernel", &[]).await.unwrap();
    assert!(one.vms().is_empty() && two.vms().is_empty());
}

#[tokio::test]
async fn a_kernel_nobody_has_and_one_that_was_deleted_are_said() {
    let lab = Lab::start().await;
    let host = lab.host("h1", roomy()).await;
    let error = lab.create("web", json!({ "kernel": "nowhere" })).await.unwrap_err();
    assert!(error.message.contains("has no kernel nowhere"), "{error}");
    assert!(error.hint.unwrap().contains("warren kernel import"));
    // Told of, and gone before the VM had it.
    let odd = lab.images.put_kernel(&lab.sql, "odd", &["h1"], false).await;
    lab.sql.execute("delete from image.kernel where id = $1", &[&odd.id.0]).await.unwrap();
    let error = lab.create("web", json!({ "kernel": "odd" })).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    assert!(error.message.contains("was deleted"), "{error}");
    assert_eq!(lab.state("web").await, None);
    assert!(host.vms().is_empty());
}

#[tokio::test]
async fn the_vms_of_a_lab_may_name_kernels_of_the_labs() {
    let lab = Lab::start().await;
    let _host = lab.host("h1", roomy()).await;
    let odd = lab.images.put_kernel(&lab.sql, "odd", &["h1"], false).await;
    let vm = |name: &str| json!({ "name": name, "image": "debian", "kernel": "odd" });
    let request = json!({ "lab": "shop", "vms": [vm("web"), vm("db")], "wait": true });
    lab.call::<contract::lab::Up>(request, None).await.unwrap();
    for name in ["web", "db"] {
        assert_eq!(lab.vm(name).await.booted.unwrap().id, odd.id);
    }
}
