//! Stories of the lab's name server: real sockets in a namespace of the test's own, two guests whose taps are played by veth
//! pairs, real NATS, and a vm-lifecycle and an upstream name server that the test plays.

mod common;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bus::{Bus, BusConfig, Service};
use common::Ns;
use contract::{
    VmId,
    dns::{ListNames, NamedVm, Names, Resolve},
    doctor::Verdict,
    event::Event,
    feature::NetworkMode,
    host::Registered,
    subject,
};
use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::TXT},
};
use host_agent::{
    config::Uplink,
    dns::{Dns, Options, Shared, Upstream},
    net::{Guarded, Lab},
};
use testkit::{Nats, wait_until};

const SERVER: &str = "10.77.0.1:53";
const BOUND: Duration = Duration::from_secs(30);
/// Longer than the server takes for anything that it answers.
const ANSWER: Duration = Duration::from_secs(8);

/// What vm-lifecycle would know.
#[derive(Default)]
struct Truth {
    vms: Mutex<BTreeMap<VmId, NamedVm>>,
    rest_ms: AtomicUsize,
    asked: AtomicUsize,
}

impl Truth {
    fn set(&self, id: VmId, name: &str, last: u8) {
        let vm = NamedVm {
            id,
            name: name.parse().unwrap(),
            address: [10, 77, 1, last].into(),
            host: "other".parse().unwrap(),
            image: "debian".into(),
        };
        self.vms.lock().unwrap().insert(id, vm);
    }

    fn told(&self, keep: impl Fn(&NamedVm) -> bool) -> Names {
        Names {
            vms: self.vms.lock().unwrap().values().filter(|vm| keep(vm)).cloned().collect(),
            more: false,
            domain: "warren".into(),
            networks: vec!["10.77.0.0/16".parse().unwrap()],
            rest_ms: u64::try_from(self.rest_ms.load(Ordering::Relaxed)).unwrap(),
        }
    }

    async fn serve(self: &Arc<Self>, bus: &Bus) -> Service {
        let service = bus.service("vm-lifecycle", "0.1.0", "a fake").await.unwrap();
        let truth = self.clone();
        service
            .serve::<ListNames, _>(move |_, _| {
                let truth = truth.clone();
                async move { Ok(truth.told(|_| true)) }
            })
            .await
            .unwrap();
        let truth = self.clone();
        service
            .serve::<Resolve, _>(move |_, request| {
                let truth = truth.clone();
                async move {
                    truth.asked.fetch_add(1, Ordering::Relaxed);
                    let has = |vm: &NamedVm| {
                        request.vms.contains(&vm.id)
                            || request.names.contains(&vm.name)
                            || request.addresses.contains(&vm.address)
                    };
                    Ok(truth.told(has))
                }
            })
            .await
            .unwrap();
        service.ready().await.unwrap();
        service
    }
}

struct Stage {
    _nats: Nats,
    bus: Bus,
    truth: Arc<Truth>,
    service: Option<Service>,
    machine: Ns,
    lab: Lab,
    guests: [Ns; 2],
    shared: Arc<Shared>,
    dns: Option<Dns>,
}

impl Stage {
    async fn new(name: &str, rest: Duration, options: Options) -> Self {
        let nats = Nats::start().await;
        let bus = Bus::connect(&BusConfig::new(nats.url(), "test")).await.unwrap();
        let truth = Arc::new(Truth::default());
        truth.rest_ms.store(usize::try_from(rest.as_millis()).unwrap(), Ordering::Relaxed);
        let service = Some(truth.serve(&bus).await);
        let host = format!("{name}-{}", std::process::id()).parse().unwrap();
        let lab = Lab::new(&host, Uplink::None);
        let (machine, guests) = (Ns::new(), [Ns::new(), Ns::new()]);
        let making = lab.clone();
        machine.run(move || making.ensure([10, 77, 0, 1].into(), "10.77.0.0/24".parse().unwrap(), &[])).unwrap();
        let inside = Ns::named(lab.namespace().name());
        for (n, guest) in guests.iter().enumerate() {
            let last = u8::try_from(n).unwrap() + 2;
            let guarded = Guarded {
                vm: VmId::new(),
                tap: format!("wtguest{last}"),
                mac: format!("02:57:0a:4d:00:0{last}"),
                address: [10, 77, 0, last].into(),
                mode: NetworkMode::Internet,
            };
            inside.link(&guarded.tap, guest, "eth0");
            let (mac, address) = (&guarded.mac, guarded.address);
            guest.sh(&format!("ip link set eth0 address {mac}; ip addr add {address}/24 dev eth0"));
            lab.ensure_tap(&guarded).unwrap();
        }
        let mut stage =
            Self { _nats: nats, bus, truth, service, machine, lab, guests, shared: Arc::default(), dns: None };
        stage.start(options);
        wait_until("the name server", BOUND, async || stage.is_well().then_some(())).await;
        stage
    }

    fn start(&mut self, options: Options) {
        let registered = Registered {
            subnet: "10.77.0.0/24".parse().unwrap(),
            gateway: [10, 77, 0, 1].into(),
            domain: "warren".into(),
            orphans: vec![],
        };
        self.dns = Some(Dns::start(self.bus.clone(), &self.lab, &self.shared, &registered, options));
    }

    fn is_well(&self) -> bool {
        self.shared.examine(&self.lab).iter().all(|check| check.verdict == Verdict::Pass)
    }

    /// Lets the lab hear of it.
    async fn tell(&self, vm: VmId, what: &str) {
        let config = async_nats_stream();
        self.bus.jetstream().get_or_create_stream(config).await.unwrap();
        let event =
            Event { id: uuid::Uuid::now_v7(), at: time::OffsetDateTime::now_utc(), data: serde_json::json!({}) };
        let payload = serde_json::to_vec(&event).unwrap();
        let sent = self.bus.jetstream().publish(subject::event("vm", vm, what), payload.into()).await.unwrap();
        sent.await.unwrap();
    }
}

fn async_nats_stream() -> async_nats::jetstream::stream::Config {
    async_nats::jetstream::stream::Config {
        name: subject::EVENT_STREAM.to_owned(),
        subjects: vec![subject::EVENT_WILDCARD.to_owned()],
        ..Default::default()
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

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn exchange(server: SocketAddr, bytes: &[u8]) -> Option<Message> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(ANSWER)).unwrap();
    socket.send_to(bytes, server).unwrap();
    let mut buffer = [0; 4096];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    assert_eq!(from, server);
    Some(Message::from_vec(&buffer[..length]).unwrap())
}

/// How often a resolver asks (resolv.conf(5), `attempts`): a flood may fill the queue that a question comes to.
const ATTEMPTS: u32 = 2;

/// Asks a name server as a VM of that namespace would.
fn ask(ns: &Ns, message: &Message) -> Message {
    let bytes = message.to_vec().unwrap();
    let server = SERVER.parse().unwrap();
    let reply = ns.run(move || (0..ATTEMPTS).find_map(|_| exchange(server, &bytes))).expect("an answer");
    assert_eq!((reply.metadata.id, reply.metadata.message_type), (message.metadata.id, MessageType::Response));
    reply
}

fn ask_by_tcp(ns: &Ns, messages: &[Message]) -> Vec<Message> {
    let all: Vec<_> = messages.iter().map(|message| message.to_vec().unwrap()).collect();
    ns.run(move || {
        let mut stream = TcpStream::connect(SERVER).unwrap();
        stream.set_read_timeout(Some(ANSWER)).unwrap();
        all.iter().for_each(|bytes| stream.write_all(&framed(bytes)).unwrap());
        all.iter().map(|_| Message::from_vec(&read_framed(&mut stream).unwrap()).unwrap()).collect()
    })
}

fn framed(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

fn read_framed(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The answers in words, or how it went.
fn said(ns: &Ns, name: &str, kind: RecordType) -> String {
    let reply = ask(ns, &query(name, kind));
    let data: Vec<_> = reply.answers.iter().map(|record| record.data.to_string()).collect();
    if data.is_empty() { reply.metadata.response_code.to_string() } else { data.join(" ") }
}

fn no_upstream() -> Options {
    Options { upstream: Upstream::None, address: None }
}

const NX: &str = "Non-Existent Domain";
const OK: &str = "No Error";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_has_its_name_from_the_reservation_on_and_loses_it_with_its_end() {
    if let Some(why) = common::missing() {
        println!("skipped: {why}");
        return;
    }
    let stage = Stage::new("names", Duration::from_secs(60), no_upstream()).await;
    let (guest, web) = (&stage.guests[0], VmId::new());
    assert_eq!(said(guest, "web.warren.", RecordType::A), NX);
    let denied = ask(guest, &query("web.warren.", RecordType::A));
    let soa = &denied.authorities[0];
    assert_eq!((soa.name.to_ascii(), soa.ttl, soa.record_type()), ("warren.".to_owned(), 1, RecordType::SOA));

    // Reserved: no event tells of it, and it is there as soon as its denial is a second old.
    stage.truth.set(web, "web", 9);
    wait_until("the name", Duration::from_secs(3), async || {
        (said(guest, "web.warren.", RecordType::A) == "10.77.1.9").then_some(())
    })
    .await;
    // One that nobody asked for before is there at once.
    stage.truth.set(VmId::new(), "db", 8);
    assert_eq!(said(guest, "db.warren.", RecordType::A), "10.77.1.8");
    let reply = ask(guest, &query("WEB.Warren.", RecordType::A));
    assert!(reply.metadata.authoritative && !reply.metadata.recursion_available, "{:?}", reply.metadata);
    assert_eq!((reply.answers[0].name.to_ascii(), reply.answers[0].ttl), ("WEB.Warren.".to_owned(), 5));
    for (name, kind, expected) in [
        ("web.", RecordType::A, "10.77.1.9"),
        ("9.1.77.10.in-addr.arpa.", RecordType::PTR, "web.warren."),
        ("1.0.77.10.in-addr.arpa.", RecordType::PTR, "ns.dns.warren."),
        ("ns.dns.warren.", RecordType::A, "10.77.0.1"),
        ("warren.", RecordType::NS, "ns.dns.warren."),
        ("77.10.in-addr.arpa.", RecordType::NS, "ns.dns.warren."),
        ("web.warren.", RecordType::AAAA, OK),
        ("web.", RecordType::AAAA, OK),
        ("dns.warren.", RecordType::A, OK),
        ("warren.", RecordType::A, OK),
        ("localhost.", RecordType::A, "127.0.0.1"),
        ("nobody.", RecordType::A, NX),
        ("a.web.warren.", RecordType::A, NX),
        ("7.1.77.10.in-addr.arpa.", RecordType::PTR, NX),
        ("example.org.", RecordType::A, "Query Refused"),
    ] {
        assert_eq!(said(guest, name, kind), expected, "{name} {kind}");
    }
    let text = said(guest, "web.warren.", RecordType::TXT);
    assert!(
        text.contains(&format!("id={web}")) && text.contains("host=other") && text.contains("image=debian"),
        "{text}"
    );

    // Renamed, and then gone: an event is enough.
    stage.truth.set(web, "shop", 9);
    stage.tell(web, "changed").await;
    wait_until("the old name's end", BOUND, async || (said(guest, "web.warren.", RecordType::A) == NX).then_some(()))
        .await;
    assert_eq!(said(guest, "shop.warren.", RecordType::A), "10.77.1.9");
    assert_eq!(said(guest, "9.1.77.10.in-addr.arpa.", RecordType::PTR), "shop.warren.");
    stage.truth.vms.lock().unwrap().remove(&web);
    stage.tell(web, "deleted").await;
    wait_until("the end", BOUND, async || (said(guest, "shop.warren.", RecordType::A) == NX).then_some(())).await;
    assert_eq!(said(guest, "9.1.77.10.in-addr.arpa.", RecordType::PTR), NX);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_hears_nothing_says_so_before_it_says_what_is_no_longer_true() {
    if let Some(why) = common::missing() {
        println!("skipped: {why}");
        return;
    }
    let rest = Duration::from_secs(4);
    let mut stage = Stage::new("quiet", rest, no_upstream()).await;
    let web = VmId::new();
    stage.truth.set(web, "web", 9);
    assert_eq!(said(&stage.guests[0], "web.warren.", RecordType::A), "10.77.1.9");

    stage.service.take().unwrap().stop(Duration::from_secs(1)).await;
    // Its address may be another's once it has rested; by then it is told no more, for longer than it may be kept.
    let silent_since = std::time::Instant::now();
    let mut last_told = Duration::ZERO;
    wait_until("silence", BOUND, async || {
        let reply = ask(&stage.guests[0], &query("web.warren.", RecordType::A));
        if let Some(answer) = reply.answers.first() {
            last_told = silent_since.elapsed() + Duration::from_secs(answer.ttl.into());
            return None;
        }
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail, "not that it does not exist");
        Some(())
    })
    .await;
    assert!(last_told <= rest, "it was told until {last_told:?}");
    assert_eq!(said(&stage.guests[0], "7.1.77.10.in-addr.arpa.", RecordType::PTR), "Server Failure");
    assert_eq!(said(&stage.guests[0], "ns.dns.warren.", RecordType::A), "10.77.0.1", "what is its own it knows");

    stage.truth.set(web, "web", 7);
    stage.service = Some(stage.truth.serve(&stage.bus).await);
    wait_until("the name at its new address", BOUND, async || {
        (said(&stage.guests[0], "web.warren.", RecordType::A) == "10.77.1.7").then_some(())
    })
    .await;
    wait_until("a well name server", BOUND, async || stage.is_well().then_some(())).await;
}

/// An upstream name server: knows long texts, is silent where asked to be, and notes what it is asked.
struct Upper {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Upper {
    fn start() -> Self {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = udp.local_addr().unwrap();
        let tcp = TcpListener::bind(address).unwrap();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let noted = asked.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                let Some(mut reply) = reply(&buffer[..length], &noted) else { continue };
                if reply.to_vec().unwrap().len() > 1232 {
                    reply = reply.truncate();
                }
                udp.send_to(&reply.to_vec().unwrap(), from).unwrap();
            }
        });
        let noted = asked.clone();
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.unwrap();
                while let Ok(bytes) = read_framed(&mut stream) {
                    let Some(reply) = reply(&bytes, &noted) else { break };
                    stream.write_all(&framed(&reply.to_vec().unwrap())).unwrap();
                }
            }
        });
        Self { address, asked }
    }
}

fn reply(bytes: &[u8], noted: &Mutex<Vec<String>>) -> Option<Message> {
    let query = Message::from_vec(bytes).unwrap();
    let name = query.queries[0].name().to_ascii();
    noted.lock().unwrap().push(name.clone());
    let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata = Metadata::response_from_request(&query.metadata);
    reply.metadata.recursion_available = true;
    reply.queries.clone_from(&query.queries);
    let texts = match name.as_str() {
        "silent.example." => return None,
        "long.example." => vec!["x".repeat(250); 20],
        "absent.example." => {
            reply.metadata.response_code = ResponseCode::NXDomain;
            return Some(reply);
        }
        _ => vec!["hello".to_owned()],
    };
    reply.add_answer(Record::from_rdata(query.queries[0].name().clone(), 77, RData::TXT(TXT::new(texts))));
    Some(reply)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_the_labs_is_asked_of_others_for_vms_that_may_reach_them() {
    if let Some(why) = common::missing() {
        println!("skipped: {why}");
        return;
    }
    let upper = Upper::start();
    let upstream = Upstream::Servers(vec![upper.address]);
    let stage = Stage::new("forward", Duration::from_secs(60), Options { upstream, address: None }).await;
    let [outward, inward] = &stage.guests;
    stage.shared.set_outward([10, 77, 0, 2].into(), true);
    assert_eq!(said(outward, "some.example.", RecordType::TXT), "hello");
    let reply = ask(outward, &query("some.example.", RecordType::TXT));
    assert!(reply.metadata.recursion_available && !reply.metadata.authoritative, "{:?}", reply.metadata);
    assert_eq!(reply.answers[0].ttl, 77);
    assert_eq!(said(inward, "some.example.", RecordType::TXT), "Query Refused", "no way out by questions");
    assert_eq!(said(outward, "absent.example.", RecordType::TXT), NX);
    assert_eq!(said(outward, "silent.example.", RecordType::TXT), "Server Failure");

    // Too long for a datagram: it is said so, and by TCP it is whole.
    let reply = ask(outward, &query("long.example.", RecordType::TXT));
    assert!(reply.metadata.truncation && reply.answers.is_empty());
    let mut with_edns = query("long.example.", RecordType::TXT);
    with_edns.set_edns(Edns::new());
    assert!(ask(outward, &with_edns).edns.is_some());
    let replies = ask_by_tcp(outward, &[query("long.example.", RecordType::TXT), query("web.warren.", RecordType::A)]);
    assert!(replies[0].answers[0].data.to_string().len() >= 5000 && !replies[0].metadata.truncation);
    assert_eq!(replies[1].metadata.response_code, ResponseCode::NXDomain, "the connection goes on");

    // Nobody else hears of the lab's names, whoever mistypes them.
    for name in ["web.warren.", "a.b.warren.", "wbe.", "9.1.77.10.in-addr.arpa.", "x.77.10.in-addr.arpa.", "localhost."]
    {
        said(outward, name, RecordType::TXT);
    }
    let asked = upper.asked.lock().unwrap().clone();
    assert!(asked.iter().all(|name| name.ends_with("example.")), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_vm_gets_its_share_and_the_others_get_theirs() {
    if let Some(why) = common::missing() {
        println!("skipped: {why}");
        return;
    }
    let mut stage = Stage::new("hostile", Duration::from_secs(60), no_upstream()).await;
    stage.truth.set(VmId::new(), "web", 9);
    let [hostile, good] = &stage.guests;
    hostile.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(SERVER).unwrap();
        let mut seed = 7u32;
        let mut random = move || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            u8::try_from(seed >> 24).unwrap()
        };
        // Noise of every length, names that point at themselves, labels without an end, and names that nobody has.
        for n in 0..3000 {
            let bytes: Vec<u8> = match n % 4 {
                0 => (0..n % 700).map(|_| random()).collect(),
                1 => [&[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &[0xc0, 12, 0, 1, 0, 1]].concat(),
                2 => [&[0, 1, 1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0][..], &vec![63; 900]].concat(),
                _ => query(&format!("n{n}.warren."), RecordType::A).to_vec().unwrap(),
            };
            // A full queue is one more way to be refused.
            drop(socket.send(&bytes));
        }
    });
    assert_eq!(said(good, "web.warren.", RecordType::A), "10.77.1.9");
    // The same name that nobody has, over and over, costs a question a second.
    let before = stage.truth.asked.load(Ordering::Relaxed);
    for _ in 0..300 {
        assert_eq!(said(good, "nobody.warren.", RecordType::A), NX);
    }
    let asked = stage.truth.asked.load(Ordering::Relaxed) - before;
    assert!(asked < 30, "300 misses were {asked} questions to vm-lifecycle");
    // Connections that say nothing: some are held, the others closed, and others' are taken.
    let held = hostile.run(|| {
        let mut open: Vec<_> = (0..40).map(|_| TcpStream::connect(SERVER).unwrap()).collect();
        let until = std::time::Instant::now() + BOUND;
        // Those that are refused are closed when their turn comes.
        while open.len() > 8 && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
            open.retain(|mut stream| {
                stream.set_nonblocking(true).unwrap();
                matches!(stream.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
            });
        }
        open
    });
    assert_eq!(held.len(), 8);
    let answers = ask_by_tcp(good, &[query("web.warren.", RecordType::A)]);
    assert_eq!(answers[0].answers.len(), 1);

    // A new agent has the port at once, whatever is still connected to the last one.
    stage.dns.take().unwrap().stop().await;
    let nobody = stage.guests[1].run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(SERVER).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        drop(socket.send(&query("web.warren.", RecordType::A).to_vec().unwrap()));
        socket.recv(&mut [0; 512]).is_err()
    });
    assert!(nobody);
    stage.start(no_upstream());
    wait_until("the next name server", BOUND, async || stage.is_well().then_some(())).await;
    assert_eq!(said(&stage.guests[1], "web.warren.", RecordType::A), "10.77.1.9");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_have_the_names_on_the_machine_and_doctor_says_when_they_do_not() {
    if let Some(why) = common::missing() {
        println!("skipped: {why}");
        return;
    }
    // An address of its own, which no connection gets by chance.
    let [.., high, low] = std::process::id().to_be_bytes();
    let address = SocketAddr::from(([127, 77, high, low], 5353));
    let taken = UdpSocket::bind(address).unwrap();
    let mut stage = Stage::new("people", Duration::from_secs(60), no_upstream()).await;
    stage.truth.set(VmId::new(), "web", 9);
    stage.dns.take().unwrap().stop().await;
    stage.start(Options { upstream: Upstream::Machine, address: Some(address) });
    let trouble = wait_until("the trouble", BOUND, async || {
        let checks = stage.shared.examine(&stage.lab);
        checks.into_iter().find(|check| check.verdict == Verdict::Fail && check.message.contains(&address.to_string()))
    })
    .await;
    assert!(trouble.mend.is_some(), "{trouble:?}");
    drop(taken);
    wait_until("the port", BOUND, async || stage.is_well().then_some(())).await;
    let here = |name: &str, kind| exchange(address, &query(name, kind).to_vec().unwrap()).unwrap();
    assert_eq!(here("web.warren.", RecordType::A).answers[0].data.to_string(), "10.77.1.9");
    assert_eq!(here("9.1.77.10.in-addr.arpa.", RecordType::PTR).answers[0].data.to_string(), "web.warren.");
    // People have name servers of their own for the rest.
    assert_eq!(here("example.org.", RecordType::A).metadata.response_code, ResponseCode::Refused);
}
