//! Stories of kernels that go with images: pulled with one, named by it, taken along by a push, and neither there when a pull is called off.

use contract::{
    image::{Push, SetKernel},
    operation::OperationState,
};
use futures::{StreamExt, stream};
use serde_json::json;
use testkit::Postgres;

use crate::{
    crashes::Crash,
    fake_kernels::{FakeKernels, kernel},
    kernels::Kernels,
    lab::{image_of, registry},
};

#[tokio::test]
async fn a_bundle_brings_its_kernel_which_its_image_names() {
    let kernels = Kernels::start().await;
    let lab = &kernels.lab;
    lab.host.bundle(&registry("web"), kernel("6.1"), &kernels.hosts);
    let image = image_of(&lab.pull(&registry("web"), "web").await.unwrap());
    let named = image.kernel.clone().expect("the image names the kernel that came along");
    assert_eq!((&named.digest, &named.release), (&kernel("6.1").digest, &kernel("6.1").release));
    let shown = kernels.get(&named.digest).await.unwrap();
    assert_eq!((shown.id, shown.images, shown.source), (named.id, 1, registry("web")));
    assert_eq!((shown.names, shown.hosts.len(), kernels.hosts.stagings()), (vec![], 1, 0));
    assert_eq!(kernels.hosts.published(), [("h1".to_owned(), named.id)]);
    // A second image that brings the same names the same.
    lab.host.bundle(&registry("db"), kernel("6.1"), &kernels.hosts);
    let other = image_of(&lab.pull(&registry("db"), "db").await.unwrap());
    assert_eq!(other.kernel.as_ref(), Some(&named));
    assert_eq!((kernels.hosts.published().len(), kernels.hosts.stagings()), (1, 0));
    // What an image names that is here is the lab's affair.
    lab.call::<SetKernel>(json!({ "image": "db" }), None).await.unwrap();
    assert_eq!(image_of(&lab.pull(&registry("db"), "again").await.unwrap()).kernel, None);
    assert!(kernels.delete(&named.digest).await.unwrap_err().message.contains("images: web"));
    for image in ["web", "db", "again"] {
        lab.delete(image).await.unwrap();
    }
    kernels.delete(&named.digest).await.unwrap();
    kernels.assert_nothing_left().await;
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_kernel_that_is_here_gets_a_replica_and_keeps_its_name() {
    let kernels = Kernels::start().await;
    let lab = &kernels.lab;
    let request = json!({ "source": { "path": "/6.1" }, "name": "stable", "host": "h2", "wait": true });
    lab.call::<contract::kernel::Import>(request, None).await.unwrap();
    let stable = kernels.get("stable").await.unwrap();
    lab.host.bundle(&registry("web"), kernel("/6.1"), &kernels.hosts);
    let image = image_of(&lab.pull(&registry("web"), "web").await.unwrap());
    assert_eq!(image.kernel.unwrap().id, stable.id);
    let shown = kernels.get("stable").await.unwrap();
    assert_eq!((shown.hosts.len(), shown.source), (2, stable.source));
    assert_eq!((kernels.hosts.published().len(), kernels.hosts.stagings()), (2, 0));
}

#[tokio::test]
async fn a_push_takes_along_the_kernel_the_image_names_from_wherever_it_is() {
    let kernels = Kernels::start().await;
    let lab = &kernels.lab;
    lab.pull(&registry("debian"), "debian").await.unwrap();
    let push = async |to: &str| {
        let request = json!({ "image": "debian", "reference": to, "wait": true });
        assert_eq!(lab.call::<Push>(request, None).await.unwrap().state, OperationState::Succeeded);
        lab.host.taken(to)
    };
    assert_eq!(push(&registry("bare")).await, None);
    let request = json!({ "source": { "path": "/6.1" }, "name": "stable", "host": "h2", "wait": true });
    lab.call::<contract::kernel::Import>(request, None).await.unwrap();
    lab.call::<SetKernel>(json!({ "image": "debian", "kernel": "stable" }), None).await.unwrap();
    let stable = kernels.get("stable").await.unwrap();
    assert_eq!(push(&registry("whole")).await.unwrap().digest, stable.digest);
    assert_eq!(kernels.get("stable").await.unwrap().hosts.len(), 2, "the host that packs it was sent it");
    lab.call::<SetKernel>(json!({ "image": "debian" }), None).await.unwrap();
    assert_eq!(push(&registry("bare-again")).await, None);
}

const POINTS: [&str; 6] = [
    "image.pull/resolve/recorded",
    "image.pull/stage/recorded",
    "image.pull/publish/before",
    "image.pull/publish/renamed",
    "image.pull/publish/kernel",
    "image.pull/publish/after",
];

#[tokio::test]
async fn a_pull_killed_at_each_step_has_image_and_kernel_or_cancelled_neither() {
    let postgres = &Postgres::start().await;
    let story = |(point, cancelled): (&'static str, bool)| async move {
        let crash = Crash::of_story(postgres, point, if cancelled { "_k_cancelled" } else { "_k" }).await;
        let hosts = FakeKernels::default();
        hosts.add(&crash.lab.bus, "h1").await;
        crash.lab.host.bundle(&registry("web"), kernel("6.1"), &hosts);
        let child = crash.start().await;
        let request = json!({ "source": { "registry": registry("web") }, "name": "web" });
        let id = crash.accepted::<contract::image::Pull>("image.pull", request).await;
        crash.died(child).await;
        if cancelled {
            crash.cancel_requested(id).await;
        }
        let _child = crash.start().await;
        let ended = crash.lab.ended(id).await;
        let kernels = Kernels { lab: crash.lab, hosts };
        if cancelled {
            assert_eq!(ended.state, OperationState::Cancelled, "{point}: {ended:?}");
        } else {
            let named = image_of(&ended).kernel.unwrap_or_else(|| panic!("{point}: no kernel"));
            assert_eq!(kernels.hosts.published(), [("h1".to_owned(), named.id)], "{point}");
            kernels.lab.delete("web").await.unwrap();
            kernels.delete(&named.digest).await.unwrap();
        }
        kernels.assert_nothing_left().await;
        kernels.lab.assert_nothing_left().await;
    };
    let stories = POINTS.into_iter().flat_map(|point| [(point, false), (point, true)]);
    stream::iter(stories).map(story).buffer_unordered(4).collect::<Vec<()>>().await;
}
