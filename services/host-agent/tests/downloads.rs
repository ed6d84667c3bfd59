//! Stories of downloads: whatever a registry does, an image comes whole or there is a clear error; what came once does not come twice.

mod pulling;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use contract::ErrorCode;
use host_agent::image::{ImageOptions, parse_mirrors};
use pulling::{Image, STALL, blobs, options, pull, pull_by, store};
use testkit::scripted::{Act, Guard, Scripted};

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_breaks_goes_on_where_it_was() {
    let registry = Scripted::start().await;
    let image = Image::new(&registry, &[3 << 20, 2 << 20]);
    let (first, second) = (&image.layers[0].0, &image.layers[1].0);
    registry.script(first, [Act::Cut(1 << 20), Act::Stall(1 << 20), Act::Status(503, Some("1".into()))]);
    registry.script(second, [Act::Status(429, None), Act::Cut(0), Act::Cut(100_000)]);
    let state = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let staged = pull(state.path(), options(), &image.reference).await.unwrap();
    assert_eq!(staged.digest, image.digest);
    assert!(begun.elapsed() > STALL + Duration::from_secs(1), "a stall and Retry-After take their time");
    assert_eq!(registry.served(), image.bytes(), "every byte came once");
    let ranges: Vec<_> = registry.asked().into_iter().filter_map(|asked| asked.range).collect();
    assert!(ranges.iter().any(|range| range == "bytes=2097152-"), "{ranges:?}");
    assert_eq!(blobs(state.path()), image.whole());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_ranges_is_read_from_the_beginning_again() {
    let registry = Scripted::start().await;
    let image = Image::new(&registry, &[1 << 20]);
    registry.script(&image.layers[0].0, [Act::Cut(300_000), Act::NoRange]);
    let state = tempfile::tempdir().unwrap();
    assert_eq!(pull(state.path(), options(), &image.reference).await.unwrap().digest, image.digest);
    assert_eq!(registry.served(), image.bytes() + 300_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_for_ever_ends_in_a_clear_error_and_leaves_nothing_wrong() {
    let stories = [
        (Act::Endless, ErrorCode::FailedPrecondition, "digest mismatch"),
        (Act::Flip(1000), ErrorCode::FailedPrecondition, "digest mismatch"),
        (Act::Length(50), ErrorCode::FailedPrecondition, "50 bytes for sha256:"),
        (Act::Length(1 << 40), ErrorCode::FailedPrecondition, "1099511627776 bytes for sha256:"),
        (Act::Status(403, None), ErrorCode::PermissionDenied, "refuses"),
        (Act::Status(404, None), ErrorCode::NotFound, "does not exist"),
        (Act::Status(503, None), ErrorCode::Unavailable, "503"),
        (Act::Status(418, None), ErrorCode::FailedPrecondition, "418"),
        (Act::Redirect("http://127.0.0.1:1/{path}".into()), ErrorCode::Unavailable, "cannot be reached"),
    ];
    for (act, code, words) in stories {
        let story = format!("{act:?}");
        let registry = Scripted::start().await;
        let image = Image::new(&registry, &[200_000]);
        registry.script(&image.layers[0].0, std::iter::repeat_n(act, 30));
        let state = tempfile::tempdir().unwrap();
        let error = pull(state.path(), options(), &image.reference).await.unwrap_err();
        assert_eq!(error.code, code, "{story}: {error}");
        assert!(error.message.contains(words), "{story}: {error}");
        assert!(registry.served() <= 3 * image.bytes(), "{story}");
        assert_eq!(testkit::lab::entries(&state.path().join("staging")), Vec::<String>::new(), "{story}");
        let kept = fs::read_dir(state.path().join("blobs/sha256")).unwrap().flatten();
        let kept: u64 = kept.map(|entry| entry.metadata().unwrap().len()).sum();
        assert_eq!(kept, 0, "{story}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_trickles_is_given_up() {
    let registry = Scripted::start().await;
    let image = Image::new(&registry, &[400_000]);
    // No pause is a stall, and 1 KiB every 300 ms are less than the least rate.
    registry.trickle(1 << 10, Duration::from_millis(300));
    let state = tempfile::tempdir().unwrap();
    let error = pull(state.path(), options(), &image.reference).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable, "{error}");
    assert!(error.message.contains("too slow"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_in_order_and_not_believed() {
    let (lacks, damaged, own) = (Scripted::start().await, Scripted::start().await, Scripted::start().await);
    let image = Image::new(&own, &[500_000]);
    image.add_to(&damaged);
    let layer = &image.layers[0].0;
    damaged.script(layer, [Act::Flip(7)]);
    let gone = "http://127.0.0.1:1";
    let mirrors = [gone, &lacks.name(), &damaged.name()].map(|mirror| format!("{}={mirror}", own.name())).join(",");
    let options = ImageOptions { mirrors: parse_mirrors(&mirrors).unwrap(), ..options() };
    let state = tempfile::tempdir().unwrap();
    assert_eq!(pull(state.path(), options.clone(), &image.reference).await.unwrap().digest, image.digest);
    let of = |registry: &Scripted| registry.asked().iter().filter(|asked| asked.path.contains(layer)).count();
    assert_eq!((of(&lacks), of(&damaged), of(&own)), (2, 1, 1), "the damaged one was asked once only");
    // A mirror alone will do once it is not damaged.
    let fresh = tempfile::tempdir().unwrap();
    assert_eq!(pull(fresh.path(), options, &image.reference).await.unwrap().digest, image.digest);
    assert_eq!((of(&damaged), of(&own)), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_pulls_of_one_image_are_one_download() {
    let registry = Scripted::start().await;
    let image = Image::new(&registry, &[2 << 20, 1 << 20]);
    registry.pace(Duration::from_millis(5));
    let state = tempfile::tempdir().unwrap();
    let images = store(state.path(), options());
    let pulls = (0..16).map(|_| pull_by(&images, &image.reference));
    for staged in futures::future::join_all(pulls).await {
        assert_eq!(staged.unwrap().digest, image.digest);
    }
    // Configurations are no layers: each pull reads its own.
    assert_eq!(registry.served(), image.bytes() + 15 * image.config_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_fails_does_not_take_another_ones_pull_along() {
    let (bad, good) = (Scripted::start().await, Scripted::start().await);
    let image = Image::new(&good, &[600_000]);
    image.add_to(&bad);
    let layer = &image.layers[0].0;
    bad.script(layer, [Act::Stall(1000)].into_iter().chain(std::iter::repeat_n(Act::Status(403, None), 20)));
    let state = tempfile::tempdir().unwrap();
    let images = store(state.path(), options());
    let first = tokio::spawn({
        let (images, reference) = (images.clone(), image.reference.replace(&good.name(), &bad.name()));
        async move { pull_by(&images, &reference).await }
    });
    testkit::wait_until("the bad registry is asked for the layer", Duration::from_secs(20), async || {
        bad.asked().iter().any(|asked| asked.path.contains(layer)).then_some(())
    })
    .await;
    assert_eq!(pull_by(&images, &image.reference).await.unwrap().digest, image.digest);
    assert_eq!(first.await.unwrap().unwrap_err().code, ErrorCode::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_shared_between_images_and_the_least_recently_used_go_first() {
    let registry = Scripted::start().await;
    let base = Image::new(&registry, &[1 << 20]);
    let above = base.with(&registry, "above", &[300_000]);
    let state = tempfile::tempdir().unwrap();
    pull(state.path(), options(), &base.reference).await.unwrap();
    registry.served();
    pull(state.path(), options(), &above.reference).await.unwrap();
    let upper = above.layers[1].1;
    assert_eq!(registry.served(), upper + above.config_bytes());
    // With room for the second layer only, the first one, which was used last by nobody else, goes.
    let old = std::time::SystemTime::now() - Duration::from_secs(3600);
    let path = state.path().join("blobs/sha256").join(base.layers[0].0.trim_start_matches("sha256:"));
    fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
    let small = ImageOptions { cache_bytes: Some(upper + 1), ..options() };
    drop(store(state.path(), small.clone()));
    assert_eq!(blobs(state.path()), [above.layers[1].0.trim_start_matches("sha256:")]);
    // Too small for anything, it still serves the pull under way.
    let none = ImageOptions { cache_bytes: Some(0), ..options() };
    assert_eq!(pull(state.path(), none, &above.reference).await.unwrap().digest, above.digest);
    assert_eq!(blobs(state.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_blob_that_was_damaged_comes_anew() {
    let registry = Scripted::start().await;
    let image = Image::new(&registry, &[700_000]);
    let state = tempfile::tempdir().unwrap();
    pull(state.path(), options(), &image.reference).await.unwrap();
    let hash = image.layers[0].0.trim_start_matches("sha256:");
    let path = state.path().join("blobs/sha256").join(hash);
    let mut bytes = fs::read(&path).unwrap();
    bytes[300_000] ^= 1;
    fs::write(&path, bytes).unwrap();
    registry.served();
    assert_eq!(pull(state.path(), options(), &image.reference).await.unwrap().digest, image.digest);
    assert_eq!(registry.served(), image.bytes());
    // And so does a part that was.
    let part = path.with_extension(format!("{}.part", fs::metadata(&path).unwrap().len()));
    fs::rename(&path, &part).unwrap();
    let mut bytes = fs::read(&part).unwrap();
    bytes.truncate(500_000);
    bytes[9] ^= 1;
    fs::write(&part, bytes).unwrap();
    assert_eq!(pull(state.path(), options(), &image.reference).await.unwrap().digest, image.digest);
    assert_eq!(blobs(state.path()), image.whole());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_over_its_mark_takes_no_image() {
    let registry = Scripted::start().await;
    let image = Image::new(&registry, &[700_000]);
    let state = tempfile::tempdir().unwrap();
    let error = pull(state.path(), ImageOptions { high_water: 1, ..options() }, &image.reference).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::ResourceExhausted, "{error}");
    assert!(error.message.contains("WARREN_DISK_HIGH_WATER"), "{error}");
    assert_eq!(testkit::lab::entries(&state.path().join("staging")), Vec::<String>::new());
}

fn docker_config(dir: &Path, registry: &str, credentials: &str) {
    use base64::Engine as _;
    let auth = base64::engine::general_purpose::STANDARD.encode(credentials);
    let config = serde_json::json!({ "auths": { registry: { "auth": auth } } });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_shown_to_who_asks_for_them_and_to_nobody_else() {
    for guard in [Guard::Basic("me:secret".into()), Guard::Token(Some("me:secret".into())), Guard::Token(None)] {
        let (registry, storage) = (Scripted::start().await, Scripted::start().await);
        let image = Image::new(&registry, &[300_000, 300_000]);
        image.add_to(&storage);
        registry.guard(guard.clone());
        registry.script(&image.layers[0].0, [Act::Redirect(format!("http://{}{{path}}", storage.name()))]);
        let (state, config) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let options = ImageOptions { docker_config: Some(config.path().to_owned()), ..options() };
        fs::write(config.path().join("config.json"), "{}").unwrap();
        if !matches!(guard, Guard::Token(None)) {
            let error = pull(state.path(), options.clone(), &image.reference).await.unwrap_err();
            assert_eq!(error.code, ErrorCode::PermissionDenied, "{guard:?}: {error}");
        }
        docker_config(config.path(), &registry.name(), "me:secret");
        let staged = pull(state.path(), options, &image.reference).await;
        assert_eq!(staged.unwrap().digest, image.digest, "{guard:?}");
        let asked = storage.asked();
        assert!(!asked.is_empty() && asked.iter().all(|asked| asked.authorization.is_none()), "{guard:?}: {asked:?}");
        let first = registry.asked().into_iter().next().unwrap();
        assert_eq!(first.authorization, None, "{guard:?}: nobody is told before he asked");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_runs_out_is_got_again() {
    let registry = Scripted::start().await;
    let image = Image::new(&registry, &[400_000]);
    registry.guard(Guard::Token(None));
    registry.pace(Duration::from_millis(20));
    registry.script(&image.layers[0].0, [Act::Stall(100_000)]);
    let state = tempfile::tempdir().unwrap();
    let images = store(state.path(), options());
    let pulling = tokio::spawn({
        let (images, reference) = (images.clone(), image.reference.clone());
        async move { pull_by(&images, &reference).await }
    });
    let blob = image.layers[0].0.clone();
    testkit::wait_until("the blob is asked for", Duration::from_secs(20), async || {
        registry.asked().iter().any(|asked| asked.path.contains(&blob) && asked.authorization.is_some()).then_some(())
    })
    .await;
    registry.expire_tokens();
    assert_eq!(pulling.await.unwrap().unwrap().digest, image.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discarded_pull_ends_its_download_and_the_next_one_goes_on() {
    let registry = Scripted::start().await;
    let image = Image::new(&registry, &[4 << 20]);
    registry.pace(Duration::from_millis(20));
    let state = tempfile::tempdir().unwrap();
    let images = store(state.path(), options());
    let fence = pulling::fence();
    images.stage(&pulling::request(fence, &image.reference, 0)).await.unwrap();
    let mut came = 0;
    testkit::wait_until("something of the layer", Duration::from_secs(60), async || {
        came += registry.served();
        (came > 256 << 10).then_some(())
    })
    .await;
    images.discard(&contract::agent::DiscardRequest { fence }).await.unwrap();
    assert_eq!(testkit::lab::entries(&state.path().join("staging")), Vec::<String>::new());
    came += registry.served();
    assert!(came < image.bytes(), "{came}");
    registry.pace(Duration::ZERO);
    assert_eq!(pull_by(&images, &image.reference).await.unwrap().digest, image.digest);
    let more = registry.served();
    // What was on its way when it was given up was for nothing.
    assert!(more < image.bytes() && came + more < image.bytes() + (1 << 20), "{came} and {more}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_a_layout_is_a_source_too() {
    let registry = Scripted::start().await;
    let image = Image::new(&registry, &[300_000, 200_000]);
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let archive = dir.path().join("image.tar");
    let tar = |flags: &str, to: &Path| {
        let mut tar = std::process::Command::new("tar");
        tar.arg(flags).arg(to).arg("-C").arg(image.layout.path()).arg(".");
        assert!(tar.status().unwrap().success());
    };
    tar("-cf", &archive);
    let images = store(state.path(), options());
    let staged = pulling::pull_layout(&images, &archive).await.unwrap();
    assert_eq!(staged.digest, image.digest);
    tar("-czf", &archive);
    let error = pulling::pull_layout(&images, &archive).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument, "{error}");
    assert!(error.hint.unwrap().contains("gunzip"));
    fs::write(&archive, [b'x'; 2000]).unwrap();
    assert_eq!(pulling::pull_layout(&images, &archive).await.unwrap_err().code, ErrorCode::NotFound);
    // A named pipe in its place answers at once, not never.
    fs::remove_file(&archive).unwrap();
    nix::unistd::mkfifo(&archive, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert_eq!(pulling::pull_layout(&images, &archive).await.unwrap_err().code, ErrorCode::NotFound);
}
