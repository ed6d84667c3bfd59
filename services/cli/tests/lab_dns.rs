//! Names of a lab of two hosts, as VMs see them: there from the reservation on, on both hosts, renamed, and gone; and people's own
//! resolver on the machine.

mod common;

use std::time::Duration;

use common::{busybox_layout, lab_or_skip};
use serde_json::Value;
use testkit::{
    lab::{Lab, LabOptions},
    wait_until,
};

const BOUND: Duration = Duration::from_secs(60);

/// What a VM's own resolver says, whether or not it finds anything.
async fn lookup(lab: &Lab, vm: &str, what: &str) -> String {
    let command = format!("nslookup {what} 2>&1 || true");
    lab.must(&["exec", vm, "--", "sh", "-c", &command]).await
}

async fn address(lab: &Lab, vm: &str) -> String {
    let show: Value = serde_json::from_str(&lab.must(&["vm", "show", vm, "-o", "json"]).await).unwrap();
    show["address"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn vms_find_each_other_by_name_on_whichever_host_they_are() {
    let Some(lab) = lab_or_skip(LabOptions { hosts: 2, ..LabOptions::default() }).await else { return };
    let layout = busybox_layout(&lab.scratch());
    let (one, two) = (lab.hosts()[0].clone(), lab.hosts()[1].clone());
    for (host, image) in [(&one, "bb"), (&two, "bb-2")] {
        lab.must(&["image", "pull", &layout, "--layout", "--name", image, "--host", host]).await;
    }
    let small = ["--memory", "128M", "--disk", "128M"];
    lab.must(&[&["vm", "create", "web", "--image", "bb"][..], &small].concat()).await;
    lab.must(&[&["vm", "create", "db", "--image", "bb-2", "--no-wait"][..], &small].concat()).await;

    // Its reservation is enough: the name is there while it still boots.
    let db = wait_until("the reservation", BOUND, async || {
        let output = lab.warren(&["vm", "show", "db", "-o", "json"]).await;
        let show: Value = serde_json::from_slice(&output.stdout).ok()?;
        Some((show["address"].as_str()?.to_owned(), show["host"].clone(), show["id"].as_str()?.to_owned()))
    })
    .await;
    let (db, host, id) = db;
    assert_eq!(host, two.as_str());
    let found = lookup(&lab, "web", "-type=a db.warren.").await;
    assert!(found.contains(&format!("Address: {db}")), "{found}");

    // Bare, by the search domain and as it is; backwards; and what it is.
    lab.must(&["vm", "wait", "db", "--for", "running"]).await;
    let resolv = lab.must(&["exec", "web", "--", "cat", "/etc/resolv.conf"]).await;
    assert!(resolv.contains("search warren"), "{resolv}");
    for name in ["db", "db.", "DB.Warren"] {
        let found = lookup(&lab, "web", &format!("-type=a {name}")).await;
        assert!(found.contains(&format!("Address: {db}")), "{name}: {found}");
    }
    assert!(lookup(&lab, "web", &db).await.contains("name = db.warren"));
    let text = lookup(&lab, "web", "-type=txt db.warren.").await;
    assert!(text.contains(&format!("id={id}")) && text.contains(&format!("host={two}")), "{text}");
    // The other way round, through the other host's name server; and what uses names uses these.
    let web = address(&lab, "web").await;
    assert!(lookup(&lab, "db", "-type=a web").await.contains(&format!("Address: {web}")));
    let pinged = lab.must(&["exec", "web", "--", "sh", "-c", "ping -c 1 -W 1 db 2>&1 || true"]).await;
    assert!(pinged.contains(&format!("PING db ({db})")), "{pinged}");
    // Nobody is asked for the rest in this lab.
    let refused = lookup(&lab, "web", "-type=a example.org.").await;
    assert!(refused.contains("REFUSED"), "{refused}");

    // A new name answers, the old one does not; the deleted one neither.
    lab.must(&["vm", "rename", "db", "store"]).await;
    let gone = |name: &'static str| {
        let lab = &lab;
        wait_until("the end of a name", BOUND, async move || {
            lookup(lab, "web", &format!("-type=a {name}")).await.contains("NXDOMAIN").then_some(())
        })
    };
    gone("db.warren.").await;
    assert!(lookup(&lab, "web", "-type=a store.warren.").await.contains(&format!("Address: {db}")));
    let checks = lab.must(&["doctor"]).await;
    assert_eq!(checks.matches("names, confirmed").count(), 2, "{checks}");
    lab.must(&["vm", "rm", "store"]).await;
    gone("store.warren.").await;
    assert!(lookup(&lab, "web", &db).await.contains("NXDOMAIN"));

    // Another agent takes over under the VM, and serves people on the machine, too.
    let mut lab = lab;
    // An address of its own, which no connection gets by chance.
    let [.., high, low] = std::process::id().to_be_bytes();
    let people = format!("127.78.{high}.{low}:5353");
    lab.kill(&one);
    lab.start_process(&one, &[("WARREN_DNS_ADDRESS", &people)]);
    lab.wait_ready().await;
    wait_until("the next agent's names", BOUND, async || {
        let output = lab.warren(&["exec", "web", "--", "nslookup", "-type=a", "web.warren."]).await;
        String::from_utf8_lossy(&output.stdout).contains(&format!("Address: {web}")).then_some(())
    })
    .await;
    let asked =
        std::process::Command::new("/bin/busybox").args(["nslookup", "-type=a", "web.warren.", &people]).output();
    let said = String::from_utf8_lossy(&asked.unwrap().stdout).into_owned();
    assert!(said.contains(&format!("Address: {web}")), "{said}");
    lab.must(&["vm", "rm", "web"]).await;
    assert_eq!(lab.residue().await, Vec::<String>::new());
}
