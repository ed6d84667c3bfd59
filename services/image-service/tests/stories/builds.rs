//! Builds: scripts in throw-away VMs, what is kept of them, and what is not.

use std::time::Duration;

use contract::{
    ErrorCode, OperationId,
    image::{Build, BuildLog, Built, LOG_MAX, ReadBuildLog},
    operation::{Cancel, Operation, OperationState},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use testkit::wait_until;

use crate::{
    fake_kernels::FakeKernels,
    fake_vms::{FakeVms, archive, inline},
    lab::{BOUND, Lab, count, image_of, registry},
};

/// A lab with VMs, and an image `debian` to begin with.
struct Builder {
    lab: Lab,
    vms: FakeVms,
}

/// Adds VMs to a lab.
pub async fn vms(lab: &Lab) -> FakeVms {
    FakeVms::start(&lab.bus, &lab.config.database_url, &lab.host.id, &lab.registry).await
}

/// A piece of a log.
async fn page(lab: &Lab, request: Value) -> BuildLog {
    lab.call::<ReadBuildLog>(request, None).await.unwrap()
}

/// The whole log of a build.
pub async fn log(lab: &Lab, build: &str) -> String {
    let (mut text, mut offset) = (String::new(), 0);
    loop {
        let page = page(lab, json!({ "build": build, "offset": offset })).await;
        text.push_str(&page.text);
        offset = page.next;
        if page.ended || page.text.is_empty() {
            return text;
        }
    }
}

/// Nothing is left of a build but its log: no VM, no staging, no more images than that many.
pub async fn assert_only(lab: &Lab, vms: &FakeVms, images: usize) {
    assert_eq!((vms.names(), lab.host.staging()), (vec![], vec![]));
    assert_eq!(lab.host.images().len(), images);
    let sql = lab.sql().await;
    assert_eq!(count(&sql, "select count(*) from image.image").await, i64::try_from(images).unwrap());
    assert_eq!(count(&sql, "select count(*) from image.removal").await, 0);
    assert_eq!(count(&sql, "select count(*) from image.name where name like 'build-%'").await, 0);
    let open = "select count(*) from operations.operation where undo_owed or state in ('queued', 'running')";
    assert_eq!(count(&sql, open).await, 0, "unfinished operations");
}

impl Builder {
    async fn start() -> Self {
        let lab = Lab::start().await;
        let vms = vms(&lab).await;
        lab.pull(&registry("debian"), "debian").await.unwrap();
        Self { lab, vms }
    }

    /// Builds to the end.
    async fn build(&self, name: &str, steps: Value) -> Result<Operation, contract::ApiError> {
        self.ask(json!({ "name": name, "base": "debian", "steps": steps, "wait": true })).await
    }

    async fn ask(&self, request: Value) -> Result<Operation, contract::ApiError> {
        self.lab.call::<Build>(request, None).await
    }

    /// Asks for a build, and waits until its first script is there.
    async fn building(&self, name: &str, script: &str) -> OperationId {
        let request = json!({ "name": name, "base": "debian", "steps": [{ "script": script }] });
        let before = self.vms.started().len();
        let id = self.ask(request).await.unwrap().id;
        wait_until("the script", BOUND, async || (self.vms.started().len() > before).then_some(())).await;
        id
    }

    async fn log(&self, build: &str) -> String {
        log(&self.lab, build).await
    }

    async fn page(&self, request: Value) -> BuildLog {
        page(&self.lab, request).await
    }

    async fn assert_only(&self, images: usize) {
        assert_only(&self.lab, &self.vms, images).await;
    }
}

/// What a build gave.
pub fn built(operation: &Operation) -> Built {
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    serde_json::from_value(operation.result.clone().unwrap()).unwrap()
}

#[tokio::test]
async fn a_script_becomes_an_image_and_is_not_run_twice() {
    let builder = Builder::start().await;
    let files = inline(&[("etc/motd", "hello"), (".warren-build/work/data", "x")]);
    let step = json!({ "title": "setup.sh", "script": "say one\nsay two", "env": { "A": "b" }, "files": files });
    let first = builder.build("web", json!([step])).await.unwrap();
    let gave = built(&first);
    assert_eq!((gave.ran, gave.cached, gave.image.name.as_str()), (1, 0, "web"));
    assert_eq!(builder.lab.image("web").await.unwrap(), gave.image);

    let (created, started) = (builder.vms.created(), builder.vms.started());
    let base = builder.lab.image("debian").await.unwrap().digest;
    assert_eq!((created.len(), created[0].image.as_str()), (1, base.as_str()));
    assert!(created[0].name.as_str().starts_with("build-") && created[0].ttl_seconds.is_some());
    assert_eq!(created[0].labels.values().next().unwrap().as_str(), first.id.to_string());
    assert_eq!((started.len(), &started[0].env), (1, &vec!["A=b".to_owned()]));
    assert_eq!(started[0].argv, ["/bin/sh", "-eu", "/.warren-build/script"]);
    assert_eq!(builder.vms.files()[0]["etc/motd"], b"hello");
    let log = builder.log(&first.id.to_string()).await;
    let wanted = format!(
        "[1/1] setup.sh: in VM {}, from {base}\none\ntwo\n[1/1] setup.sh: gave {}\n",
        created[0].name, gave.image.digest
    );
    assert_eq!((log.as_str(), builder.log("web").await.as_str()), (wanted.as_str(), wanted.as_str()));
    builder.assert_only(2).await;

    // Under another name, and under the same: no VM.
    for name in ["other", "web"] {
        let again = builder.build(name, json!([step])).await.unwrap();
        let found = built(&again);
        assert_eq!((found.ran, found.cached, found.image.id), (0, 1, gave.image.id));
        assert!(builder.log(&again.id.to_string()).await.contains("nothing changed"));
    }
    assert_eq!(builder.vms.created().len(), 1);
    // It can be asked for anew.
    let request = json!({ "name": "anew", "base": "debian", "steps": [step], "no_cache": true, "wait": true });
    assert_eq!(built(&builder.ask(request).await.unwrap()).ran, 1);
    assert_eq!(builder.vms.created().len(), 2);
    builder.assert_only(3).await;
}

#[tokio::test]
async fn only_what_changed_and_what_follows_is_run() {
    let builder = Builder::start().await;
    let steps = |second: &str| json!([{ "script": "say base" }, { "script": second }, { "script": "say last" }]);
    let first = built(&builder.build("web", steps("say one")).await.unwrap());
    assert_eq!((first.ran, first.cached), (3, 0));
    let created = builder.vms.created();
    assert_eq!(created.len(), 3);
    let changed = builder.build("new", steps("say two")).await.unwrap();
    let second = built(&changed);
    assert_eq!((second.ran, second.cached), (2, 1));
    let later = &builder.vms.created()[3..];
    // It begins with what the first step gave.
    assert_eq!((later.len(), &later[0].image), (2, &created[1].image));
    assert_ne!(second.image.digest, first.image.digest);
    let log = builder.log(&changed.id.to_string()).await;
    assert!(log.starts_with("[1/3] script: nothing changed") && log.contains("\ntwo\n[2/3]"), "{log}");
    builder.assert_only(6).await;
}

#[tokio::test]
async fn a_script_that_fails_leaves_nothing_but_its_log() {
    let builder = Builder::start().await;
    let steps =
        json!([{ "script": "say first" }, { "title": "bad.sh", "script": "say trying\nsay no such file\nexit 7" }]);
    let error = builder.build("web", steps).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    assert!(error.message.contains("step 2") && error.message.contains("exit code 7"), "{}", error.message);
    assert!(error.message.ends_with("no such file"), "{}", error.message);
    let details = error.details.unwrap();
    assert_eq!((&details["exit_code"], &details["step"]), (&json!(7), &json!(2)));
    assert_eq!(details["tail"], json!(["trying", "no such file"]));
    assert_eq!(builder.lab.image("web").await.unwrap_err().code, ErrorCode::NotFound);
    let log = builder.log("web").await;
    assert!(log.contains("trying\nno such file\n[2/2] bad.sh: the script ended with exit code 7\n"), "{log}");
    // The first step's result stays: it is known what it gives.
    builder.assert_only(2).await;
    let mended = builder.build("web", json!([{ "script": "say first" }, { "script": "say well" }])).await.unwrap();
    assert_eq!((built(&mended).ran, built(&mended).cached), (1, 1));
}

#[tokio::test]
async fn a_vm_that_ends_under_its_script_fails_the_build() {
    let builder = Builder::start().await;
    let id = builder.building("web", "say so far\nwait\ndie").await;
    wait_until("its output", BOUND, async || builder.log("web").await.contains("so far\n").then_some(())).await;
    builder.vms.release();
    let error = builder.lab.ended(id).await.error.unwrap();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    assert!(error.message.contains("ended before the script did: its kernel panicked"), "{}", error.message);
    builder.assert_only(1).await;
}

#[tokio::test]
async fn a_host_that_is_silent_for_a_while_is_waited_for_and_no_longer() {
    let builder = Builder::start().await;
    let before = async |id: OperationId| {
        let said = async || builder.log(&id.to_string()).await.contains("before\n").then_some(());
        wait_until("its output", BOUND, said).await;
        builder.vms.set_silent(true);
    };
    let id = builder.building("web", "say before\nwait\nsay after").await;
    before(id).await;
    builder.vms.release();
    tokio::time::sleep(Duration::from_secs(3)).await;
    builder.vms.set_silent(false);
    built(&builder.lab.ended(id).await);
    let log = builder.log("web").await;
    assert_eq!(log.matches("before\nafter\n").count(), 1, "{log}");

    builder.vms.hold();
    let id = builder.building("other", "say before\nwait\nsay more").await;
    before(id).await;
    let error = builder.lab.ended(id).await.error.unwrap();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(error.message.contains("is given up"), "{}", error.message);
    builder.assert_only(2).await;
}

#[tokio::test]
async fn a_build_is_read_while_it_runs_and_cancelled() {
    let builder = Builder::start().await;
    let id = builder.building("web", "say here\nwait\nsay never").await;
    // A reader that waits is answered when something comes.
    let first = builder.page(json!({ "build": "web", "wait_ms": 10_000 })).await;
    assert_eq!((first.operation, first.ended, first.missing), (id, false, 0));
    let request = json!({ "build": "web", "offset": first.next, "wait_ms": 10_000 });
    let next = if first.text.contains("here") { first } else { builder.page(request).await };
    assert!(next.text.ends_with("here\n"), "{next:?}");
    let idle = builder.page(json!({ "build": "web", "offset": next.next, "wait_ms": 10 })).await;
    assert_eq!((idle.text.as_str(), idle.ended, idle.next), ("", false, next.next));
    builder.lab.call::<Cancel>(json!({ "id": id }), None).await.unwrap();
    assert_eq!(builder.lab.ended(id).await.state, OperationState::Cancelled);
    assert!(builder.log(&id.to_string()).await.ends_with("here\n"));
    builder.assert_only(1).await;
}

#[tokio::test]
async fn a_build_cancelled_while_its_vm_is_made_leaves_nothing() {
    let builder = Builder::start().await;
    builder.vms.hold_creates();
    let request = json!({ "name": "web", "base": "debian", "steps": [{ "script": "say x" }] });
    let id = builder.ask(request).await.unwrap().id;
    wait_until("the create", BOUND, async || (!builder.vms.created().is_empty()).then_some(())).await;
    builder.lab.call::<Cancel>(json!({ "id": id }), None).await.unwrap();
    assert_eq!(builder.lab.ended(id).await.state, OperationState::Cancelled);
    let create = "select count(*) from operations.operation where kind = 'vm.create' and state = 'cancelled'";
    assert_eq!(count(&builder.lab.sql().await, create).await, 1);
    builder.assert_only(1).await;
}

#[tokio::test]
async fn a_build_cancelled_while_it_asks_for_its_vm_calls_that_off_too() {
    let builder = Builder::start().await;
    builder.vms.hold_creates();
    builder.vms.delay_a_create(std::time::Duration::from_secs(4));
    let request = json!({ "name": "web", "base": "debian", "steps": [{ "script": "say x" }] });
    let id = builder.ask(request).await.unwrap().id;
    wait_until("the request", BOUND, async || (builder.vms.asked().0 > 0).then_some(())).await;
    builder.lab.call::<Cancel>(json!({ "id": id }), None).await.unwrap();
    assert_eq!(builder.lab.ended(id).await.state, OperationState::Cancelled);
    // The first request comes after all, and finds what was called off.
    wait_until("both requests", BOUND, async || (builder.vms.asked().1 == 2).then_some(())).await;
    let create = "select count(*) from operations.operation where kind = 'vm.create' and state = 'cancelled'";
    assert_eq!(count(&builder.lab.sql().await, create).await, 1);
    builder.assert_only(1).await;
}

#[tokio::test]
async fn builds_leave_pulls_their_room() {
    let builder = Builder::start().await;
    // More steps than this service works on at once, each of which waits.
    let builds: Vec<_> = (0..6)
        .map(
            |n| json!({ "name": format!("b{n}"), "base": "debian", "steps": [{ "script": format!("say {n}\nwait") }] }),
        )
        .collect();
    let mut ids = Vec::new();
    for request in builds {
        ids.push(builder.ask(request).await.unwrap().id);
    }
    wait_until("as many as may", BOUND, async || (builder.vms.started().len() == 4).then_some(())).await;
    builder.lab.pull(&registry("other"), "other").await.unwrap();
    assert_eq!(builder.vms.started().len(), 4);
    let waiting = "select count(*) from operations.operation where kind = 'image.build_step' and state = 'queued'";
    assert_eq!(count(&builder.lab.sql().await, waiting).await, 2);
    builder.vms.release();
    for id in ids {
        assert_eq!(builder.lab.ended(id).await.state, OperationState::Succeeded);
    }
    assert_eq!(builder.vms.names(), Vec::<String>::new());
}

#[tokio::test]
async fn a_taken_name_is_seen_before_a_vm_is_made_and_moved_when_asked() {
    let builder = Builder::start().await;
    let web = image_of(&builder.lab.pull(&registry("web"), "web").await.unwrap());
    let error = builder.build("web", json!([{ "script": "say x" }])).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::AlreadyExists);
    assert!(builder.vms.created().is_empty());
    let request =
        json!({ "name": "web", "base": "debian", "steps": [{ "script": "say x" }], "replace": true, "wait": true });
    let gave = built(&builder.ask(request).await.unwrap());
    assert_ne!(gave.image.id, web.id);
    assert_eq!(builder.lab.image("web").await.unwrap().id, gave.image.id);
}

#[tokio::test]
async fn two_builds_of_the_same_make_one_vm() {
    let builder = Builder::start().await;
    let first = builder.building("one", "wait").await;
    let request = json!({ "name": "two", "base": "debian", "steps": [{ "script": "wait" }] });
    let second = builder.ask(request).await.unwrap().id;
    let waits = "select count(*) from operations.operation where kind = 'image.build_step'";
    let sql = builder.lab.sql().await;
    wait_until("the second", BOUND, async || (count(&sql, waits).await == 2).then_some(())).await;
    builder.vms.release();
    let (first, second) = (builder.lab.ended(first).await, builder.lab.ended(second).await);
    assert_eq!(built(&first).image.id, built(&second).image.id);
    assert_eq!((builder.vms.created().len(), builder.lab.image("one").await.unwrap().names.len()), (1, 2));
    builder.assert_only(2).await;
}

#[tokio::test]
async fn files_come_from_an_object_store_and_are_what_was_said() {
    let builder = Builder::start().await;
    let bucket = async_nats::jetstream::object_store::Config { bucket: "files".into(), ..Default::default() };
    let store = builder.lab.bus.jetstream().create_object_store(bucket).await.unwrap();
    let large = "x".repeat(1 << 20);
    let bytes = archive(&[("opt/large", &large)]);
    store.put("a/b", &mut &bytes[..]).await.unwrap();
    let step = |object: &str, sha256: String| json!([{ "script": "say x", "files": { "object": { "object": object, "sha256": sha256 } } }]);
    let digest = hex::encode(Sha256::digest(&bytes));
    built(&builder.build("web", step("files/a/b", digest.clone())).await.unwrap());
    assert_eq!(builder.vms.files()[0]["opt/large"].len(), large.len());
    // Known already, so it need not be there any more.
    store.delete("a/b").await.unwrap();
    assert_eq!(built(&builder.build("other", step("files/a/b", digest)).await.unwrap()).cached, 1);
    let error = builder.build("none", step("files/a/b", "0".repeat(64))).await.unwrap_err();
    assert_eq!((error.code, error.message.contains("no object")), (ErrorCode::FailedPrecondition, true), "{error:?}");
    store.put("other", &mut &bytes[..]).await.unwrap();
    let error = builder.build("none", step("files/other", "0".repeat(64))).await.unwrap_err();
    assert!(error.message.contains("have the digest"), "{error:?}");
    builder.assert_only(2).await;
}

#[tokio::test]
async fn a_long_log_keeps_its_beginning_and_its_end() {
    let builder = Builder::start().await;
    let spilt = LOG_MAX + LOG_MAX / 4;
    let id =
        builder.build("web", json!([{ "script": format!("say begin\nspill {spilt}\nsay end") }])).await.unwrap().id;
    let sql = builder.lab.sql().await;
    let bytes = count(&sql, "select sum(length(data)) from image.build_log").await.unsigned_abs();
    assert!(bytes <= LOG_MAX + (64 << 10) && bytes > LOG_MAX / 2, "{bytes}");
    let (mut offset, mut missing, mut last) = (0, 0, String::new());
    loop {
        let page = builder.page(json!({ "build": id, "offset": offset })).await;
        if page.ended {
            break;
        }
        if offset == 0 {
            assert!(page.text.contains("\nbegin\n00000"), "{:.200}", page.text);
        }
        // What is missing is missing between two lines.
        assert!(page.missing == 0 || page.text.starts_with("00000"), "{:.200}", page.text);
        (offset, missing, last) = (page.next, missing + page.missing, page.text);
    }
    assert!(missing > LOG_MAX / 8 && last.contains("\nend\n[1/1]"), "{missing}");
    // What was lost of an operation's log goes with it.
    sql.execute("delete from operations.operation where id = $1", &[&id.0]).await.unwrap();
    assert_eq!(count(&sql, "select count(*) from image.build_log").await, 0);
}

#[tokio::test]
async fn what_cannot_be_built_is_refused_at_once() {
    let builder = Builder::start().await;
    let mut request = json!({ "name": "web", "base": "none", "steps": [{ "script": "say x" }] });
    assert_eq!(builder.ask(request.clone()).await.unwrap_err().code, ErrorCode::NotFound);
    request["base"] = json!("debian");
    request["steps"] = json!([]);
    assert_eq!(builder.ask(request).await.unwrap_err().code, ErrorCode::InvalidArgument);
    for (build, code) in [("none", ErrorCode::NotFound), ("../x", ErrorCode::InvalidArgument)] {
        let error = builder.lab.call::<ReadBuildLog>(json!({ "build": build }), None).await.unwrap_err();
        assert_eq!(error.code, code);
    }
    let pull = builder.lab.pull(&registry("other"), "other").await.unwrap();
    let error = builder.lab.call::<ReadBuildLog>(json!({ "build": pull.id }), None).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
    assert_eq!(
        count(&builder.lab.sql().await, "select count(*) from operations.operation where kind = 'image.build'").await,
        0
    );
}

#[tokio::test]
async fn the_kernel_of_the_base_goes_on_to_what_is_built_of_it() {
    let builder = Builder::start().await;
    let lab = &builder.lab;
    let kernels = FakeKernels::default();
    kernels.add(&lab.bus, "h1").await;
    let import = json!({ "source": { "path": "/srv/6.1" }, "name": "mine", "wait": true });
    lab.call::<contract::kernel::Import>(import, None).await.unwrap();
    lab.call::<contract::image::SetKernel>(json!({ "image": "debian", "kernel": "mine" }), None).await.unwrap();
    let mine = lab.image("debian").await.unwrap().kernel;
    assert!(mine.is_some());
    let steps = json!([{ "script": "say one" }, { "script": "say two" }]);
    assert_eq!(built(&builder.build("web", steps.clone()).await.unwrap()).image.kernel, mine);
    // What is known already goes on naming what it names.
    lab.call::<contract::image::SetKernel>(json!({ "image": "debian" }), None).await.unwrap();
    let known = built(&builder.build("known", steps).await.unwrap());
    assert_eq!((known.ran, known.image.kernel), (0, mine));
    let bare = built(&builder.build("bare", json!([{ "script": "say three" }])).await.unwrap());
    assert_eq!(bare.image.kernel, None);
}
