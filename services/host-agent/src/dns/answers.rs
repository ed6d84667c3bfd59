//! Answers: what this server says to a question.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use contract::{VmName, dns::NamedVm};
use hickory_proto::{
    op::ResponseCode,
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, NS, PTR, SOA, TXT},
    },
};

use super::{
    Shared,
    feed::{Asker, Nobody},
    forward::Forwarder,
    message::{Code, Question, Reply},
    place::{Place, Reverse},
    zone::{self, ABSENT, Key, Known},
};

/// How long this server's own records may be kept, in seconds.
const OWN_TTL: u32 = 5;
/// What secondaries would go by, in seconds: refresh, retry, expire. There are none.
const SOA_TIMES: (i32, i32, i32) = (3600, 600, 86_400);

/// Answers the questions of one socket's askers.
#[derive(Debug)]
pub struct Answers {
    shared: Arc<Shared>,
    asker: Asker,
    forwarder: Option<Forwarder>,
    gateway: Ipv4Addr,
}

impl Answers {
    /// Answers from the zone, and from upstream where there is a forwarder.
    pub fn new(shared: Arc<Shared>, asker: Asker, forwarder: Option<Forwarder>, gateway: Ipv4Addr) -> Self {
        Self { shared, asker, forwarder, gateway }
    }

    /// Whether others can be asked for that asker.
    pub fn recursive(&self, from: IpAddr) -> bool {
        self.forwarder.is_some() && self.shared.is_outward(from)
    }

    /// The answer to a question.
    pub async fn answer(&self, question: &Question, from: IpAddr) -> Reply {
        let (place, domain) = {
            let zone = self.shared.zone();
            (Place::of(question.name(), &zone), domain(zone.domain()))
        };
        match place {
            Place::Apex => self.apex(question, &domain, &domain),
            Place::Server => own(&domain, &domain, self.of_server(question), true),
            Place::AboveServer => match "dns".parse() {
                Ok(label) => self.named(label, true, question, &domain).await,
                Err(_) => own(&domain, &domain, vec![], true),
            },
            Place::Vm(label) => self.named(label, false, question, &domain).await,
            Place::Nothing => own(&domain, &domain, vec![], false),
            Place::Bare(label) => self.bare(label, question, from).await,
            Place::Localhost => localhost(question),
            Place::Reverse { zone, at } => self.reverse(&zone, at, question, &domain).await,
            Place::Foreign => self.foreign(question, from).await,
        }
    }

    /// Who that is, and for how long that may be kept.
    async fn find(&self, key: Key) -> Result<Option<(NamedVm, Duration)>, Nobody> {
        let known = self.shared.zone().find(&key, zone::now());
        let vm = match known {
            Known::Here(vm) => Some(vm),
            Known::Absent => None,
            Known::Unsure => self.asker.ask(key).await?,
        };
        Ok(vm.map(|vm| (vm, self.shared.zone().times().ttl)))
    }

    /// A name that may be a VM's; `exists` says that it is there even if it is none.
    async fn named(&self, label: VmName, exists: bool, question: &Question, domain: &Name) -> Reply {
        match self.find(Key::Name(label)).await {
            Ok(Some((vm, ttl))) => own(domain, domain, of_vm(question, &vm, ttl), true),
            Ok(None) => own(domain, domain, vec![], exists),
            Err(Nobody) => Reply::bare(ResponseCode::ServFail),
        }
    }

    /// A single label. It is a VM or nothing: what a VM's user mistypes is nobody else's business. Only what resolvers ask about
    /// top-level domains themselves goes on. Nothing without SOA is remembered as absent (RFC 2308 §5), so that
    /// nobody takes all below such a name for absent, too.
    async fn bare(&self, label: VmName, question: &Question, from: IpAddr) -> Reply {
        if matches!(question.kind(), RecordType::NS | RecordType::SOA | RecordType::DS | RecordType::DNSKEY) {
            return self.foreign(question, from).await;
        }
        match self.find(Key::Name(label)).await {
            Ok(Some((vm, ttl))) => {
                Reply { authoritative: true, answers: of_vm(question, &vm, ttl), ..Reply::default() }
            }
            Ok(None) => Reply::bare(ResponseCode::NXDomain),
            Err(Nobody) => Reply::bare(ResponseCode::ServFail),
        }
    }

    async fn reverse(&self, zone: &Name, at: Reverse, question: &Question, domain: &Name) -> Reply {
        let address = match at {
            Reverse::Apex => return self.apex(question, zone, domain),
            Reverse::Above => return own(zone, domain, vec![], true),
            Reverse::Nothing => return own(zone, domain, vec![], false),
            Reverse::Address(address) => address,
        };
        // A zone of one address only is its own apex.
        if question.name() == zone && matches!(question.kind(), RecordType::SOA | RecordType::NS) {
            return self.apex(question, zone, domain);
        }
        let found = if address == self.gateway {
            Ok(server_name(domain).map(|name| (name, OWN_TTL)))
        } else {
            let found = self.find(Key::Address(address)).await;
            found.map(|found| found.and_then(|(vm, ttl)| Some((below(domain, vm.name.as_str())?, seconds(ttl)))))
        };
        match found {
            Ok(Some((name, ttl))) => {
                let wanted = matches!(question.kind(), RecordType::PTR | RecordType::ANY);
                let record = Record::from_rdata(question.name().clone(), ttl, RData::PTR(PTR(name)));
                own(zone, domain, if wanted { vec![record] } else { vec![] }, true)
            }
            Ok(None) => own(zone, domain, vec![], false),
            Err(Nobody) => Reply::bare(ResponseCode::ServFail),
        }
    }

    /// A zone's own records.
    fn apex(&self, question: &Question, zone: &Name, domain: &Name) -> Reply {
        let (kind, name) = (question.kind(), question.name());
        let mut answers = Vec::new();
        if matches!(kind, RecordType::SOA | RecordType::ANY) {
            answers.extend(soa(name, domain, OWN_TTL));
        }
        if matches!(kind, RecordType::NS | RecordType::ANY) {
            let server = server_name(domain);
            answers.extend(server.map(|server| Record::from_rdata(name.clone(), OWN_TTL, RData::NS(NS(server)))));
        }
        let mut reply = own(zone, domain, answers, true);
        if kind == RecordType::NS {
            let address = |name| Record::from_rdata(name, OWN_TTL, RData::A(A(self.gateway)));
            reply.additionals.extend(server_name(domain).map(address));
        }
        reply
    }

    fn of_server(&self, question: &Question) -> Vec<Record> {
        match question.kind() {
            RecordType::A | RecordType::ANY => {
                vec![Record::from_rdata(question.name().clone(), OWN_TTL, RData::A(A(self.gateway)))]
            }
            _ => vec![],
        }
    }

    /// What is not the lab's.
    async fn foreign(&self, question: &Question, from: IpAddr) -> Reply {
        let Some(forwarder) = self.forwarder.as_ref().filter(|_| self.shared.is_outward(from)) else {
            return Reply::bare(ResponseCode::Refused);
        };
        if !question.wants_recursion() {
            return Reply::bare(ResponseCode::Refused);
        }
        // Which addresses are the lab's is known with the first reply; none of them is asked of others.
        let reversed = question.name().iter().next_back().is_some_and(|label| label.eq_ignore_ascii_case(b"arpa"));
        if reversed && !self.shared.zone().is_told() {
            return Reply::bare(ResponseCode::ServFail);
        }
        forwarder.ask(question, from).await
    }
}

/// A reply about a name of a zone of this server's: with what is there, or with whose word it is that there is nothing.
fn own(zone: &Name, domain: &Name, answers: Vec<Record>, exists: bool) -> Reply {
    let code = if exists { ResponseCode::NoError } else { ResponseCode::NXDomain };
    let authorities =
        if answers.is_empty() { soa(zone, domain, seconds(ABSENT)).into_iter().collect() } else { vec![] };
    Reply { code: Code(code), authoritative: true, answers, authorities, ..Reply::default() }
}

fn of_vm(question: &Question, vm: &NamedVm, ttl: Duration) -> Vec<Record> {
    let record = |data| Record::from_rdata(question.name().clone(), seconds(ttl), data);
    let address = || record(RData::A(A(vm.address)));
    let texts = || {
        let texts = [format!("id={}", vm.id), format!("host={}", vm.host), format!("image={}", vm.image)];
        texts.into_iter().map(|text| record(RData::TXT(TXT::from_bytes(vec![text_of(&text)]))))
    };
    match question.kind() {
        RecordType::A => vec![address()],
        RecordType::TXT => texts().collect(),
        RecordType::ANY => texts().chain([address()]).collect(),
        _ => vec![],
    }
}

/// As much of a text as one string of a TXT record holds (RFC 1035 §3.3): an image's name may come from a long reference.
fn text_of(text: &str) -> &[u8] {
    &text.as_bytes()[..text.len().min(255)]
}

fn localhost(question: &Question) -> Reply {
    let record = |data| vec![Record::from_rdata(question.name().clone(), OWN_TTL, data)];
    let answers = match question.kind() {
        RecordType::A => record(RData::A(A(Ipv4Addr::LOCALHOST))),
        RecordType::AAAA => record(RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))),
        _ => vec![],
    };
    Reply { authoritative: true, answers, ..Reply::default() }
}

fn soa(zone: &Name, domain: &Name, ttl: u32) -> Option<Record> {
    let (refresh, retry, expire) = SOA_TIMES;
    let data = SOA::new(server_name(domain)?, below(domain, "hostmaster")?, 1, refresh, retry, expire, seconds(ABSENT));
    Some(Record::from_rdata(zone.clone(), ttl, RData::SOA(data)))
}

/// The domain as a name. vm-lifecycle takes only domains that are one; an empty one would be a lab without names.
fn domain(text: &str) -> Name {
    let mut name = Name::from_ascii(text).unwrap_or_default();
    name.set_fqdn(true);
    name
}

fn below(domain: &Name, label: &str) -> Option<Name> {
    domain.prepend_label(label).ok()
}

fn server_name(domain: &Name) -> Option<Name> {
    below(domain, "dns")?.prepend_label("ns").ok()
}

fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}
