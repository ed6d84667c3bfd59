//! The host-agent itself is killed while it pulls: the operation ends with the right image, what had come is not fetched again, nothing is left.

mod common;

use std::time::Duration;

use common::lab_or_skip;
use serde_json::Value;
use testkit::{
    image::{Layer, Layout, Packing},
    lab::{LabOptions, entries},
    scripted::Scripted,
    wait_until,
};

/// How often it is killed.
const KILLS: u64 = 6;
/// What may be on its way to each of three layers when it dies: it comes twice.
const LOST: u64 = 3 * (256 << 10);
const BOUND: Duration = Duration::from_secs(120);

/// Content that does not pack.
fn noise(bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    rand::fill(&mut content[..]);
    content
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_agent_killed_six_times_in_one_pull_goes_on_where_it_was() {
    let Some(mut lab) = lab_or_skip(LabOptions::default()).await else { return };
    let host = lab.hosts()[0].clone();
    let (layout, registry) = (lab.scratch().join("large"), Scripted::start().await);
    let sizes = [5 << 20, 4 << 20, 2 << 20];
    let layers = sizes
        .iter()
        .enumerate()
        .map(|(n, size)| Layer::new(Packing::Plain).dir("etc", 0o755).file(&format!("etc/{n}"), 0o644, &noise(*size)));
    Layout::new(layers.collect()).write(&layout).unwrap();
    let reference = registry.add(&layout, "story/large", "1");
    let bytes: u64 = registry.layers("story/large", "1").iter().map(|(_, size)| size).sum();
    // About ten seconds for the longest layer.
    registry.pace(Duration::from_millis(30));
    let accepted = lab.must(&["-o", "json", "image", "pull", &reference, "--name", "large", "--no-wait"]).await;
    let operation: Value = serde_json::from_str(&accepted).unwrap();
    let operation = operation["id"].as_str().unwrap().to_owned();
    let mut resumed = 0;
    for kill in 0..KILLS {
        wait_until("the host to ask for a layer", BOUND, async || {
            let asked = registry.asked();
            resumed += asked.iter().filter(|asked| asked.range.is_some()).count();
            asked.iter().any(|asked| asked.path.contains("/blobs/")).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(rand::random_range(100..1100))).await;
        lab.kill(&host);
        println!("kill {}: {} bytes of {bytes} in the cache", kill + 1, cached(&lab.state_dir(&host)));
        lab.start_process(&host, &[]);
    }
    let ended = wait_until("the pull's end", BOUND, async || {
        let shown: Value = serde_json::from_str(&lab.must(&["-o", "json", "op", "show", &operation]).await).unwrap();
        let state = shown["state"].as_str().unwrap_or_default().to_owned();
        matches!(state.as_str(), "succeeded" | "failed" | "cancelled").then_some((state, shown))
    })
    .await;
    assert_eq!(ended.0, "succeeded", "{}", ended.1);
    let image: Value = serde_json::from_str(&lab.must(&["-o", "json", "image", "show", "large"]).await).unwrap();
    assert_eq!(image["digest"], registry.digest("story/large", "1"));
    resumed += registry.asked().iter().filter(|asked| asked.range.is_some()).count();
    let (served, bound) = (registry.served(), bytes + (KILLS + 1) * LOST);
    println!("{served} bytes served of {bytes} in {KILLS} kills, {resumed} times a layer was gone on with");
    assert!(served >= bytes && served <= bound, "{served} bytes served, {bound} at most");
    assert!(resumed > 0, "no layer was gone on with");
    let state = lab.state_dir(&host);
    assert_eq!((entries(&state.join("staging")).len(), entries(&state.join("images")).len()), (0, 1));
    let parts: Vec<_> =
        entries(&state.join("blobs/sha256")).into_iter().filter(|name| name.ends_with(".part")).collect();
    assert_eq!(parts, Vec::<String>::new());
    lab.must(&["image", "rm", "large"]).await;
    assert_eq!(lab.residue().await, Vec::<String>::new());
}

/// Bytes of blobs that a host has, whole and in part.
fn cached(state: &std::path::Path) -> u64 {
    let blobs = std::fs::read_dir(state.join("blobs/sha256")).into_iter().flatten().flatten();
    blobs.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
}
