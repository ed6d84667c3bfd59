//! The lab's network on this host: a network namespace `warren-<host>` with one bridge, the VMs' taps and, when there is
//! an uplink, a veth pair to the machine's network.
//!
//! The machine's own interfaces, rules and routes stay as they are; removing the lab is removing the namespace. It
//! survives the agent, because VMs do.

mod firewall;
mod guard;
pub mod namespace;
mod tap;
mod traffic;
mod uplink;

use std::{io, net::Ipv4Addr, os::fd::OwnedFd};

use contract::HostId;
use futures::TryStreamExt;
use ipnet::Ipv4Net;
use nix::sys::socket::SockType;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, new_connection, packet_route::link::LinkAttribute};
use tokio::net::TcpSocket;

pub use guard::Guarded;

use crate::config::Uplink;
use namespace::Namespace;

/// The bridge inside the namespace.
const BRIDGE: &str = "wrbr0";
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
    /// `nft` refused the rules.
    #[error("the firewall rules were refused: {0}")]
    Firewall(String),
}

pub(crate) fn system<E: Into<std::io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> NetError {
    let what = what.into();
    move |error| NetError::System { what, source: error.into() }
}

fn netlink(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetError {
    let what = what.into();
    move |source| NetError::Netlink { what, source }
}

/// The lab's network on this host.
#[derive(Clone, Debug)]
pub struct Lab {
    namespace: Namespace,
    host: HostId,
    uplink: Uplink,
}

impl Lab {
    /// The network of that host; nothing is made yet.
    pub fn new(host: &HostId, uplink: Uplink) -> Self {
        Self { namespace: Namespace::of(host), host: host.clone(), uplink }
    }

    /// The namespace VMMs run in.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Makes what is missing: namespace, bridge with the gateway's address, rules, uplink; `guests` may speak on
    /// their taps. Blocking.
    ///
    /// # Errors
    /// The kernel or `nft` refused; what was made stays and is found by the next attempt.
    pub fn ensure(&self, gateway: Ipv4Addr, subnet: Ipv4Net, guests: &[Guarded]) -> Result<(), NetError> {
        let rules = firewall::lab_rules(BRIDGE) + &guard::rules(guests);
        self.namespace.ensure()?;
        self.namespace.run(move || async move {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").map_err(system("forwarding cannot be switched on"))?;
            let handle = connect()?;
            up(&handle, index(&handle, "lo").await?).await?;
            let bridge = ensure_bridge(&handle).await?;
            handle
                .address()
                .add(bridge, gateway.into(), subnet.prefix_len())
                .replace()
                .execute()
                .await
                .map_err(netlink(format!("the bridge cannot have the address {gateway}")))?;
            up(&handle, bridge).await?;
            firewall::apply(&rules)
        })?;
        match self.uplink {
            Uplink::None => Ok(()),
            Uplink::Veth(network) => uplink::ensure(&self.namespace, &self.host, network),
        }
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

    /// Makes a VM's tap on the bridge; one that is there is taken as it is. Blocking.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn ensure_tap(&self, guest: &Guarded) -> Result<(), NetError> {
        let (guest, name) = (guest.clone(), guest.tap.clone());
        self.namespace.run(move || async move {
            guard::admit(&guest)?;
            let handle = connect()?;
            if index(&handle, &name).await.is_err() {
                tap::create(&name).map_err(system(format!("the tap {name} cannot be made")))?;
            }
            let (tap, bridge) = (index(&handle, &name).await?, index(&handle, BRIDGE).await?);
            let message = LinkUnspec::new_with_index(tap).controller(bridge).up().build();
            handle.link().set(message).execute().await.map_err(netlink(format!("{name} cannot join the bridge")))
        })
    }

    /// Attaches to a VM's tap, for its VMM. Blocking.
    ///
    /// # Errors
    /// Somebody is attached to it already, or the kernel refused.
    pub fn open_tap(&self, name: &str) -> Result<OwnedFd, NetError> {
        let name = name.to_owned();
        self.namespace.run(move || async move {
            tap::attach(&name).map(Into::into).map_err(system(format!("the tap {name} cannot be attached to")))
        })
    }

    /// Removes a VM's tap and its leave to speak; their absence, or the namespace's, is fine. Blocking.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn remove_guest(&self, guest: &Guarded) -> Result<(), NetError> {
        if !self.namespace.exists() {
            return Ok(());
        }
        let expelled = guest.clone();
        self.namespace.run(move || async move { guard::expel(&expelled) })?;
        self.remove_tap(&guest.tap)
    }

    /// Removes a tap; its absence, or the namespace's, is fine. Blocking.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn remove_tap(&self, name: &str) -> Result<(), NetError> {
        if !self.namespace.exists() {
            return Ok(());
        }
        let name = name.to_owned();
        self.namespace.run(move || async move {
            let handle = connect()?;
            let Ok(tap) = index(&handle, &name).await else { return Ok(()) };
            handle.link().del(tap).execute().await.map_err(netlink(format!("the tap {name} cannot be removed")))
        })
    }

    /// The taps of this lab that are there. Blocking.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn taps(&self) -> Result<Vec<String>, NetError> {
        if !self.namespace.exists() {
            return Ok(Vec::new());
        }
        self.namespace.run(|| async {
            let handle = connect()?;
            let mut links = handle.link().get().execute();
            let mut taps = Vec::new();
            while let Some(link) = links.try_next().await.map_err(netlink("interfaces cannot be listed"))? {
                let names = link.attributes.into_iter().filter_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) if name.starts_with(TAP_PREFIX) => Some(name),
                    _ => None,
                });
                taps.extend(names);
            }
            Ok(taps)
        })
    }

    /// Removes the namespace with all in it, and the uplink's rules. Blocking.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn remove(&self) -> Result<(), NetError> {
        uplink::remove(&self.host)?;
        self.namespace.remove()
    }
}

/// A netlink connection in the calling thread's namespace; its task ends with the thread's runtime.
fn connect() -> Result<Handle, NetError> {
    let (connection, handle, _) = new_connection().map_err(system("netlink cannot be reached"))?;
    tokio::spawn(connection);
    Ok(handle)
}

async fn index(handle: &Handle, name: &str) -> Result<u32, NetError> {
    let link = handle.link().get().match_name(name.to_owned()).execute().try_next().await;
    match link.map_err(netlink(format!("the interface {name} is not there")))? {
        Some(link) => Ok(link.header.index),
        None => Err(NetError::Firewall(format!("the interface {name} is not there"))),
    }
}

async fn up(handle: &Handle, index: u32) -> Result<(), NetError> {
    let message = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(message).execute().await.map_err(netlink("an interface cannot be switched on"))
}

async fn ensure_bridge(handle: &Handle) -> Result<u32, NetError> {
    if let Ok(bridge) = index(handle, BRIDGE).await {
        return Ok(bridge);
    }
    let message = LinkBridge::new(BRIDGE).build();
    handle.link().add(message).execute().await.map_err(netlink("the bridge cannot be made"))?;
    index(handle, BRIDGE).await
}
