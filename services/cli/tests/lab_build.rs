//! Images built by scripts in real VMs, through the CLI alone.

mod common;

use std::{path::Path, time::Duration};

use common::{busybox_layout, lab_or_skip, refused};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use testkit::{
    lab::{Lab, LabOptions},
    wait_until,
};

const SMALL: [&str; 4] = ["--memory", "128M", "--disk", "128M"];
const BOUND: Duration = Duration::from_secs(120);

fn script(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// How many VMs were made.
async fn created(lab: &Lab) -> usize {
    let list: Value = serde_json::from_str(&lab.must(&["-o", "json", "op", "ls"]).await).unwrap();
    list["operations"].as_array().unwrap().iter().filter(|operation| operation["kind"] == "vm.create").count()
}

fn build<'a>(name: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["image", "build", name, "--from", "bb"], more, &SMALL].concat()
}

async fn pulled(lab: &Lab) {
    let layout = busybox_layout(&lab.scratch());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;
}

async fn nothing_left(lab: &Lab) {
    assert_eq!(lab.residue().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_and_files_become_an_image_that_boots_and_is_not_built_twice() {
    let Some(lab) = lab_or_skip(LabOptions::default()).await else { return };
    pulled(&lab).await;
    let dir = lab.scratch();
    std::fs::create_dir_all(dir.join("site/sub")).unwrap();
    std::fs::write(dir.join("site/index.html"), "<p>hello</p>\n").unwrap();
    std::fs::write(dir.join("site/sub/page"), "page\n").unwrap();
    // Larger than what a request holds.
    std::fs::write(dir.join("large"), vec![b'x'; 2 << 20]).unwrap();
    let site = format!("{}:/srv/www", dir.join("site").display());
    let large = format!("{}:large", dir.join("large").display());
    let first = script(
        &dir,
        "first.sh",
        "id -u\npwd\necho \"$GREETING from the build\"\necho made > /root/made\nls -l /srv/www\n",
    );
    let second = script(
        &dir,
        "second.sh",
        "#!/bin/sh\ncat /root/made\nwc -c < large\nmkdir -p /opt && cp large /opt/large\nchmod 4755 /opt/large\n",
    );
    let parts = ["--file", &site, "--script", &first, "--file", &large, "--script", &second, "--env", "GREETING=hi"];
    let printed = lab.must(&build("web", &parts)).await;
    for line in [
        "[1/2] first.sh: in VM build-",
        "\n0\n/.warren-build/work\nhi from the build\n",
        "\nmade\n2097152\n",
        "image web is here: sha256:",
    ] {
        assert!(printed.contains(line), "{line:?} in {printed}");
    }
    assert_eq!(created(&lab).await, 2);
    let log = lab.must(&["image", "log", "web"]).await;
    assert!(printed.starts_with(&log) && log.contains("hi from the build"), "{log}");
    nothing_left(&lab).await;

    // What was made is in it, and nothing of how.
    lab.must(&[&["vm", "create", "one", "--image", "web"][..], &SMALL].concat()).await;
    let look = "cat /root/made /srv/www/index.html /srv/www/sub/page; stat -c '%a %s' /opt/large; ls -d /.warren-build";
    let seen = lab.warren(&["exec", "one", "--", "sh", "-c", look]).await;
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert_eq!(seen, "made\n<p>hello</p>\npage\n4755 2097152\n");
    // The image's own program is what it was.
    let (bb, web): (Value, Value) = (
        serde_json::from_str(&lab.must(&["-o", "json", "image", "show", "bb"]).await).unwrap(),
        serde_json::from_str(&lab.must(&["-o", "json", "image", "show", "web"]).await).unwrap(),
    );
    assert_eq!(bb["config"], web["config"]);

    // The same again makes no VM; a change of the second step makes one.
    let again = lab.must(&build("again", &parts)).await;
    assert_eq!(again.matches("nothing changed").count(), 2, "{again}");
    assert_eq!(created(&lab).await, 3);
    script(&dir, "second.sh", "test -e /root/made; echo other > /root/made\n");
    let changed = lab.must(&build("changed", &parts)).await;
    assert!(
        changed.contains("[1/2] first.sh: nothing changed") && changed.contains("[2/2] second.sh: gave"),
        "{changed}"
    );
    assert_eq!(created(&lab).await, 4);
    lab.must(&["vm", "rm", "one"]).await;
    nothing_left(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_fails_or_is_cancelled_leaves_only_its_log() {
    let Some(lab) = lab_or_skip(LabOptions::default()).await else { return };
    pulled(&lab).await;
    let dir = lab.scratch();
    let bad = script(&dir, "bad.sh", "echo so far\nls /no/such/file\necho never\n");
    let error = refused(&lab, &build("web", &["--script", &bad]), "failed_precondition", 5).await;
    let details = &error["error"]["details"];
    assert_eq!((&details["exit_code"], &details["step"]), (&1.into(), &1.into()), "{error}");
    let log = lab.must(&["image", "log", "web"]).await;
    assert!(log.contains("so far\n") && log.contains("/no/such/file") && !log.contains("never"), "{log}");
    refused(&lab, &["image", "show", "web"], "not_found", 3).await;
    nothing_left(&lab).await;

    let long = script(&dir, "long.sh", "echo begun\nsleep 1000\n");
    let slow = refused(&lab, &build("web", &["--script", &long, "--timeout", "3s"]), "deadline_exceeded", 10).await;
    assert!(slow["error"]["message"].as_str().unwrap().contains("within 3 s"), "{slow}");
    nothing_left(&lab).await;

    let child = lab.spawn(&build("cancelled", &["--script", &long]));
    wait_until("the script", BOUND, async || {
        let log = lab.warren(&["image", "log", "cancelled"]).await;
        String::from_utf8_lossy(&log.stdout).contains("begun\n").then_some(())
    })
    .await;
    kill(Pid::from_raw(child.id().unwrap().cast_signed()), Signal::SIGINT).unwrap();
    let output = tokio::time::timeout(BOUND, child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert!(lab.must(&["image", "log", "cancelled"]).await.ends_with("begun\n"));
    refused(&lab, &["image", "show", "cancelled"], "not_found", 3).await;
    let vms: Value = serde_json::from_str(&lab.must(&["-o", "json", "vm", "ls"]).await).unwrap();
    assert_eq!(vms["vms"].as_array().map(Vec::len), Some(0), "{vms}");
    nothing_left(&lab).await;
    lab.must(&["image", "rm", "bb"]).await;
    let images = lab.state_dir(&lab.hosts()[0]).join("images");
    assert_eq!(testkit::lab::entries(&images), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_goes_on_when_the_service_and_the_host_agent_die_under_its_script() {
    let Some(mut lab) = lab_or_skip(LabOptions::default()).await else { return };
    pulled(&lab).await;
    let host = lab.hosts()[0].clone();
    let text = "echo begun >> /root/runs\necho begun\nwhile ! test -e /root/go; do sleep 0.2; done\necho through\n";
    let script = script(&lab.scratch(), "long.sh", text);
    let accepted = lab.must(&build("web", &["--script", &script, "--no-wait"])).await;
    let id = accepted.split_whitespace().next().unwrap().to_owned();
    let said = async |lab: &Lab| lab.must(&["image", "log", &id]).await;
    wait_until("the script", BOUND, async || said(&lab).await.contains("begun\n").then_some(())).await;
    for process in ["image-service", host.as_str()] {
        lab.kill(process);
    }
    for process in ["image-service", host.as_str()] {
        lab.start_process(process, &[]);
    }
    lab.wait_ready().await;
    let vm = said(&lab).await.split_once("in VM ").unwrap().1.split_once(',').unwrap().0.to_owned();
    lab.must(&["exec", &vm, "--", "touch", "/root/go"]).await;
    lab.must(&["op", "wait", &id]).await;
    let log = said(&lab).await;
    assert_eq!(log.matches("begun\nthrough\n").count(), 1, "{log}");
    lab.must(&[&["vm", "create", "one", "--image", "web"][..], &SMALL].concat()).await;
    assert_eq!(lab.must(&["exec", "one", "--", "cat", "/root/runs"]).await, "begun\n");
    lab.must(&["vm", "rm", "one"]).await;
    nothing_left(&lab).await;
}

/// A printed line without what differs from run to run.
fn alike(line: &str) -> String {
    let word = |word: &str| match word.split_once(['-', ':']) {
        Some(("sha256", rest)) => format!("sha256:…{}", rest.trim_matches(|c: char| c.is_ascii_hexdigit() || c == '…')),
        Some(("build", rest)) => format!("build-…{}", rest.trim_matches(|c: char| c.is_ascii_hexdigit() || c == '…')),
        _ => word.to_owned(),
    };
    let line = line.split_once("BusyBox v").map_or(line, |(before, _)| before);
    line.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_readme_shows_of_a_build_is_what_it_prints() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")).unwrap();
    let (_, shown) = readme.split_once("$ cat setup.sh\n").unwrap();
    let (text, shown) = shown.split_once("$ warren image build web --from bb").unwrap();
    let shown: Vec<_> = shown.split("\n```").next().unwrap().lines().skip(1).map(str::to_owned).collect();
    let Some(lab) = lab_or_skip(LabOptions::default()).await else { return };
    pulled(&lab).await;
    let page = script(&lab.scratch(), "index.html", "<p>hello</p>\n");
    let setup = script(&lab.scratch(), "setup.sh", text);
    let file = format!("{page}:index.html");
    let printed = lab.must(&build("web", &["--file", &file, "--script", &setup])).await;
    println!("{printed}");
    let alike = |lines: &[String]| lines.iter().map(|line| alike(line)).collect::<Vec<_>>();
    let printed: Vec<_> = printed.lines().map(str::to_owned).collect();
    assert_eq!(alike(&printed), alike(&shown));
    for image in ["web", "bb"] {
        lab.must(&["image", "rm", image]).await;
    }
    nothing_left(&lab).await;
}
