//! Images on real hosts: what is left over is told, mended and pulled again; and many pulls at once leave nothing over.

mod common;

use std::{fs, path::Path, process::Command, time::Duration};

use common::{busybox_edition, busybox_layout, lab_or_skip};
use futures::future::join_all;
use serde_json::Value;
use testkit::{
    lab::{Lab, LabOptions, entries},
    wait_until,
};

async fn json(lab: &Lab, args: &[&str]) -> Value {
    let text = lab.must(&[&["-o", "json"], args].concat()).await;
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
}

/// What was found: each kind with its outcome, sorted.
fn told(report: &Value) -> Vec<String> {
    let items = report["items"].as_array().unwrap().iter();
    let mut all: Vec<_> = items.map(|item| format!("{} {}", item["kind"], item["outcome"]).replace('"', "")).collect();
    all.sort();
    all
}

fn images(lab: &Lab, host: &str) -> Vec<String> {
    entries(&lab.state_dir(host).join("images"))
}

fn stagings(lab: &Lab, host: &str) -> Vec<String> {
    entries(&lab.state_dir(host).join("staging"))
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_over_is_told_mended_and_pulled_again() {
    let env = [("WARREN_IMAGE_RECONCILE", "0"), ("WARREN_IMAGE_GC_GRACE", "2")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let Some(lab) = lab_or_skip(LabOptions { env, ..LabOptions::default() }).await else { return };
    let host = lab.hosts()[0].clone();
    let layout = busybox_layout(&lab.scratch());
    let lost_layout = busybox_edition(&lab.scratch(), "lost");
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;
    lab.must(&["image", "pull", &lost_layout, "--layout", "--name", "lost"]).await;
    assert_eq!(told(&json(&lab, &["image", "gc", "--dry-run"]).await), Vec::<String>::new());

    // A staging of an operation that ended, a directory that no row speaks of, and a row whose directory is gone.
    let (bb, lost) = (json(&lab, &["image", "show", "bb"]).await, json(&lab, &["image", "show", "lost"]).await);
    let operations = json(&lab, &["op", "ls", "--kind", "image.pull"]).await;
    let operations = operations["operations"].as_array().or(operations.as_array()).unwrap().clone();
    let ended = operations[0]["id"].as_str().unwrap();
    let state = lab.state_dir(&host);
    let (staging, place) =
        (state.join("staging").join(ended), |id: &Value| state.join("images").join(id.as_str().unwrap()));
    fs::create_dir(&staging).unwrap();
    fs::write(staging.join("layer"), vec![1; 8192]).unwrap();
    let leaked = state.join("images").join(uuid::Uuid::now_v7().to_string());
    copy(&place(&bb["id"]), &leaked);
    fs::remove_dir_all(place(&lost["id"])).unwrap();

    let pending = ["directory pending", "missing pending", "staging pending"];
    wait_until("all three old enough", Duration::from_secs(30), async || {
        (told(&json(&lab, &["image", "gc", "--dry-run"]).await) == pending).then_some(())
    })
    .await;
    assert!(staging.exists() && leaked.exists());
    let done = json(&lab, &["image", "gc"]).await;
    assert_eq!(told(&done), ["directory mended", "missing mended", "staging mended"], "{done}");
    assert!(!staging.exists() && !leaked.exists() && place(&bb["id"]).exists());
    let table = String::from_utf8(lab.warren(&["image", "gc"]).await.stdout).unwrap();
    assert!(table.contains("missing") && table.contains("left") && table.contains("pull it to"), "{table}");
    let doctor = lab.must(&["doctor"]).await;
    assert!(doctor.contains("lost its files of the image lost") && doctor.contains("compared with hosts"), "{doctor}");
    let shown = json(&lab, &["image", "show", "lost"]).await;
    assert_eq!((&shown["hosts"], &shown["missing"]), (&serde_json::json!([]), &serde_json::json!([host])));
    let refused = lab.warren(&["vm", "create", "web", "--image", "lost", "--memory", "128M", "--disk", "128M"]).await;
    assert!(!refused.status.success());

    lab.must(&["image", "pull", &lost_layout, "--layout", "--name", "lost"]).await;
    assert_eq!(json(&lab, &["image", "show", "lost"]).await["id"], lost["id"]);
    lab.must(&["vm", "create", "web", "--image", "lost", "--memory", "128M", "--disk", "128M"]).await;
    assert_eq!(told(&json(&lab, &["image", "gc"]).await), Vec::<String>::new());
    let doctor = lab.must(&["doctor"]).await;
    assert!(!doctor.contains("lost its files") && doctor.contains("all in order"), "{doctor}");

    // A disk builds on it: what is gone then is an alarm, and no pull puts other blocks under that disk.
    let away = lab.scratch().join("away");
    fs::rename(place(&lost["id"]), &away).unwrap();
    lab.must(&["image", "gc"]).await;
    let doctor = lab.warren(&["doctor"]).await;
    assert_eq!(doctor.status.code(), Some(1), "{}", String::from_utf8_lossy(&doctor.stdout));
    let pull = ["image", "pull", &lost_layout, "--layout", "--name", "again"];
    common::refused(&lab, &pull, "failed_precondition", 5).await;
    fs::rename(&away, place(&lost["id"])).unwrap();
    assert_eq!(told(&json(&lab, &["image", "gc"]).await), ["returned mended"]);
    lab.must(&["exec", "web", "--", "true"]).await;
    lab.must(&["vm", "rm", "web"]).await;
    for image in ["bb", "lost"] {
        lab.must(&["image", "rm", image]).await;
    }
    assert_eq!((images(&lab, &host).len(), stagings(&lab, &host).len()), (0, 0));
    assert_eq!(lab.residue().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_pulls_of_eight_images_with_two_names_each_on_two_hosts() {
    let Some(lab) = lab_or_skip(LabOptions { hosts: 2, ..LabOptions::default() }).await else { return };
    let hosts = lab.hosts().to_vec();
    let editions: Vec<String> = (0..8).map(|n| busybox_edition(&lab.scratch(), &n.to_string())).collect();
    let pull = async |edition: usize, name: String, host: &str| {
        lab.warren(&["image", "pull", &editions[edition], "--layout", "--name", &name, "--host", host]).await
    };
    let pulls = (0..16).map(|n| pull(n % 8, format!("n{n}"), &hosts[n / 8]));
    for end in join_all(pulls).await {
        assert!(end.status.success(), "{}", String::from_utf8_lossy(&end.stderr));
    }
    for n in 0..8 {
        let (one, other) = (format!("n{n}"), format!("n{}", n + 8));
        let (one, other) = (json(&lab, &["image", "show", &one]).await, json(&lab, &["image", "show", &other]).await);
        assert_eq!((&one["id"], one["names"].as_array().unwrap().len()), (&other["id"], 2), "{one}");
        assert_eq!(one["hosts"].as_array().unwrap().len(), 2, "{one}");
        assert!(one["config"]["env"].to_string().contains(&format!("EDITION={n}")), "{one}");
    }
    // Eight names that two images each want, from either host: one winner a name, and it is what it says.
    let wanted: Vec<(usize, usize)> = (0..16).map(|n| (if n < 8 { n } else { (n + 1) % 8 }, n % 8)).collect();
    let pulls = wanted.iter().map(|(edition, name)| pull(*edition, format!("m{name}"), &hosts[edition % 2]));
    let ends = join_all(pulls).await;
    for name in 0..8 {
        let won: Vec<usize> = (0..16).filter(|n| wanted[*n].1 == name && ends[*n].status.success()).collect();
        assert_eq!(won.len(), 1, "m{name}");
        let shown = json(&lab, &["image", "show", &format!("m{name}")]).await;
        assert!(shown["config"]["env"].to_string().contains(&format!("EDITION={}", wanted[won[0]].0)), "{shown}");
    }
    let losers = ends.iter().filter(|end| !end.status.success());
    for loser in losers {
        assert!(String::from_utf8_lossy(&loser.stderr).contains("is taken"), "{loser:?}");
    }
    assert_eq!(told(&json(&lab, &["image", "gc", "--dry-run"]).await), Vec::<String>::new());
    for host in &hosts {
        assert_eq!((images(&lab, host).len(), stagings(&lab, host)), (8, vec![]), "{host}");
    }
    let names: Vec<String> = (0..16).map(|n| format!("n{n}")).chain((0..8).map(|n| format!("m{n}"))).collect();
    let remove = async |name: &str| lab.warren(&["image", "rm", name]).await;
    for end in join_all(names.iter().map(|name| remove(name))).await {
        assert!(end.status.success(), "{}", String::from_utf8_lossy(&end.stderr));
    }
    assert_eq!(told(&json(&lab, &["image", "gc"]).await), Vec::<String>::new());
    assert!(hosts.iter().all(|host| images(&lab, host).is_empty() && stagings(&lab, host).is_empty()));
    assert_eq!(lab.residue().await, Vec::<String>::new());
}
