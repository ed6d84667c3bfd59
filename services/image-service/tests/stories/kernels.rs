//! Kernels' lives: imported, named, brought to other hosts, chosen, refused to go while used, and gone.

use contract::{
    ErrorCode,
    host::HostState,
    image::{Register, SetKernel},
    kernel::{Choice, Choose, Delete, Get, Import, Kernel, List, Place, SetDefault},
    operation::{Operation, OperationState},
};
use serde_json::json;
use testkit::wait_until;

use crate::{
    deletes::insert_vm,
    fake_kernels::FakeKernels,
    lab::{BOUND, Lab, count, image_of, registry},
};

pub struct Kernels {
    pub lab: Lab,
    pub hosts: FakeKernels,
}

impl Kernels {
    /// A lab with the service, and kernels on `h1` and `h2`.
    pub async fn start() -> Self {
        let kernels = Self::of(Lab::start().await).await;
        kernels.lab.registry.put("h2", HostState::Up, 512);
        kernels.hosts.add(&kernels.lab.bus, "h2").await;
        kernels
    }

    pub async fn of(lab: Lab) -> Self {
        let hosts = FakeKernels::default();
        hosts.add(&lab.bus, "h1").await;
        Self { lab, hosts }
    }

    pub async fn import(&self, path: &str, name: &str) -> Result<Operation, contract::ApiError> {
        self.lab.call::<Import>(json!({ "source": { "path": path }, "name": name, "wait": true }), None).await
    }

    pub async fn imported(&self, path: &str, name: &str) -> Kernel {
        kernel_of(&self.import(path, name).await.unwrap())
    }

    pub async fn get(&self, kernel: &str) -> Result<Kernel, contract::ApiError> {
        self.lab.call::<Get>(json!({ "kernel": kernel }), None).await
    }

    pub async fn delete(&self, kernel: &str) -> Result<Operation, contract::ApiError> {
        self.lab.call::<Delete>(json!({ "kernel": kernel, "wait": true }), None).await
    }

    pub async fn place(&self, kernel: &Kernel, host: &str) -> Result<Operation, contract::ApiError> {
        self.lab.call::<Place>(json!({ "kernel": kernel.id, "host": host, "wait": true }), None).await
    }

    /// Nothing is left of any kernel: no row, no file, nothing owed.
    pub async fn assert_nothing_left(&self) {
        assert_eq!((self.hosts.published(), self.hosts.stagings()), (vec![], 0));
        let sql = self.lab.sql().await;
        for table in ["kernel", "kernel_name", "kernel_replica", "kernel_removal"] {
            assert_eq!(count(&sql, &format!("select count(*) from image.{table}")).await, 0, "{table}");
        }
        let open = "select count(*) from operations.operation where undo_owed or state in ('queued', 'running')";
        assert_eq!(count(&sql, open).await, 0, "unfinished operations");
    }
}

pub fn kernel_of(operation: &Operation) -> Kernel {
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    serde_json::from_value(operation.result.clone().unwrap()).unwrap()
}

#[tokio::test]
async fn a_kernel_is_what_it_consists_of_and_names_are_pointers_to_it() {
    let kernels = Kernels::start().await;
    let one = kernels.imported("/srv/6.1", "stable").await;
    assert_eq!((one.name.as_str(), one.release.as_str(), one.source.as_str()), ("stable", "6.1.0-1", "host:/srv/6.1"));
    // The same once more is the same kernel under another name.
    let same = kernels.imported("/srv/6.1", "same").await;
    assert_eq!((same.id, same.names.len()), (one.id, 2));
    let error = kernels.import("/srv/6.12", "stable").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::AlreadyExists);
    assert_eq!(kernels.hosts.published(), [("h1".to_owned(), one.id)]);
    let request = json!({ "source": { "path": "/srv/6.12" }, "name": "stable", "replace": true, "wait": true });
    let other = kernel_of(&kernels.lab.call::<Import>(request, None).await.unwrap());
    assert_ne!(other.id, one.id);
    assert_eq!(kernels.get("stable").await.unwrap().id, other.id);
    assert_eq!(kernels.get(&one.digest[..20]).await.unwrap().id, one.id);
    assert_eq!(kernels.get(&one.id.to_string()).await.unwrap().names, ["same".parse().unwrap()]);
    let list = kernels.lab.call::<List>(json!({}), None).await.unwrap().kernels;
    assert_eq!(list.iter().map(|kernel| kernel.name.as_str()).collect::<Vec<_>>(), ["same", "stable"]);
    // A name goes alone, and the kernel with the last one.
    kernels.imported("/srv/6.12", "more").await;
    kernels.delete("more").await.unwrap();
    assert_eq!(kernels.get("stable").await.unwrap().id, other.id);
    kernels.delete("stable").await.unwrap();
    kernels.delete(&one.digest).await.unwrap();
    assert_eq!(kernels.delete("stable").await.unwrap_err().code, ErrorCode::NotFound);
    kernels.assert_nothing_left().await;
}

#[tokio::test]
async fn what_is_no_kernel_leaves_nothing() {
    let kernels = Kernels::start().await;
    let error = kernels.import("/srv/broken", "bad").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    assert_eq!(kernels.import("srv", "bad").await.unwrap_err().code, ErrorCode::InvalidArgument);
    assert_eq!(kernels.get("bad").await.unwrap_err().code, ErrorCode::NotFound);
    kernels.assert_nothing_left().await;
}

#[tokio::test]
async fn a_kernel_in_use_stays_and_who_uses_it_is_said() {
    let kernels = Kernels::start().await;
    let (lab, kernel) = (&kernels.lab, kernels.imported("/srv/6.1", "stable").await);
    let image = image_of(&lab.pull(&registry("debian"), "debian").await.unwrap());
    let sql = lab.sql().await;
    insert_vm(&sql, "web", image.id).await;
    sql.execute("update vm.vm set kernel_id = $1", &[&kernel.id.0]).await.unwrap();
    let request = json!({ "image": "debian", "kernel": "stable" });
    let named = lab.call::<SetKernel>(request, None).await.unwrap().kernel.unwrap();
    assert_eq!((named.id, named.release), (kernel.id, kernel.release.clone()));
    lab.call::<SetDefault>(json!({ "kernel": "stable" }), None).await.unwrap();
    let shown = kernels.get("stable").await.unwrap();
    assert_eq!((shown.vms, shown.images, shown.default), (1, 1, true));
    for reference in ["stable", &kernel.id.to_string()] {
        let error = kernels.delete(reference).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::FailedPrecondition);
        for word in ["VMs: web", "images: debian", "default"] {
            assert!(error.message.contains(word), "{error}");
        }
    }
    sql.execute("update vm.vm set kernel_id = null", &[]).await.unwrap();
    assert!(kernels.delete("stable").await.unwrap_err().hint.unwrap().contains("debian"));
    lab.call::<SetKernel>(json!({ "image": "debian" }), None).await.unwrap();
    for request in [json!({ "image": "debian", "kernel": "nowhere" }), json!({ "image": "nothing" })] {
        assert_eq!(lab.call::<SetKernel>(request, None).await.unwrap_err().code, ErrorCode::NotFound);
    }
    assert!(kernels.delete("stable").await.unwrap_err().hint.unwrap().contains("default"));
    lab.call::<SetDefault>(json!({}), None).await.unwrap();
    kernels.delete("stable").await.unwrap();
    kernels.assert_nothing_left().await;
}

#[tokio::test]
async fn a_registered_image_names_its_kernel_from_its_first_moment() {
    let kernels = Kernels::start().await;
    let (lab, kernel) = (&kernels.lab, kernels.imported("/srv/6.1", "stable").await);
    let register = async |name: &str, kernel: &str| {
        let request = json!({ "source": { "path": "/srv/root.ext4" }, "name": name, "kernel": kernel, "wait": true });
        lab.call::<Register>(request, None).await
    };
    assert_eq!(register("web", "nowhere").await.unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(lab.host.asked("file:/srv/root.ext4"), 0, "no host was told");
    let image = image_of(&register("web", "stable").await.unwrap());
    assert_eq!(image.kernel.as_ref().map(|named| named.id), Some(kernel.id));
    assert!(kernels.delete("stable").await.unwrap_err().message.contains("images: web"));
    // The same file again is the same image, which others may use: it goes on naming what it names.
    kernels.imported("/srv/6.2", "newer").await;
    let refused = register("again", "newer").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::FailedPrecondition);
    let again = image_of(&register("again", "stable").await.unwrap());
    assert_eq!((again.id, again.kernel.map(|named| named.id)), (image.id, Some(kernel.id)));
    // A request that comes again is answered as the first time, also when all it names is gone.
    let request = json!({ "source": { "path": "/srv/other.ext4" }, "name": "once", "kernel": "newer", "wait": true });
    let first = lab.call::<Register>(request.clone(), Some("a-key")).await.unwrap();
    for name in ["web", "again", "once"] {
        lab.delete(name).await.unwrap();
    }
    for name in ["stable", "newer"] {
        kernels.delete(name).await.unwrap();
    }
    assert_eq!(lab.call::<Register>(request.clone(), Some("a-key")).await.unwrap().id, first.id);
    assert_eq!(lab.call::<Register>(request, Some("b-key")).await.unwrap_err().code, ErrorCode::NotFound);
    kernels.assert_nothing_left().await;
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_vm_boots_what_it_asks_for_or_its_images_kernel_or_the_default() {
    let kernels = Kernels::start().await;
    let lab = &kernels.lab;
    let image = image_of(&lab.pull(&registry("debian"), "debian").await.unwrap());
    let chosen = async |kernel: Option<&str>| {
        let request = json!({ "image": image.id, "kernel": kernel });
        lab.call::<Choose>(request, None).await.unwrap().kernel.map(|kernel| kernel.name.to_string())
    };
    assert_eq!(chosen(None).await, None);
    kernels.imported("/srv/a", "asked").await;
    let of_image = kernels.imported("/srv/i", "of-image").await;
    kernels.imported("/srv/d", "default").await;
    assert_eq!(chosen(None).await, None, "a kernel that is there is not the default yet");
    let Choice { kernel } = lab.call::<SetDefault>(json!({ "kernel": "default" }), None).await.unwrap();
    assert!(kernel.unwrap().default);
    assert_eq!(chosen(None).await.as_deref(), Some("default"));
    lab.call::<SetKernel>(json!({ "image": "debian", "kernel": of_image.digest }), None).await.unwrap();
    assert_eq!(chosen(None).await.as_deref(), Some("of-image"));
    assert_eq!(chosen(Some("asked")).await.as_deref(), Some("asked"));
    assert_eq!(chosen(Some("only-on-a-host")).await, None);
    assert_eq!(
        lab.call::<SetDefault>(json!({ "kernel": "nowhere" }), None).await.unwrap_err().code,
        ErrorCode::NotFound
    );
}

#[tokio::test]
async fn a_host_that_lacks_a_kernel_is_sent_it_and_a_delete_reaches_all() {
    let kernels = Kernels::start().await;
    let kernel = kernels.imported("/srv/6.1", "stable").await;
    assert_eq!(kernel.hosts, ["h1".parse().unwrap()]);
    // A stream that breaks is not the end.
    kernels.hosts.break_streams(2);
    let placed = kernel_of(&kernels.place(&kernel, "h2").await.unwrap());
    assert_eq!(placed.hosts.len(), 2);
    let again = kernel_of(&kernels.place(&kernel, "h2").await.unwrap());
    assert_eq!(again, placed);
    assert_eq!(kernels.hosts.published().len(), 2);
    // Away, a host owes the files.
    kernels.hosts.set_away("h2", true);
    let deleted = kernels.delete("stable").await.unwrap();
    assert_eq!(deleted.result.unwrap()["owed"], json!(["h2"]));
    kernels.hosts.set_away("h2", false);
    wait_until("the removal", BOUND, async || kernels.hosts.published().is_empty().then_some(())).await;
    let sql = kernels.lab.sql().await;
    let owed = "select count(*) from image.kernel_removal";
    wait_until("nothing owed", BOUND, async || (count(&sql, owed).await == 0).then_some(())).await;
    assert_eq!(kernels.place(&kernel, "h2").await.unwrap_err().code, ErrorCode::NotFound);
    kernels.assert_nothing_left().await;
}

#[tokio::test]
async fn a_host_that_lost_a_kernel_is_sent_it_again_or_what_to_do_is_said() {
    let kernels = Kernels::start().await;
    let kernel = kernels.imported("/srv/6.1", "stable").await;
    kernels.place(&kernel, "h2").await.unwrap();
    let both = [("h1".to_owned(), kernel.id), ("h2".to_owned(), kernel.id)];
    for host in ["h1", "h2"] {
        kernels.hosts.lose(host, kernel.id);
        assert_eq!(kernel_of(&kernels.place(&kernel, host).await.unwrap()).hosts.len(), 2);
        assert_eq!((kernels.hosts.published(), kernels.hosts.stagings()), (both.to_vec(), 0));
    }
    // Nobody has it any more.
    for host in ["h1", "h2"] {
        kernels.hosts.lose(host, kernel.id);
    }
    let error = kernels.place(&kernel, "h2").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition, "{error}");
    assert!(error.message.contains("no other host has the kernel stable"), "{error}");
    assert!(error.hint.unwrap().contains("warren kernel import stable FILE... --host h2"));
    // The same files again are the same kernel, which is there again.
    let request = json!({ "source": { "path": "/srv/6.1" }, "name": "stable", "host": "h2", "wait": true });
    assert_eq!(kernel_of(&kernels.lab.call::<Import>(request, None).await.unwrap()).id, kernel.id);
    assert_eq!(kernel_of(&kernels.place(&kernel, "h1").await.unwrap()).hosts.len(), 2);
    assert_eq!(kernels.hosts.published(), both);
    kernels.delete("stable").await.unwrap();
    kernels.assert_nothing_left().await;
}

#[tokio::test]
async fn a_choice_of_a_kernel_that_comes_again_undoes_no_later_one() {
    let kernels = Kernels::start().await;
    let lab = &kernels.lab;
    lab.pull(&registry("debian"), "debian").await.unwrap();
    let (one, two) = (kernels.imported("/srv/1", "one").await, kernels.imported("/srv/2", "two").await);
    let set = async |kernel: &str, key: &str| {
        let request = json!({ "image": "debian", "kernel": kernel });
        lab.call::<SetKernel>(request, Some(key)).await.map(|image| image.kernel.unwrap().id)
    };
    assert_eq!(set("one", "a").await.unwrap(), one.id);
    assert_eq!(set("two", "b").await.unwrap(), two.id);
    assert_eq!(set("one", "a").await.unwrap(), one.id, "as it was answered");
    assert_eq!(lab.image("debian").await.unwrap().kernel.unwrap().id, two.id);
    assert_eq!(set("two", "a").await.unwrap_err().code, ErrorCode::InvalidArgument);

    let default = async |kernel: Option<&str>, key: &str| {
        let Choice { kernel } = lab.call::<SetDefault>(json!({ "kernel": kernel }), Some(key)).await.unwrap();
        kernel.map(|kernel| kernel.id)
    };
    assert_eq!(default(Some("one"), "a").await, Some(one.id));
    assert_eq!(default(None, "b").await, None);
    assert_eq!(default(Some("one"), "a").await, Some(one.id), "as it was answered");
    assert!(!kernels.get("one").await.unwrap().default);
    // Each change was told of once.
    wait_until("the events", BOUND, async || {
        (lab.events().await.iter().filter(|event| *event == "kernel").count() == 2).then_some(())
    })
    .await;
    let sql = lab.sql().await;
    let ended = "select count(*) from operations.operation \
         where kind in ('image.set_kernel', 'kernel.set_default') and state = 'succeeded'";
    assert_eq!(count(&sql, ended).await, 4);
}

#[tokio::test]
async fn a_registration_that_comes_again_is_answered_although_its_kernel_is_gone() {
    let kernels = Kernels::start().await;
    let (lab, _) = (&kernels.lab, kernels.imported("/srv/6.1", "stable").await);
    let request = json!({ "source": { "path": "/srv/root.ext4" }, "name": "web", "kernel": "stable", "wait": true });
    let first = lab.call::<Register>(request.clone(), Some("r")).await.unwrap();
    lab.delete("web").await.unwrap();
    kernels.delete("stable").await.unwrap();
    assert_eq!(lab.call::<Register>(request.clone(), Some("r")).await.unwrap(), first);
    assert_eq!(lab.call::<Register>(request, Some("s")).await.unwrap_err().code, ErrorCode::NotFound);
    kernels.assert_nothing_left().await;
}
