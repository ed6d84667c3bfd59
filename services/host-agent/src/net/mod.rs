//! The lab's network on this host: a network namespace `warren-<host>` with one bridge, the VMs' taps and, when there is
//! an uplink, a veth pair to the machine's network. All of it is made by netlink.
//!
//! The machine's own interfaces, rules and routes stay as they are; removing the lab is removing the namespace. It
//! survives the agent, because VMs do.

mod firewall;
mod guard;
mod links;
pub mod namespace;
mod nft;
mod pool;
mod tap;
mod traffic;
mod uplink;
mod worker;

use std::{
    collections::{HashMap, HashSet},
    io,
    net::Ipv4Addr,
    os::fd::OwnedFd,
    sync::Arc,
};

use contract::{HostId, VmId};
use ipnet::Ipv4Net;
use nix::sys::socket::SockType;
use tokio::net::TcpSocket;

pub use guard::Guarded;
pub use pool::{LARGEST as LARGEST_POOL, PoolState};

use crate::{config::Uplink, files::chain};
use links::BRIDGE;
use namespace::Namespace;
use pool::{Chore, Pool};
use worker::{Inside, Worker};

/// What every tap's name begins with.
const TAP_PREFIX: &str = "wt";

/// Why the network is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A system call failed.
    #[error("{what}")]
    System {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The kernel refused a netlink request.
    #[error("{what}")]
    Netlink {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: rtnetlink::Error,
    },
    /// The kernel refused a change of the rules.
    #[error("the kernel refused {what}{}", if why.is_empty() { String::new() } else { format!(" ({why})") })]
    Refused {
        /// What was to be changed.
        what: String,
        /// The kernel's words, where it has some.
        why: String,
        /// Why it was refused.
        source: std::io::Error,
    },
    /// Something is not as it has to be.
    #[error("{0}")]
    Unfit(String),
}

pub(crate) fn system<E: Into<std::io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> NetError {
    let what = what.into();
    move |error| NetError::System { what, source: error.into() }
}

/// The lab's network on this host.
#[derive(Clone, Debug)]
pub struct Lab {
    namespace: Namespace,
    host: HostId,
    uplink: Uplink,
    pool: Arc<Pool>,
    /// Does what somebody waits for.
    worker: Arc<Worker>,
    /// Does what nobody waits for: to remove a tap takes the kernel long.
    background: Arc<Worker>,
}

impl Lab {
    /// The network of that host; nothing is made yet. It has no ready taps.
    pub fn new(host: &HostId, uplink: Uplink) -> Self {
        Self::with_pool(host, uplink, 0)
    }

    /// The network of that host, which keeps so many taps ready once it is made.
    pub fn with_pool(host: &HostId, uplink: Uplink, taps: u16) -> Self {
        let namespace = Namespace::of(host);
        let (worker, background) = (Arc::new(Worker::new(&namespace)), Arc::new(Worker::new(&namespace)));
        Self { namespace, host: host.clone(), uplink, pool: Arc::new(Pool::new(taps)), worker, background }
    }

    /// The namespace VMMs run in.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Makes what is missing: namespace, bridge with the gateway's address, rules, uplink; `guests` may speak on
    /// their taps. What an earlier agent's pool held is this one's. Blocking.
    ///
    /// # Errors
    /// The kernel refused; what was made stays and is found by the next attempt.
    pub fn ensure(&self, gateway: Ipv4Addr, subnet: Ipv4Net, guests: &[Guarded]) -> Result<(), NetError> {
        self.namespace.ensure()?;
        let (guests, pool) = (guests.to_vec(), self.pool.clone());
        self.worker.run(move |inside| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").map_err(system("forwarding cannot be switched on"))?;
            inside.links.up("lo")?;
            // The guard is there before the bridge forwards anything.
            rules(inside, &guests)?;
            inside.links.ensure_bridge()?;
            inside.links.address(BRIDGE, gateway, subnet.prefix_len())?;
            inside.links.up(BRIDGE)?;
            let taken: HashSet<String> = guard::taken(&mut inside.nft)?.into_keys().collect();
            let ready = pool.open(&inside.links.taps()?, &taken);
            ready.iter().try_for_each(|tap| inside.links.ensure_tap(tap))
        })?;
        if let Uplink::Veth(network) = self.uplink {
            uplink::ensure(&self.namespace, &self.worker, &self.host, network)?;
        }
        self.tend();
        Ok(())
    }

    /// A TCP socket in the lab's namespace, not connected yet. Blocking for a moment.
    ///
    /// # Errors
    /// The namespace is not there, or no descriptors are left.
    pub fn tcp_socket(&self) -> io::Result<TcpSocket> {
        let stream = self.namespace.socket(SockType::Stream)?;
        Ok(TcpSocket::from_std_stream(std::net::TcpStream::from(stream)))
    }

    /// A UDP socket in the lab's namespace, not bound yet. Blocking for a moment.
    ///
    /// # Errors
    /// The namespace is not there, or no descriptors are left.
    pub fn udp_socket(&self) -> io::Result<std::net::UdpSocket> {
        self.namespace.socket(SockType::Datagram).map(Into::into)
    }

    /// The name of a tap for a new VM, which is its from now on: a ready one's, or that of one still to be made.
    pub fn take_tap(&self) -> String {
        let tap = self.pool.take();
        self.tend();
        tap
    }

    /// Notes that a VM that is here has this tap, so that nobody takes it for a leak or for the pool's.
    pub fn claim_tap(&self, tap: &str) {
        self.pool.claim(tap);
    }

    /// Lets a VM speak on its tap, and makes that where it is missing. Blocking.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn ensure_tap(&self, guest: &Guarded) -> Result<(), NetError> {
        let (guest, fresh) = (guest.clone(), self.pool.fresh(&guest.tap));
        self.worker.run(move |inside| {
            guard::admit(&mut inside.nft, std::slice::from_ref(&guest))?;
            if fresh { Ok(()) } else { inside.links.ensure_tap(&guest.tap) }
        })
    }

    /// Attaches to a VM's tap, for its VMM. Blocking.
    ///
    /// # Errors
    /// Somebody is attached to it already, or the kernel refused.
    pub fn open_tap(&self, name: &str) -> Result<OwnedFd, NetError> {
        let name = name.to_owned();
        self.worker.run(move |_| {
            tap::attach(&name).map(Into::into).map_err(system(format!("the tap {name} cannot be attached to")))
        })
    }

    /// Takes a VM's leave to speak; its tap goes in the background. Their absence, or the namespace's, is fine. Blocking.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn remove_guest(&self, guest: &Guarded) -> Result<(), NetError> {
        if !self.namespace.exists() {
            self.pool.removed(&guest.tap);
            return Ok(());
        }
        let expelled = guest.clone();
        self.worker.run(move |inside| guard::expel(&mut inside.nft, &expelled))?;
        self.pool.condemn(&guest.tap);
        self.tend();
        Ok(())
    }

    /// Removes the taps of a VM whose handles are not known; their absence, or the namespace's, is fine. Blocking.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn remove_taps_of(&self, vm: VmId) -> Result<(), NetError> {
        let taps = self.taps()?;
        taps.iter().filter(|tap| tap.is_of(vm)).try_for_each(|tap| self.remove_tap(&tap.name))
    }

    /// Removes a tap that is nobody's and all that names it; its absence, or the namespace's, is fine. Blocking.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn remove_tap(&self, name: &str) -> Result<(), NetError> {
        if !self.namespace.exists() {
            return Ok(());
        }
        let name = name.to_owned();
        self.worker.run(move |inside| {
            inside.links.remove(&name)?;
            guard::purge(&mut inside.nft, &name)
        })
    }

    /// The taps of this lab that are there. Blocking.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn taps(&self) -> Result<Vec<Tap>, NetError> {
        if !self.namespace.exists() {
            return Ok(Vec::new());
        }
        self.worker.run(|inside| {
            let names = inside.links.taps()?;
            let taken: HashMap<_, _> = guard::taken(&mut inside.nft)?;
            Ok(names.into_iter().map(|name| Tap { vm: taken.get(&name).copied().flatten(), name }).collect())
        })
    }

    /// Whether a tap is the pool's, or that of a VM that is here.
    pub fn knows(&self, tap: &str) -> bool {
        self.pool.knows(tap)
    }

    /// How the pool stands.
    pub fn pool(&self) -> PoolState {
        self.pool.state()
    }

    /// Lets the pool try again what it could not do.
    pub fn retry_pool(&self) {
        self.pool.forgive();
        self.tend();
    }

    /// Has done in the background what is to be done about taps.
    fn tend(&self) {
        let pool = self.pool.clone();
        let submitted = self.background.submit(Box::new(move |inside| match inside {
            Ok(inside) => tend(&pool, inside),
            Err(error) => tracing::debug!(error = chain(&error), "there is no lab whose taps could be tended"),
        }));
        if let Err(error) = submitted {
            tracing::warn!(error = chain(&error), "the taps are not tended");
        }
    }

    /// Removes the namespace with all in it, and the uplink's rules. Blocking.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn remove(&self) -> Result<(), NetError> {
        self.pool.close();
        // Who is in a namespace keeps it.
        self.background.leave();
        self.worker.leave();
        uplink::remove(&self.host)?;
        self.namespace.remove()
    }
}

/// A tap that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// Its name.
    pub name: String,
    /// The VM that has or had it.
    pub vm: Option<VmId>,
}

impl Tap {
    /// Whether it is that VM's.
    pub fn is_of(&self, vm: VmId) -> bool {
        self.vm == Some(vm) || self.name == pool::older_name(vm)
    }
}

/// Replaces the lab's rules, and lets guests through.
fn rules(inside: &mut Inside, guests: &[Guarded]) -> Result<(), NetError> {
    let mut batch = nft::Batch::new();
    firewall::lab_rules(&mut batch, BRIDGE);
    guard::rules(&mut batch);
    batch.commit(&mut inside.nft)?;
    guard::admit(&mut inside.nft, guests)
}

/// Does what is to be done about taps.
fn tend(pool: &Pool, inside: &mut Inside) {
    while let Some(chore) = pool.next() {
        match chore {
            Chore::Make(name) => {
                let made = inside.links.ensure_tap(&name).map_err(|error| chain(&error));
                if let Err(error) = &made {
                    tracing::warn!(error, "no tap can be made ready");
                }
                pool.made(&name, made);
            }
            Chore::Remove(name) => {
                // Whose it was is known until it is gone.
                let removed = inside.links.remove(&name).and_then(|_| guard::forget(&mut inside.nft, &name));
                if let Err(error) = removed {
                    tracing::warn!(tap = name, error = chain(&error), "a tap cannot be removed");
                }
                pool.removed(&name);
            }
        }
    }
}
