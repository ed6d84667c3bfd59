//! DNS of the lab: a name server on the bridge's address that knows every VM of the lab, whichever host it is on, and asks others
//! for the rest; and, where an operator wants it, the same zone on an address of the machine.
//!
//! | name | answer |
//! | --- | --- |
//! | `<vm>.<domain>` | A, and TXT with `id=`, `host=`, `image=` |
//! | `<vm>` | the same: a single label is never asked of others |
//! | an address of the lab, in `in-addr.arpa` | PTR |
//! | `<domain>`, each reverse zone | SOA, NS |
//! | anything else | what the upstream servers say, for VMs that may reach the internet |
//!
//! **Right from the reservation on, and never too long.** PostgreSQL decides who has a name; this host asks vm-lifecycle
//! ([`feed`]). What is not known is asked for before it is denied, so a name is there as soon as its reservation has
//! committed, whether or not its event arrived. What is known is believed for a time that is bound by how long freed addresses
//! rest ([`zone`]), so it is never wrong by the time it matters, also for a host that hears nothing any more: then the
//! answer is SERVFAIL, which resolvers ask again, and no stale address. A rename or delete is otherwise known within
//! the time of an event. A name that was asked for and was not there is denied for a second.
//!
//! **VMs are strangers.** Messages are read by a library that is made for it ([`message`]), questions and connections are
//! counted for each asker ([`gate`]), all misses together are one message on the bus ([`feed`]), and questions to others
//! are few and short ([`forward`]). VMs of the modes `isolated` and `lab` cannot send anything to the internet through
//! a question. The sockets are the agent's own loops ([`server`]) because what the library offers takes any number of
//! connections and logs a line a query.

mod answers;
mod feed;
mod forward;
mod gate;
mod message;
mod place;
pub mod probe;
mod server;
mod zone;

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use bus::Bus;
use contract::host::Registered;
use tokio::task::JoinHandle;

pub use forward::Upstream;

use crate::net::Lab;
use answers::Answers;
use feed::Feed;
use forward::Forwarder;
use gate::Gate;
use server::Place as Socket;
use zone::{Moment, Zone};

/// The port of name servers.
pub const PORT: u16 = 53;

/// How the lab's names are served.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who is asked for what is not the lab's.
    pub upstream: Upstream,
    /// An address of the machine that the lab's names are served on, too.
    pub address: Option<SocketAddr>,
}

/// What the parts of the name server, the VMs' capability and `doctor` share.
#[derive(Debug, Default)]
pub struct Shared {
    zone: Mutex<Zone>,
    /// When all names were asked for and told last.
    confirmed: Mutex<Option<Moment>>,
    /// Addresses of this host's VMs that may reach the internet.
    outward: Mutex<HashSet<Ipv4Addr>>,
    /// Where this server is not, and why.
    troubles: Mutex<HashMap<SocketAddr, String>>,
    tally: probe::Tally,
    gateway: OnceLock<Ipv4Addr>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn zone(&self) -> MutexGuard<'_, Zone> {
        locked(&self.zone)
    }

    fn confirm(&self, began: Moment) {
        *locked(&self.confirmed) = Some(began);
    }

    /// Lets the questions of the VM with that address go to others, or not.
    pub fn set_outward(&self, address: Ipv4Addr, may: bool) {
        let mut outward = locked(&self.outward);
        if may {
            outward.insert(address)
        } else {
            outward.remove(&address)
        };
    }

    fn is_outward(&self, asker: IpAddr) -> bool {
        matches!(asker, IpAddr::V4(address) if locked(&self.outward).contains(&address))
    }

    fn note(&self, address: SocketAddr, trouble: Option<String>) {
        let mut troubles = locked(&self.troubles);
        match trouble {
            Some(trouble) => troubles.insert(address, trouble),
            None => troubles.remove(&address),
        };
    }
}

/// The name server while it runs; dropping it ends it.
#[derive(Debug)]
pub struct Dns(Vec<JoinHandle<()>>);

impl Dns {
    /// Serves the lab's names on the bridge of `lab`, which is there, and on the machine's address if there is one. What cannot be bound is
    /// tried again for ever, and told to `doctor`.
    pub fn start(bus: Bus, lab: &Lab, shared: &Arc<Shared>, registered: &Registered, options: Options) -> Self {
        *shared.zone() = Zone::new(&registered.domain, registered.subnet);
        let gateway = *shared.gateway.get_or_init(|| registered.gateway);
        let (feed, asker) = Feed::new(bus, shared.clone());
        let forwarder = Forwarder::new(options.upstream);
        let answers = |forwarder| Arc::new(Answers::new(shared.clone(), asker.clone(), forwarder, gateway));
        let gate = Arc::new(Gate::default());
        let inside = Socket::Lab(lab.clone(), SocketAddr::from((gateway, PORT)));
        let mut tasks = vec![
            tokio::spawn(server::run(inside, answers(forwarder), gate, shared.clone())),
            tokio::spawn(feed.run(asker.clone())),
        ];
        if let Some(address) = options.address {
            // People have resolvers of their own for the rest, and an open one helps nobody.
            let outside = Socket::Machine(address);
            tasks.push(tokio::spawn(server::run(outside, answers(None), Arc::new(Gate::default()), shared.clone())));
        }
        Self(tasks)
    }

    /// Ends it; its ports are free afterwards.
    pub async fn stop(mut self) {
        for task in std::mem::take(&mut self.0) {
            task.abort();
            // It ends by being aborted.
            drop(task.await);
        }
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}
