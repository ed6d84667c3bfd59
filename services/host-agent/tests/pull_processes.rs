//! Stories of pulls in a process of their own: one that is killed, one whose disk fills up, one that asks a credential helper.

mod pulling;

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use contract::{
    OperationId,
    agent::{DiscardRequest, Fence, StageStatus},
};
use host_agent::image::ImageOptions;
use pulling::{Image, blobs, options, store};
use testkit::scripted::{Guard, Scripted};

/// What a child is told: its state directory, the operation, and what to pull.
const CHILD: [&str; 3] = ["WARREN_TEST_STATE", "WARREN_TEST_OPERATION", "WARREN_TEST_REFERENCE"];

/// Not a story of its own: the process of the stories here.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run as a child of another test"]
async fn a_child_pulls() {
    let [Ok(state), Ok(operation), Ok(reference)] = CHILD.map(std::env::var) else { return };
    let high_water = std::env::var("WARREN_TEST_HIGH_WATER").map_or(100, |percent| percent.parse().unwrap());
    let mut options = ImageOptions { high_water, ..options() };
    options.docker_config = std::env::var_os("WARREN_TEST_DOCKER_CONFIG").map(Into::into);
    options.limits.reserve = std::env::var("WARREN_TEST_RESERVE").map_or(0, |bytes| bytes.parse().unwrap());
    let images = store(Path::new(&state), options);
    let fence = Fence { operation: operation.parse().unwrap(), epoch: 1 };
    let status = images.stage(&pulling::request(fence, &reference, 120_000)).await.unwrap();
    match status {
        StageStatus::Done { .. } => {}
        StageStatus::Failed { error } => {
            fs::write(Path::new(&state).join("error"), serde_json::to_vec(&error).unwrap()).unwrap();
            std::process::exit(FAILED);
        }
        running => panic!("{running:?}"),
    }
}

/// How a child ends whose pull failed.
const FAILED: i32 = 7;

/// The command of a child, begun by another program where that is to prepare its world.
fn command(program: &[&str], state: &Path, operation: OperationId, reference: &str) -> Command {
    let values = [state.display().to_string(), operation.to_string(), reference.to_owned()];
    let own = std::env::current_exe().unwrap();
    let mut line: Vec<&OsStr> = program.iter().map(OsStr::new).collect();
    line.extend([own.as_os_str(), "--ignored".as_ref(), "--exact".as_ref(), "a_child_pulls".as_ref()]);
    let mut command = Command::new(line[0]);
    command.args(&line[1..]).envs(CHILD.into_iter().zip(values)).stdout(Stdio::null());
    command
}

fn child(state: &Path, operation: OperationId, reference: &str) -> Child {
    command(&[], state, operation, reference).spawn().unwrap()
}

/// Waits for a child off the async threads.
async fn ended(mut child: Command) -> ExitStatus {
    tokio::task::spawn_blocking(move || child.status().unwrap()).await.unwrap()
}

/// A pull on a disk of so many MiB, where a shell command runs beside it; its code is [`FAILED`] only if the disk was why, and nothing is left.
async fn on_disk(mib: u32, beside: &str, reference: &str, env: &[(&str, &str)]) -> Option<i32> {
    let state = tempfile::tempdir().unwrap();
    // It is looked at from within the namespace that has the filesystem.
    let script = format!(
        "cd {dir} && mount -t tmpfs -o size={mib}m none {dir} && cd {dir} || exit 5
         {{ {beside}; }} & \"$0\" \"$@\"; code=$?; ls staging >/dev/null || exit 9
         [ $code = 0 ] && exit 0; [ -z \"$(ls staging)\" ] || exit 8
         grep -q resource_exhausted error || exit 6; exit $code",
        dir = state.path().display()
    );
    let mut child = command(&["unshare", "-m", "sh", "-c", &script], state.path(), OperationId::new(), reference);
    child.envs(env.iter().copied());
    ended(child).await.code()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_stops_a_pull_which_leaves_blobs_only() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: a filesystem of its own needs root");
    }
    let registry = Scripted::start().await;
    let image = Image::new(&registry, &[8 << 20]);
    registry.pace(Duration::from_millis(4));
    let code = on_disk(64, ":", &image.reference, &[("WARREN_TEST_HIGH_WATER", "15")]).await;
    assert_eq!(code, Some(FAILED));
    let served = registry.served();
    assert!(served > 1 << 20, "it had begun: {served}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_fills_the_disk_meanwhile_stops_a_pull_before_the_reserve_is_gone() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: a filesystem of its own needs root");
    }
    let registry = Scripted::start().await;
    let image = Image::new(&registry, &[8 << 20]);
    registry.pace(Duration::from_millis(100));
    let grows = "for n in $(seq 600); do ls staging/*/rootfs.ext4 2>/dev/null && break; sleep 0.05; done
                 head -c 36m /dev/zero >disk";
    let reserve = (30u64 << 20).to_string();
    let code = on_disk(64, grows, &image.reference, &[("WARREN_TEST_RESERVE", &reserve)]).await;
    assert_eq!(code, Some(FAILED));
    let served = registry.served();
    assert!(served < image.bytes(), "it was stopped on its way: {served}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_needs_room_for_its_layers_and_for_itself_and_no_more() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: a filesystem of its own needs root");
    }
    let registry = Scripted::start().await;
    let image = Image::new(&registry, &[12 << 20]);
    assert_eq!(on_disk(20, ":", &image.reference, &[]).await, Some(FAILED));
    let served = registry.served();
    assert!(served < 1 << 20, "what cannot fit is not begun: {served}");
    assert_eq!(on_disk(40, ":", &image.reference, &[]).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_helper_is_asked_for_passwords_and_for_identity_tokens() {
    let stories = [
        (Guard::Basic("me:secret".into()), "me", "secret"),
        (Guard::Token(Some("me:secret".into())), "me", "secret"),
        (Guard::Refresh("long-lived".into()), "<token>", "long-lived"),
    ];
    for (guard, user, secret) in stories {
        let registry = Scripted::start().await;
        let image = Image::new(&registry, &[100_000]);
        registry.guard(guard.clone());
        let (state, config) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let helpers = serde_json::json!({ "credHelpers": { registry.name(): "story" } });
        fs::write(config.path().join("config.json"), helpers.to_string()).unwrap();
        let helper = config.path().join("docker-credential-story");
        let answer = serde_json::json!({ "ServerURL": registry.name(), "Username": user, "Secret": secret });
        fs::write(&helper, format!("#!/bin/sh\n[ \"$1\" = get ] && cat >/dev/null && echo '{answer}'\n")).unwrap();
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = command(&[], state.path(), OperationId::new(), &image.reference);
        child.env("WARREN_TEST_DOCKER_CONFIG", config.path());
        child.env("PATH", format!("{}:{}", config.path().display(), std::env::var("PATH").unwrap()));
        let status = ended(child).await;
        let error = fs::read_to_string(state.path().join("error")).unwrap_or_default();
        assert!(status.success(), "{guard:?}: {status} {error}");
    }
}

/// Waits until a child asks for a layer, or ends; counts the layers it goes on with.
async fn asks_for_a_layer(registry: &Scripted, child: &mut Child, resumed: &mut usize) {
    testkit::wait_until("the child asks for a layer", Duration::from_secs(60), async || {
        let asked = registry.asked();
        *resumed += asked.iter().filter(|asked| asked.range.is_some()).count();
        let ended = child.try_wait().unwrap().is_some();
        (ended || asked.iter().any(|asked| asked.path.contains("/blobs/"))).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_killed_at_twenty_random_moments_ends_as_if_nothing_had_been() {
    const KILLS: u64 = 20;
    // What may be on its way to three layers when a process dies: it comes twice.
    const LOST: u64 = 3 * (256 << 10);
    let registry = Scripted::start().await;
    let image = Image::new(&registry, &[4 << 20, 3 << 20, 1 << 20]);
    let (mut kills, mut rounds, mut resumed) = (0, 0, 0);
    while kills < KILLS {
        let state = tempfile::tempdir().unwrap();
        let operation = OperationId::new();
        registry.served();
        registry.pace(Duration::from_millis(5));
        let mut killed = 0;
        loop {
            let mut running = child(state.path(), operation, &image.reference);
            // Some die before they ask for anything, most while layers come or are unpacked.
            if rand::random_range(0..4) > 0 {
                asks_for_a_layer(&registry, &mut running, &mut resumed).await;
            }
            let moment = Duration::from_millis(rand::random_range(0..800));
            let ended = tokio::task::spawn_blocking(move || {
                let until = Instant::now() + moment;
                while Instant::now() < until {
                    if let Some(ended) = running.try_wait().unwrap() {
                        return Some(ended);
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                running.kill().unwrap();
                running.wait().unwrap();
                None
            });
            match ended.await.unwrap() {
                Some(ended) => break assert!(ended.success(), "{ended}"),
                None => killed += 1,
            }
            if kills + killed >= KILLS {
                registry.pace(Duration::ZERO);
                let mut last = child(state.path(), operation, &image.reference);
                assert!(tokio::task::block_in_place(|| last.wait()).unwrap().success());
                break;
            }
        }
        (kills, rounds) = (kills + killed, rounds + 1);
        let images = store(state.path(), options());
        let fence = Fence { operation, epoch: 2 };
        let staged = images.stage(&pulling::request(fence, "127.0.0.1:1/not/asked:1", 1000)).await.unwrap();
        let StageStatus::Done { image: staged } = staged else { panic!("{staged:?}") };
        assert_eq!(staged.digest, image.digest);
        assert_eq!(blobs(state.path()), image.whole());
        images.discard(&DiscardRequest { fence }).await.unwrap();
        assert_eq!(testkit::lab::entries(&state.path().join("staging")), Vec::<String>::new());
        // The configuration is asked for each time; the layers go on where they were.
        let (served, bound) = (registry.served(), image.bytes() + killed * (LOST + image.config_bytes()));
        assert!(served >= image.bytes() && served <= bound, "{served} bytes served, {bound} at most: {killed} kills");
        resumed += registry.asked().iter().filter(|asked| asked.range.is_some()).count();
        println!("round {rounds}: {killed} kills, {served} bytes served of an image of {}", image.bytes());
    }
    assert!(resumed > 0, "no layer was gone on with");
    println!("{resumed} times a layer was gone on with");
}
