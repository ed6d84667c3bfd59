//! Stories of a lab's network on one host, inside namespaces of the test's own: an "internet", a machine, the lab on it, and
//! two guests whose taps are played by veth pairs.

mod common;

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use common::Ns;
use contract::{ImageId, VmId, agent::VmSpec, doctor::Verdict, feature::NetworkMode};
use host_agent::{
    capability::{Capability, Ports, Site},
    config::Uplink,
    net::{Guarded, Lab},
};

const INTERNET: &str = "198.51.100.2";
const MACHINE: &str = "198.51.100.1";

struct Stage {
    internet: Ns,
    machine: Ns,
    lab: Lab,
    inside: Ns,
    guests: [Ns; 2],
}

impl Stage {
    fn new(name: &str) -> Self {
        Self::with(name, [NetworkMode::Internet; 2])
    }

    fn with(name: &str, modes: [NetworkMode; 2]) -> Self {
        let (internet, machine, guests) = (Ns::new(), Ns::new(), [Ns::new(), Ns::new()]);
        machine.link("out0", &internet, "in0");
        machine.sh(&format!("ip addr add {MACHINE}/24 dev out0; nft add table inet somebodys"));
        internet.sh(&format!("ip addr add {INTERNET}/24 dev in0; ip addr add 169.254.169.254/32 dev lo"));
        // Whoever is told the way could try to come in, or to reach what is link-local.
        internet.sh(&format!("ip route add 10.77.0.0/24 via {MACHINE}"));
        machine.sh(&format!("ip route add 169.254.169.254 via {INTERNET}"));

        let host = format!("{name}-{}", std::process::id()).parse().unwrap();
        let lab = Lab::new(&host, Uplink::Veth("100.64.77.0/30".parse().unwrap()));
        let making = lab.clone();
        machine.run(move || making.ensure([10, 77, 0, 1].into(), "10.77.0.0/24".parse().unwrap(), &[])).unwrap();
        machine.sh("ip route add 10.77.0.0/24 via 100.64.77.2");
        let inside = Ns::named(lab.namespace().name());
        for (n, guest) in guests.iter().enumerate() {
            let guarded = Guarded { mode: modes[n], ..guarded(n) };
            inside.link(&guarded.tap, guest, "eth0");
            guest.sh(&format!(
                "ip link set eth0 address {}; ip addr add {}/24 dev eth0; ip route add default via 10.77.0.1",
                guarded.mac, guarded.address
            ));
            lab.ensure_tap(&guarded).unwrap();
        }
        Self { internet, machine, lab, inside, guests }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let lab = self.lab.clone();
        if let Err(error) = self.machine.run(move || lab.remove()) {
            eprintln!("a test's lab stays behind: {error}");
        }
    }
}

fn guarded(n: usize) -> Guarded {
    let n = u8::try_from(n).unwrap() + 2;
    Guarded {
        tap: format!("wtguest{n}"),
        mac: format!("02:57:0a:4d:00:0{n}"),
        address: [10, 77, 0, n].into(),
        mode: NetworkMode::Internet,
    }
}

#[test]
fn guests_reach_each_other_and_the_internet_and_nothing_of_the_machine() {
    if let Some(why) = common::missing() {
        println!("skipped: {why}");
        return;
    }
    let stage = Stage::new("reach");
    let [web, db] = &stage.guests;
    for ns in [&stage.internet, &stage.machine, &stage.inside, web, db] {
        ns.listen(7000);
    }
    assert_eq!(web.ask("10.77.0.3:7000").as_deref(), Some("10.77.0.2"), "VM to VM");
    assert_eq!(web.ask(&format!("{INTERNET}:7000")).as_deref(), Some(MACHINE), "out, translated");
    for own in [&format!("{MACHINE}:7000"), "100.64.77.1:7000", "100.64.77.2:7000", "10.77.0.1:7000"] {
        assert_eq!(web.ask(own), None, "the host's own service at {own}");
    }
    assert_eq!(web.ask("169.254.169.254:7000"), None, "what is link-local");
    assert_eq!(stage.machine.ask("169.254.169.254:7000").as_deref(), Some(MACHINE), "which is there");
    assert_eq!(stage.internet.ask("10.77.0.2:7000"), None, "nobody comes in");
    assert_eq!(stage.machine.ask("10.77.0.2:7000"), None, "not even the machine");
}

#[test]
fn a_guest_reaches_what_its_mode_allows_and_the_agent_reaches_it_in_each() {
    if let Some(why) = common::missing() {
        println!("skipped: {why}");
        return;
    }
    let stage = Stage::with("lab", [NetworkMode::Lab, NetworkMode::Internet]);
    let [web, db] = &stage.guests;
    stage.internet.listen(7000);
    db.listen(7000);
    assert!(web.ask("10.77.0.3:7000").is_some(), "the lab");
    assert_eq!(web.ask(&format!("{INTERNET}:7000")), None, "not what is outside");
    assert!(db.ask(&format!("{INTERNET}:7000")).is_some());
    drop(stage);

    let stage = Stage::with("alone", [NetworkMode::Isolated, NetworkMode::Internet]);
    let [web, db] = &stage.guests;
    stage.internet.listen(7000);
    stage.inside.listen(53);
    web.listen(7000);
    db.listen(7000);
    assert!(db.ask("10.77.0.1:53").is_some(), "the name server");
    for anything in ["10.77.0.3:7000", "10.77.0.1:53", &format!("{INTERNET}:7000")] {
        assert_eq!(web.ask(anything), None, "{anything}");
    }
    assert_eq!(db.ask("10.77.0.2:7000"), None, "nor does anybody reach it");
    assert!(stage.inside.ask("10.77.0.2:7000").is_some(), "but the agent, for published ports");
}

#[test]
fn a_guest_with_anothers_address_or_mac_reaches_nobody() {
    if let Some(why) = common::missing() {
        println!("skipped: {why}");
        return;
    }
    let stage = Stage::new("spoof");
    let [web, db] = &stage.guests;
    db.listen(7000);
    assert!(web.ask("10.77.0.3:7000").is_some());

    web.sh("ip addr flush dev eth0; ip addr add 10.77.0.9/24 dev eth0");
    assert_eq!(web.ask("10.77.0.3:7000"), None, "a free address that is not its own");
    web.sh("ip addr flush dev eth0; ip addr add 10.77.0.2/24 dev eth0");
    web.sh("ip link set eth0 address 02:57:0a:4d:00:03");
    assert_eq!(web.ask("10.77.0.3:7000"), None, "the other's MAC");
    web.sh("ip link set eth0 address 02:57:0a:4d:00:02; ip neigh flush dev eth0");
    assert!(web.ask("10.77.0.3:7000").is_some(), "as itself again");
    let table = stage.inside.sh("bridge fdb show br wrbr0");
    let foreign = table.lines().any(|line| line.contains("0a:4d:00:03") && line.contains("wtguest2"));
    assert!(!foreign, "the bridge was not misled: {table}");

    // One that is removed speaks no more, also before its tap is gone.
    stage.lab.remove_guest(&guarded(1)).unwrap();
    assert_eq!(web.ask("10.77.0.3:7000"), None);
    assert!(!stage.inside.sh("nft list table bridge warren").contains("wtguest3"));
    stage.lab.remove_guest(&guarded(1)).unwrap();
}

#[test]
fn a_lab_made_again_keeps_its_guests_and_one_removed_leaves_the_machine_as_it_was() {
    if let Some(why) = common::missing() {
        println!("skipped: {why}");
        return;
    }
    let stage = Stage::new("again");
    let [web, db] = &stage.guests;
    db.listen(7000);
    let (lab, again) = (stage.lab.clone(), [guarded(0), guarded(1)]);
    stage.machine.run(move || lab.ensure([10, 77, 0, 1].into(), "10.77.0.0/24".parse().unwrap(), &again)).unwrap();
    assert!(web.ask("10.77.0.3:7000").is_some());

    assert!(stage.machine.sh("nft list ruleset").contains("warren-again"));
    let lab = stage.lab.clone();
    stage.machine.run(move || lab.remove()).unwrap();
    assert_eq!(stage.machine.sh("nft list ruleset").trim(), "table inet somebodys {\n}");
    assert_eq!(stage.machine.sh("ip -o link").lines().count(), 2, "lo and out0 are left");
    assert!(!stage.lab.namespace().exists());
}

#[test]
fn a_published_udp_port_answers_each_sender_and_one_in_use_is_refused() {
    if let Some(why) = common::missing() {
        println!("skipped: {why}");
        return;
    }
    let stage = Stage::new("ports");
    stage.guests[0].run(|| {
        let socket = UdpSocket::bind("0.0.0.0:7").unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                drop(socket.send_to(&buffer[..length], from));
            }
        });
    });
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _entered = runtime.enter();
    let ports = Ports::new(stage.lab.clone(), Ipv4Addr::LOCALHOST);
    let (wrong, right) = (publishing(taken.local_addr().unwrap().port()), publishing(free));
    let site = |spec| Site { spec, dir: std::path::Path::new("/nowhere"), tap: "wtguest2" };
    assert!(ports.prepare(site(&wrong)).unwrap_err().message.contains("cannot be taken"));
    ports.after_boot(site(&wrong));
    let check = &ports.doctor()[0];
    assert!(check.verdict == Verdict::Fail && check.message.contains("cannot be taken"), "{check:?}");
    ports.after_stop(site(&wrong));
    assert_eq!(ports.doctor()[0].verdict, Verdict::Pass);
    ports.prepare(site(&right)).unwrap();
    ports.after_boot(site(&right));
    let asks: Vec<_> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for (n, socket) in asks.iter().enumerate() {
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let (said, mut buffer) = (format!("sender {n}"), [0; 64]);
        for _ in 0..2 {
            socket.send_to(said.as_bytes(), ("127.0.0.1", free)).unwrap();
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], said.as_bytes());
        }
    }
    // A stopped VM's port is free for others.
    ports.after_stop(site(&right));
    let give_up = Instant::now() + Duration::from_secs(10);
    while let Err(error) = UdpSocket::bind(("127.0.0.1", free)) {
        assert!(Instant::now() < give_up, "the port is still taken: {error}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A VM that publishes its echo port.
fn publishing(port: u16) -> VmSpec {
    serde_json::from_value(serde_json::json!({
        "id": VmId::new(), "name": "web", "image": ImageId::new(), "config": {}, "cpus": 1, "memory": 128, "disk": 128,
        "address": "10.77.0.2/24", "gateway": "10.77.0.1", "mac": "02:57:0a:4d:00:02", "domain": "warren",
        "ssh_keys": [], "features": { "ports": [format!("{port}:7/udp")] }
    }))
    .unwrap()
}
