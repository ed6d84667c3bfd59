//! Forwarding: what is not the lab's is asked of upstream name servers, from the machine's own network, so that a lab without an
//! uplink has names, too. Which server, over what, how often and whether a reply is one to this question is the library's;
//! how long and how many at once is bounded here.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::Path,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use futures::StreamExt;
use hickory_proto::op::{DnsRequest, DnsRequestOptions, DnsResponse, Edns, Message, ResponseCode};
use hickory_resolver::{
    NameServerPool, PoolContext, TlsConfig,
    config::{ConnectionConfig, NameServerConfig, ResolverOpts},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider, xfer::DnsHandle},
    system_conf::parse_resolv_conf,
};
use tokio::{sync::Semaphore, time::timeout};

use super::message::{Code, Question, Reply};

/// How many questions are with upstream servers at once, of all VMs of this host; each is a socket.
const AT_ONCE: usize = 256;
/// How many of them are one VM's, so that few VMs whose questions nobody answers leave the others theirs.
const AT_ONCE_EACH: u32 = 16;
/// How long upstream servers get for one question; stub resolvers ask again after 5 s (resolv.conf(5)).
const ANSWER: Duration = Duration::from_millis(4500);
/// How long one attempt takes at the most: then the next server is asked.
const ATTEMPT: Duration = Duration::from_millis(2000);
/// Records of a reply that are passed on, in each section: no honest reply has more.
const RECORDS_MAX: usize = 512;
/// What upstream servers may put into one datagram, in bytes.
const PAYLOAD: u16 = 1232;
/// How often the machine's file is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// The machine's name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How large that file may be, in bytes.
const RESOLV_CONF_MAX: u64 = 64 * 1024;

/// Who is asked for what is not the lab's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// The name servers of the machine's `/etc/resolv.conf`, as they are at the time.
    Machine,
    /// Nobody.
    None,
    /// These.
    Servers(Vec<SocketAddr>),
}

impl FromStr for Upstream {
    type Err = String;
    /// Reads `none`, or addresses with or without a port, separated by commas.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::None);
        }
        let server = |part: &str| {
            let part = part.trim();
            let bare = part.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, super::PORT));
            let server = part.parse::<SocketAddr>().or(bare);
            let server =
                server.map_err(|_| format!("{part:?} is neither `none` nor an address with or without a port"))?;
            if server.port() == 0 || server.ip().is_unspecified() || server.ip().is_multicast() {
                return Err(format!("{part:?} is no server's address"));
            }
            Ok(server)
        };
        text.split(',').map(server).collect::<Result<_, _>>().map(Self::Servers)
    }
}

type Pool = NameServerPool<TokioRuntimeProvider>;

/// Asks upstream servers.
pub struct Forwarder {
    /// Where the servers stand, if they stand in a file.
    file: Option<File>,
    pool: Mutex<Option<Pool>>,
    at_once: Semaphore,
    /// Questions under way, by asker; held for map operations only.
    askers: Mutex<HashMap<IpAddr, u32>>,
}

/// An asker's question that is under way.
struct Turn<'a> {
    askers: &'a Mutex<HashMap<IpAddr, u32>>,
    asker: IpAddr,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut askers = self.askers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = askers.get_mut(&self.asker) {
            *count -= 1;
            if *count == 0 {
                askers.remove(&self.asker);
            }
        }
    }
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwarder").finish_non_exhaustive()
    }
}

struct File {
    path: &'static Path,
    looked: Mutex<Looked>,
}

#[derive(Default)]
struct Looked {
    at: Option<Instant>,
    changed: Option<SystemTime>,
}

impl Forwarder {
    /// One that asks these, if there is anybody to ask.
    pub fn new(upstream: Upstream) -> Option<Self> {
        let (file, pool) = match upstream {
            Upstream::None => return None,
            Upstream::Servers(servers) => (None, pool(servers)),
            Upstream::Machine => (Some(File { path: Path::new(RESOLV_CONF), looked: Mutex::default() }), None),
        };
        Some(Self { file, pool: Mutex::new(pool), at_once: Semaphore::new(AT_ONCE), askers: Mutex::default() })
    }

    fn turn(&self, asker: IpAddr) -> Option<Turn<'_>> {
        let mut askers = self.askers.lock().unwrap_or_else(PoisonError::into_inner);
        let count = askers.entry(asker).or_default();
        (*count < AT_ONCE_EACH).then(|| {
            *count += 1;
            Turn { askers: &self.askers, asker }
        })
    }

    /// Asks for a VM, and passes on what is said.
    pub async fn ask(&self, question: &Question, asker: IpAddr) -> Reply {
        let Some(_turn) = self.turn(asker) else { return Reply::bare(ResponseCode::ServFail) };
        // Somebody who asks for more than that at once is not helped by waiting.
        let Ok(_permit) = self.at_once.try_acquire() else { return Reply::bare(ResponseCode::ServFail) };
        let Some(pool) = self.pool().await else { return Reply::bare(ResponseCode::ServFail) };
        let mut responses = pool.send(request(question));
        match timeout(ANSWER, responses.next()).await {
            Ok(Some(Ok(response))) => passed_on(response),
            Ok(Some(Err(error))) => negative(error),
            Ok(None) | Err(_) => Reply::bare(ResponseCode::ServFail),
        }
    }

    async fn pool(&self) -> Option<Pool> {
        if let Some(file) = &self.file
            && file.is_due()
        {
            let path = file.path;
            let read = tokio::task::spawn_blocking(move || read(path)).await.ok().flatten();
            if let Some((changed, servers)) = read
                && file.is_changed(changed)
            {
                tracing::debug!(?servers, "upstream name servers");
                *self.pool.lock().unwrap_or_else(PoisonError::into_inner) = pool(servers);
            }
        }
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl File {
    fn looked(&self) -> std::sync::MutexGuard<'_, Looked> {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is time to look at it; then it is this caller who does.
    fn is_due(&self) -> bool {
        let mut looked = self.looked();
        let due = looked.at.is_none_or(|at| at.elapsed() > LOOK);
        if due {
            looked.at = Some(Instant::now());
        }
        due
    }

    fn is_changed(&self, changed: SystemTime) -> bool {
        self.looked().changed.replace(changed) != Some(changed)
    }
}

/// When the file was changed last, and the servers it names.
fn read(path: &Path) -> Option<(SystemTime, Vec<SocketAddr>)> {
    use std::io::Read;
    let file = std::fs::File::open(path).ok()?;
    let changed = file.metadata().ok()?.modified().ok()?;
    let mut text = Vec::new();
    file.take(RESOLV_CONF_MAX).read_to_end(&mut text).ok()?;
    let (config, _) = parse_resolv_conf(&text).ok()?;
    Some((changed, config.name_servers().iter().map(|server| SocketAddr::new(server.ip, super::PORT)).collect()))
}

fn pool(servers: Vec<SocketAddr>) -> Option<Pool> {
    if servers.is_empty() {
        return None;
    }
    let configs = servers.into_iter().map(|server| {
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
            connection.port = server.port();
            connection
        });
        NameServerConfig::new(server.ip(), true, connections.into())
    });
    let mut options = ResolverOpts::default();
    options.timeout = ATTEMPT;
    options.num_concurrent_reqs = 1;
    let context = PoolContext::new(options, TlsConfig::new().ok()?);
    Some(NameServerPool::from_config(configs, Arc::new(context), TokioRuntimeProvider::default()))
}

/// The question under an id of its own, with nothing of the asker's but what it is about.
fn request(question: &Question) -> DnsRequest {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = question.checks_itself();
    message.add_query(question.query().clone());
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD).set_dnssec_ok(question.wants_proofs());
    message.set_edns(edns);
    let mut options = DnsRequestOptions::default();
    options.edns_payload_len = PAYLOAD;
    DnsRequest::new(message, options)
}

fn passed_on(response: DnsResponse) -> Reply {
    let message = response.into_message();
    let mut reply = Reply {
        code: Code(message.metadata.response_code),
        authoritative: false,
        authentic: message.metadata.authentic_data,
        answers: message.answers,
        authorities: message.authorities,
        additionals: message.additionals,
    };
    for section in [&mut reply.answers, &mut reply.authorities, &mut reply.additionals] {
        section.truncate(RECORDS_MAX);
    }
    reply
}

/// What the library takes for an error may be an answer: that there is nothing, or the server's own refusal.
fn negative(error: NetError) -> Reply {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            let authorities = match (&none.authorities, none.soa) {
                (Some(all), _) => all.iter().take(RECORDS_MAX).cloned().collect(),
                (None, Some(soa)) => vec![soa.into_record_of_rdata()],
                (None, None) => vec![],
            };
            Reply { code: Code(none.response_code), authorities, ..Reply::default() }
        }
        NetError::Dns(DnsError::ResponseCode(code)) => Reply::bare(code),
        error => {
            tracing::debug!(%error, "upstream name servers do not answer");
            Reply::bare(ResponseCode::ServFail)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_addresses_with_or_without_a_port() {
        let read = |text: &str| text.parse::<Upstream>();
        let servers = |all: &[&str]| Ok(Upstream::Servers(all.iter().map(|one| one.parse().unwrap()).collect()));
        assert_eq!(read("none"), Ok(Upstream::None));
        assert_eq!(read("192.0.2.1, 192.0.2.2:5353"), servers(&["192.0.2.1:53", "192.0.2.2:5353"]));
        assert_eq!(read("2001:db8::1,[2001:db8::2]:54"), servers(&["[2001:db8::1]:53", "[2001:db8::2]:54"]));
        for wrong in ["", "None", "example.org", "192.0.2.1:0", "0.0.0.0", "192.0.2.1,", "224.0.0.251"] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_machines_servers_are_read_again_when_the_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        std::fs::write(&path, "search example\nnameserver 192.0.2.1\nnonsense\nnameserver 2001:db8::1\n").unwrap();
        let (changed, servers) = read(&path).unwrap();
        assert_eq!(servers, ["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()]);
        let file = File { path: Path::new("/"), looked: Mutex::default() };
        assert!(file.is_due() && !file.is_due());
        assert!(file.is_changed(changed) && !file.is_changed(changed));
        assert_eq!(read(&dir.path().join("missing")), None);
    }
}
