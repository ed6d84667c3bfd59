//! A soak: clients do random things to a few VMs while every process is killed at random. In the end each accepted operation has
//! ended, the invariants hold, and nothing is left over. `WARREN_TEST_SOAK_VERBS` makes it longer, `WARREN_TEST_SOAK_SEED`
//! repeats one.

mod common;

use std::{sync::Arc, time::Duration};

use common::{busybox_layout, lab_or_skip};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;
use testkit::{
    lab::{Lab, LabOptions, SERVICES},
    wait_until,
};
use tokio::sync::Mutex;

const VMS: usize = 8;
const CLIENTS: u64 = 4;
/// Everything that was accepted has to end in this time after the last kill.
const SETTLE: Duration = Duration::from_secs(240);

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Two of the VMs are also a lab's, so that a lab and single creates want each other's names.
const LAB: &str = "lab = \"soak\"\n[defaults]\nimage = \"bb\"\nmemory = \"128M\"\ndisk = \"128M\"\n[vms.vm-0]\n[vms.vm-1]\nafter = [\"vm-0\"]\n";

/// One client: random verbs on random VMs, without waiting for what becomes of them.
async fn client(lab: Arc<Mutex<Lab>>, seed: u64, verbs: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let file = lab.lock().await.scratch().join("soak.toml").display().to_string();
    for _ in 0..verbs {
        let vm = format!("vm-{}", rng.random_range(0..VMS));
        let create = ["vm", "create", &vm, "--image", "bb", "--memory", "128M", "--disk", "128M", "--no-wait"];
        let ttl = format!("{}s", rng.random_range(600..900));
        let arguments: Vec<&str> = match rng.random_range(0..15) {
            0..=3 => create.to_vec(),
            4 => vec!["vm", "stop", &vm, "--force", "--no-wait"],
            5 => vec!["vm", "start", &vm, "--no-wait"],
            6 => vec!["vm", "restart", &vm, "--force", "--no-wait"],
            7 => vec!["vm", "pause", &vm, "--no-wait"],
            8 => vec!["vm", "resume", &vm, "--no-wait"],
            9 => vec!["vm", "set", &vm, "--ttl", &ttl, "--no-wait"],
            10 => vec!["vm", "set", &vm, "--disk", "160M", "--no-wait"],
            11 => vec!["lab", "up", "-f", &file, "--no-wait"],
            12 => vec!["lab", "down", "soak", "--no-wait"],
            _ => vec!["vm", "rm", &vm, "--no-wait"],
        };
        let running = lab.lock().await.command(&arguments);
        // Refusals are as good as anything: what counts is what was accepted.
        drop(running.await);
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..300))).await;
    }
}

/// Kills a random process and starts it again, until told to stop.
async fn killer(lab: Arc<Mutex<Lab>>, seed: u64, stop: tokio_util::sync::CancellationToken) -> u64 {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut kills = 0;
    while !stop.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(rng.random_range(300..1500))).await;
        let mut lab = lab.lock().await;
        let victims: Vec<String> =
            SERVICES.iter().map(|name| (*name).to_owned()).chain(lab.hosts().iter().cloned()).collect();
        match rng.random_range(0..=victims.len() + 2) {
            n if n < victims.len() => {
                lab.kill(&victims[n]);
                lab.start_process(&victims[n], &[]);
            }
            n if n == victims.len() => lab.nats.restart().await,
            n if n == victims.len() + 1 => kill_a_vmm(&lab, &mut rng),
            _ => lab.postgres.restart().await,
        }
        kills += 1;
    }
    kills
}

fn kill_a_vmm(lab: &Lab, rng: &mut StdRng) {
    let vmms: Vec<u32> = lab.hosts().iter().flat_map(|host| testkit::lab::vmms(&lab.state_dir(host))).collect();
    if let Some(pid) = vmms.get(rng.random_range(0..vmms.len().max(1))) {
        // One that has just ended is as dead.
        let killed =
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGKILL);
        println!("killed VMM {pid}: {killed:?}");
    }
}

async fn count(lab: &Lab, query: &str) -> i64 {
    lab.sql().await.query_one(query, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn random_verbs_and_random_kills_leave_every_operation_ended_and_nothing_over() {
    let Some(lab) = lab_or_skip(LabOptions { hosts: 2, ..LabOptions::default() }).await else { return };
    let layout = busybox_layout(&lab.scratch());
    for (n, host) in lab.hosts().iter().enumerate() {
        let name = if n == 0 { "bb".to_owned() } else { format!("bb{n}") };
        lab.must(&["image", "pull", &layout, "--layout", "--name", &name, "--host", host]).await;
    }
    std::fs::write(lab.scratch().join("soak.toml"), LAB).unwrap();
    let seed = number("WARREN_TEST_SOAK_SEED", u64::from(std::process::id()));
    let verbs = number("WARREN_TEST_SOAK_VERBS", 200);
    println!("seed {seed}, {verbs} verbs of {CLIENTS} clients");
    let lab = Arc::new(Mutex::new(lab));
    let stop = tokio_util::sync::CancellationToken::new();
    let clients = (1..=CLIENTS).map(|n| tokio::spawn(client(lab.clone(), seed ^ (n << 32), verbs.div_ceil(CLIENTS))));
    let talking = async {
        for client in futures::future::join_all(clients).await {
            client.unwrap();
        }
        stop.cancel();
    };
    let ((), kills) = tokio::join!(talking, killer(lab.clone(), seed, stop.clone()));
    let lab = Arc::try_unwrap(lab).unwrap_or_else(|_| panic!("a client still holds the lab")).into_inner();

    // Everything ends by itself.
    lab.wait_ready().await;
    let unfinished = "select count(*) from operations.operation where state in ('queued', 'running') or undo_owed";
    wait_until("the end of every operation", SETTLE, async || (count(&lab, unfinished).await == 0).then_some(())).await;
    let ended = count(&lab, "select count(*) from operations.operation where kind like 'vm.%'").await;
    println!("{ended} operations ended, {kills} processes were killed");

    // Rows, leases, capacity and hosts say the same.
    let vms = count(&lab, "select count(*) from vm.vm").await;
    assert_eq!(count(&lab, "select count(*) from vm.lease where vm_id is not null").await, vms);
    let held = "select count(*) from vm.host h left join lateral (select coalesce(sum(v.cpus), 0)::bigint c, \
        coalesce(sum(v.memory_mib), 0)::bigint m, coalesce(sum(v.disk_mib), 0)::bigint d from vm.vm v \
        where v.host_id = h.id) s on true where (h.cpus_held, h.memory_held, h.disk_held) is distinct from (s.c, s.m, s.d)";
    assert_eq!(count(&lab, held).await, 0, "capacity held and VMs differ");
    let doctor = lab.warren(&["doctor", "--leaks", "-o", "json"]).await;
    let found: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    assert_eq!(doctor.status.code(), Some(0), "{found}");
    let running = count(&lab, "select count(*) from vm.vm where state in ('running', 'paused')").await;
    let processes: usize = lab.hosts().iter().map(|host| testkit::lab::vmms(&lab.state_dir(host)).len()).sum();
    assert_eq!(i64::try_from(processes).unwrap(), running, "VMMs and rows differ");

    // And it can all be taken down.
    let vms: Value = serde_json::from_str(&lab.must(&["vm", "ls", "-o", "json"]).await).unwrap();
    for vm in vms["vms"].as_array().unwrap() {
        lab.must(&["vm", "rm", vm["name"].as_str().unwrap()]).await;
    }
    assert_eq!(lab.residue().await, Vec::<String>::new());
}
