//! Stories of a lab's network on one host, inside namespaces of the test's own: an "internet", a machine, the lab on it, and
//! two guests whose taps are played by veth pairs.

mod common;

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
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

/// Rules as nft(8) shows them.
const READABLE: [&str; 14] = [
    "ct state established,related accept",
    "ip daddr 169.254.0.0/16 drop",
    "ip saddr @isolated drop",
    r#"iifname "wrbr0" oifname "wrbr0" accept"#,
    r#"iifname "wrbr0" oifname "uplink" ip saddr @outward accept"#,
    r#"iifname "wrbr0" icmp type echo-request accept"#,
    r#"iifname "wrbr0" udp dport 53 accept"#,
    r#"oifname "uplink" masquerade"#,
    r#"iifname != "wt*" accept"#,
    "iifname . ether saddr != @macs drop",
    "iifname . ether saddr . ip saddr @guests accept",
    "arp htype 1 arp ptype ip iifname . arp saddr ether . arp saddr ip @guests accept",
    r#""wtguest2" . 02:57:0a:4d:00:02 . 10.77.0.2"#,
    r#""wtguest2" comment "0190b6f0-0000-7000-8000-000000000002""#,
];

/// What an older agent had nft(8) make, with one guest.
const OLDER: &str = r#"
table inet warren {
  set outward { type ipv4_addr; elements = { 10.77.0.2 } }
  set isolated { type ipv4_addr; }
  chain forwarded { type filter hook forward priority filter; policy drop; ip daddr 169.254.0.0/16 drop; }
  chain incoming {
    type filter hook input priority filter; policy drop;
    iifname "wrbr0" meta l4proto { tcp, udp } th dport 53 accept
  }
  chain leaving { type nat hook postrouting priority srcnat; policy accept; oifname "uplink" masquerade; }
}
table bridge warren {
  set macs { type ifname . ether_addr; elements = { "wtguest2" . 02:57:0a:4d:00:02 } }
  set guests { type ifname . ether_addr . ipv4_addr; elements = { "wtguest2" . 02:57:0a:4d:00:02 . 10.77.0.2 } }
  set isolated { type ifname; }
  chain bridged { type filter hook forward priority -200; policy accept; iifname @isolated drop; }
  chain guarded { type filter hook prerouting priority -300; policy accept; iifname != "wt*" accept; drop; }
}"#;

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
        vm: format!("0190b6f0-0000-7000-8000-00000000000{n}").parse().unwrap(),
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
    stage.lab.remove_guest(&guarded(1)).unwrap();
    until("the tap and all that names it go", || {
        !stage.inside.sh("nft list table bridge warren; ip -o link").contains("wtguest3")
    });
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
    stage.internet.listen(7000);
    let rules = stage.inside.sh("nft list ruleset");
    for line in READABLE {
        assert!(rules.contains(line), "{line}\n{rules}");
    }
    let again = |guests: &[Guarded]| {
        let (lab, guests) = (stage.lab.clone(), guests.to_vec());
        stage.machine.run(move || lab.ensure([10, 77, 0, 1].into(), "10.77.0.0/24".parse().unwrap(), &guests)).unwrap();
    };
    let goes_on = |when: &str| {
        assert!(web.ask("10.77.0.3:7000").is_some(), "{when}");
        assert!(web.ask(&format!("{INTERNET}:7000")).is_some(), "{when}");
    };
    // Also without being named, as a VM whose handles are damaged cannot be.
    again(&[]);
    goes_on("made again");
    assert_eq!(stage.inside.sh("nft list ruleset"), rules, "a repeat adds nothing");

    // What an older agent left, which ran nft(8).
    stage
        .inside
        .sh(&format!("nft delete table inet warren; nft delete table bridge warren; nft -f - <<'E'\n{OLDER}\nE"));
    again(&[guarded(0), guarded(1)]);
    goes_on("after an older agent");
    let sorted = |rules: &str| {
        let mut lines: Vec<_> = rules.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&stage.inside.sh("nft list ruleset")), sorted(&rules), "but for the order of the chains");

    // The address of a VM that is lost comes to one that may not leave the lab.
    again(&[Guarded { mode: NetworkMode::Lab, ..guarded(0) }]);
    assert_eq!(web.ask(&format!("{INTERNET}:7000")), None, "the next VM with that address");
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
    // One that is being stopped takes no new connections, but those that are open go on until it is off.
    stage.guests[0].listen_and_echo(8);
    let (mut tcp, port) = (right.clone(), TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
    tcp.features.ports = vec![format!("{port}:8").parse().unwrap(), format!("{free}:7/udp").parse().unwrap()];
    ports.changed(site(&tcp)).unwrap();
    let mut open = TcpStream::connect(("127.0.0.1", port)).unwrap();
    open.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut echo = |text: &[u8]| {
        let mut buffer = [0; 5];
        open.write_all(text).and_then(|()| open.read_exact(&mut buffer)).map(|()| buffer == text)
    };
    assert!(echo(b"first").unwrap());
    ports.before_stop(site(&tcp));
    wait_until_refused(port);
    assert!(echo(b"later").unwrap(), "an open connection goes on");
    // A stopped VM's port is free for others.
    ports.after_stop(site(&tcp));
    echo(b"ended").unwrap_err();
    let give_up = Instant::now() + Duration::from_secs(10);
    while let Err(error) = UdpSocket::bind(("127.0.0.1", free)) {
        assert!(Instant::now() < give_up, "the port is still taken: {error}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn wait_until_refused(port: u16) {
    let give_up = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(("127.0.0.1", port)).is_ok() {
        assert!(Instant::now() < give_up, "the port still takes connections");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn two_labs_on_one_machine_do_not_reach_each_other() {
    if let Some(why) = common::missing() {
        println!("skipped: {why}");
        return;
    }
    let stage = Stage::new("one");
    let web = &stage.guests[0];
    let other = Lab::new(
        &format!("two-{}", std::process::id()).parse().unwrap(),
        Uplink::Veth("100.64.78.0/30".parse().unwrap()),
    );
    let making = other.clone();
    stage.machine.run(move || making.ensure([10, 78, 0, 1].into(), "10.78.0.0/24".parse().unwrap(), &[])).unwrap();
    // The machine knows both ways, and passes on what it may.
    stage.machine.sh("ip route add 10.78.0.0/24 via 100.64.78.2");
    let (inside, guest) = (Ns::named(other.namespace().name()), Ns::new());
    let guarded = Guarded { address: [10, 78, 0, 2].into(), ..guarded(0) };
    inside.link(&guarded.tap, &guest, "eth0");
    guest.sh(&format!(
        "ip link set eth0 address {}; ip addr add 10.78.0.2/24 dev eth0; ip route add default via 10.78.0.1",
        guarded.mac
    ));
    other.ensure_tap(&guarded).unwrap();
    for ns in [&stage.internet, &stage.inside, &inside, web, &guest] {
        ns.listen(7000);
    }
    for ns in [web, &guest] {
        assert!(ns.ask(&format!("{INTERNET}:7000")).is_some(), "each reaches what is outside");
    }
    for (from, theirs) in [
        (web, ["10.78.0.2", "10.78.0.1", "100.64.78.1", "100.64.78.2"]),
        (&guest, ["10.77.0.2", "10.77.0.1", "100.64.77.1", "100.64.77.2"]),
    ] {
        for address in theirs {
            assert_eq!(from.ask(&format!("{address}:7000")), None, "{address}");
        }
    }
    stage.machine.run(move || other.remove()).unwrap();
    assert!(web.ask(&format!("{INTERNET}:7000")).is_some(), "the other's end is not this one's");
}

/// A frame as it is written to a tap: no offloads asked for, then an ARP question of a guest.
fn arp(guest: &Guarded) -> Vec<u8> {
    let mac: Vec<u8> = guest.mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    let address = guest.address.octets();
    [&[0; 10][..], &[0xff; 6], &*mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &*mac, &address, &[0; 6], &[10, 77, 0, 1]]
        .concat()
}

#[test]
fn ready_taps_are_given_refilled_found_again_and_never_used_twice() {
    if let Some(why) = common::missing() {
        println!("skipped: {why}");
        return;
    }
    let machine = Ns::new();
    let host = format!("pool-{}", std::process::id()).parse().unwrap();
    // Each is an agent of its own: it knows only what it finds.
    let agent = |taps: u16, claimed: &[&str]| {
        let lab = Lab::with_pool(&host, Uplink::None, taps);
        claimed.iter().for_each(|tap| lab.claim_tap(tap));
        let making = lab.clone();
        machine.run(move || making.ensure([10, 77, 0, 1].into(), "10.77.0.0/24".parse().unwrap(), &[])).unwrap();
        until("the pool is full", || lab.pool().ready == usize::from(taps));
        lab
    };
    let there = |lab: &Lab| lab.taps().unwrap().into_iter().map(|tap| tap.name).collect::<Vec<_>>();
    let strays = |lab: &Lab| there(lab).into_iter().filter(|tap| !lab.knows(tap)).collect::<Vec<_>>();

    let lab = agent(3, &[]);
    let inside = Ns::named(lab.namespace().name());
    let ready = there(&lab);
    assert_eq!((ready.len(), strays(&lab).len()), (3, 0));
    let links = inside.sh("ip -o link");
    for tap in &ready {
        let link = links.lines().find(|line| line.contains(tap.as_str())).unwrap();
        assert!(link.contains("master wrbr0") && link.contains(",UP"), "{link}");
    }

    // A VM is given one; before that, nothing passes on it.
    let tap = lab.take_tap();
    assert!(ready.contains(&tap), "{tap} of {ready:?}");
    let guest = Guarded { tap: tap.clone(), ..guarded(0) };
    let learnt = || inside.sh("bridge fdb show br wrbr0").contains(&guest.mac);
    let mut opened = std::fs::File::from(lab.open_tap(&tap).unwrap());
    until("the port is on", || inside.sh(&format!("bridge link show dev {tap}")).contains("forwarding"));
    opened.write_all(&arp(&guest)).unwrap();
    assert!(!learnt(), "it is guarded");
    lab.ensure_tap(&guest).unwrap();
    until("the VM is let through", || {
        opened.write_all(&arp(&guest)).unwrap();
        learnt()
    });
    until("the pool is full again", || lab.pool().ready == 3);
    assert!(lab.open_tap(&tap).is_err(), "one VMM has it");

    // Another is taken by an agent that dies before it has noted whose it is: it was nobody's, and is the pool's again.
    let lost = lab.take_tap();
    until("the pool is full again", || lab.pool().ready == 3);
    drop(lab);
    let lab = agent(4, &[&tap]);
    assert_eq!((there(&lab).len(), strays(&lab)), (5, vec![]));
    let taken: Vec<_> = (0..4).map(|_| lab.take_tap()).collect();
    assert!(taken.contains(&lost) && !taken.contains(&tap), "{taken:?}");
    drop(lab);

    // A tap that was a VM's is nobody's where its handles are lost. An older agent's, and what is not Warren's, are no pool's.
    inside.sh("ip tuntap add wt0badcafe mode tap; ip tuntap add other0 mode tap");
    let lab = agent(2, &[]);
    let mut found = strays(&lab);
    found.sort();
    assert_eq!(found, ["wt0badcafe", &tap]);
    assert!(
        lab.taps().unwrap().iter().any(|found| found.name == tap && found.is_of(guest.vm)),
        "whose it was is known"
    );
    lab.remove_tap("wt0badcafe").unwrap();
    until("there are not more than there should be", || there(&lab).len() == 3);

    // The VM goes: its tap is not there for the next one.
    lab.claim_tap(&tap);
    lab.remove_guest(&guest).unwrap();
    assert!(lab.knows(&tap) || !there(&lab).contains(&tap), "it is on its way, which is no leak");
    opened.write_all(&arp(&guest)).unwrap_or_default();
    until("the tap goes", || !there(&lab).contains(&tap));
    drop((opened, lab));
    let lab = agent(0, &[]);
    until("a pool that is off holds nothing", || there(&lab).is_empty());
    let tap = lab.take_tap();
    lab.ensure_tap(&Guarded { tap: tap.clone(), ..guarded(1) }).unwrap();
    assert_eq!(there(&lab), [tap.as_str()]);
    lab.remove_tap(&tap).unwrap();
    let left = inside.sh("nft list table bridge warren; ip -o link");
    assert!(left.contains("other0") && !left.contains("wtp"), "{left}");
    machine.run(move || lab.remove().map(|()| lab)).map(|lab| assert!(!lab.namespace().exists())).unwrap();
}

/// Waits for something that happens in the background.
fn until(what: &str, mut so: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(10);
    while !so() {
        assert!(Instant::now() < give_up, "{what}");
        std::thread::sleep(Duration::from_millis(5));
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
