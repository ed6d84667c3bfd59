//! Uploads over a slow line, under which clients and host-agents are killed: they go on where they were.

mod common;

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use common::lab_or_skip;
use rand::RngExt;
use serde_json::Value;
use testkit::lab::{Lab, LabOptions};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const BOUND: Duration = Duration::from_secs(180);
/// Bytes of the file that cannot be made smaller.
const DATA: usize = 40 << 20;

/// A line to NATS that carries so much and no more; it counts what clients send.
struct Line {
    url: String,
    sent: Arc<AtomicU64>,
}

impl Line {
    async fn start(lab: &Lab, bytes_per_second: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        let (sent, there) = (Arc::<AtomicU64>::default(), lab.nats.url().replace("nats://", ""));
        let count = sent.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&there).await.unwrap();
                let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                    (client.into_split(), server.into_split());
                let count = count.clone();
                tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
                tokio::spawn(async move {
                    let mut piece = vec![0; 64 << 10];
                    while let Ok(length @ 1..) = from_client.read(&mut piece).await {
                        if to_server.write_all(&piece[..length]).await.is_err() {
                            return;
                        }
                        count.fetch_add(length as u64, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_micros(length as u64 * 1_000_000 / bytes_per_second)).await;
                    }
                });
            }
        });
        Self { url, sent }
    }
}

async fn json(lab: &Lab, args: &[&str]) -> Value {
    serde_json::from_str(&lab.must(args).await).unwrap()
}

/// Waits until a host has so much for sure.
async fn arrived(lab: &Lab, at: u64) {
    let state = lab.state_dir(&lab.hosts()[0]);
    testkit::wait_until("the upload is under way", BOUND, async || {
        ["staging", "kernel-objects"].iter().find_map(|dir| {
            testkit::lab::entries(&state.join(dir)).into_iter().find_map(|name| {
                let record = std::fs::read(state.join(dir).join(name).join("upload.json")).ok()?;
                let record: Value = serde_json::from_slice(&record).ok()?;
                (record["at"].as_u64()? >= at).then_some(())
            })
        })
    })
    .await;
}

fn disk(dir: &Path) -> String {
    let (tree, disk) = (dir.join("tree"), dir.join("disk.ext4"));
    std::fs::create_dir_all(tree.join("bin")).unwrap();
    std::fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", tree.join("bin/sh")).unwrap();
    let mut noise = vec![0; DATA];
    rand::rng().fill(&mut noise[..]);
    std::fs::write(tree.join("noise"), noise).unwrap();
    let made = Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&tree).arg(&disk).arg("96M").status();
    assert!(made.unwrap().success());
    disk.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_when_its_host_or_its_client_was_killed() {
    let Some(mut lab) = lab_or_skip(LabOptions::default()).await else { return };
    let (host, disk) = (lab.hosts()[0].clone(), disk(&lab.scratch()));
    lab.must(&["image", "register", "plain", &disk]).await;
    let plain = json(&lab, &["image", "show", "plain", "-o", "json"]).await;

    // The host-agent dies: the client goes on, and says so.
    let line = Line::start(&lab, 5 << 20).await;
    let running = tokio::spawn(lab.command(&["--nats", &line.url, "image", "register", "one", &disk]));
    arrived(&lab, 8 << 20).await;
    lab.kill(&host);
    lab.start_process(&host, &[]);
    let output = tokio::time::timeout(BOUND, running).await.unwrap().unwrap();
    let (told, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{}", lab.tails());
    assert!(told.contains(plain["digest"].as_str().unwrap()), "{told}");
    assert!(said.contains("the upload broke off") && said.contains("it goes on at"), "{said}");
    let sent = line.sent.load(Ordering::Relaxed);
    assert!(sent < DATA as u64 * 17 / 10, "{sent} bytes were sent");

    // The client dies: its user goes on with the operation.
    let line = Line::start(&lab, 5 << 20).await;
    let mut client = lab.spawn(&["--nats", &line.url, "image", "register", "two", &disk]);
    arrived(&lab, 8 << 20).await;
    client.kill().await.unwrap();
    let list = json(&lab, &["op", "ls", "--state", "running", "-o", "json"]).await;
    let id = list["operations"][0]["id"].as_str().unwrap().to_owned();
    let line = Line::start(&lab, 50 << 20).await;
    lab.must(&["--nats", &line.url, "op", "upload", &id, &disk]).await;
    let sent = line.sent.load(Ordering::Relaxed);
    assert!(sent < DATA as u64 - (6 << 20), "{sent} bytes were sent again");
    assert_eq!(json(&lab, &["image", "show", "two", "-o", "json"]).await["digest"], plain["digest"]);
    let late = lab.warren(&["op", "upload", &id, &disk]).await;
    assert!(String::from_utf8_lossy(&late.stderr).contains("awaits no upload"), "{late:?}");

    // A kernel's files go on as well.
    let (file, modules) = (std::env::var("WARREN_KERNEL").unwrap(), std::env::var("WARREN_KERNEL_MODULES").unwrap());
    lab.must(&["kernel", "import", "plain", &file, &modules]).await;
    let line = Line::start(&lab, 10 << 20).await;
    let running = tokio::spawn(lab.command(&["--nats", &line.url, "kernel", "import", "again", &file, &modules]));
    arrived(&lab, 16 << 20).await;
    lab.kill(&host);
    lab.start_process(&host, &[]);
    let output = tokio::time::timeout(BOUND, running).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("it goes on at"), "{said}\n{}", lab.tails());
    let digest = async |name| json(&lab, &["kernel", "show", name, "-o", "json"]).await["digest"].clone();
    assert_eq!(digest("again").await, digest("plain").await);
    lab.must(&["kernel", "rm", digest("plain").await.as_str().unwrap()]).await;
    assert_eq!(lab.residue().await, Vec::<String>::new());
}
