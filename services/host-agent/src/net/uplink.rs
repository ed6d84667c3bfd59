//! The uplink: a veth pair between the lab's namespace and the machine's, with translation on both sides.

use std::net::Ipv4Addr;

use contract::HostId;
use ipnet::Ipv4Net;
use rtnetlink::{LinkUnspec, LinkVeth, RouteMessageBuilder};
use sha2::{Digest, Sha256};

use super::{NetError, connect, firewall, index, namespace::Namespace, netlink, system, up};

/// The machine's end: `wru` and eight digits of the host's name, as an interface name is too short for all of it.
fn interface(host: &HostId) -> String {
    format!("wru{}", &hex::encode(Sha256::digest(host.as_str()))[..8])
}

fn table(host: &HostId) -> String {
    format!("warren-{host}")
}

/// The machine's and the lab's address: the first two of the network.
fn addresses(network: Ipv4Net) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let mut hosts = network.hosts();
    Some((hosts.next()?, hosts.next()?))
}

/// Makes what is missing of the uplink.
pub(super) fn ensure(namespace: &Namespace, host: &HostId, network: Ipv4Net) -> Result<(), NetError> {
    let Some((machine, lab)) = addresses(network) else {
        return Err(NetError::Firewall(format!("WARREN_UPLINK_NETWORK {network} has no room for two addresses")));
    };
    let name = interface(host);
    let file = namespace.open().map_err(system("the lab's namespace is not there"))?;
    let (own, prefix) = (name.clone(), network.prefix_len());
    in_this_namespace(move || async move {
        let handle = connect()?;
        if index(&handle, &own).await.is_err() {
            let pair = LinkVeth::new(&own, firewall::UPLINK).build();
            handle.link().add(pair).execute().await.map_err(netlink("the uplink cannot be made"))?;
            let peer = index(&handle, firewall::UPLINK).await?;
            let moved = LinkUnspec::new_with_index(peer).setns_by_fd(std::os::fd::AsRawFd::as_raw_fd(&file)).build();
            handle.link().set(moved).execute().await.map_err(netlink("the uplink cannot enter the lab"))?;
        }
        let own = index(&handle, &own).await?;
        let address = handle.address().add(own, machine.into(), prefix).replace().execute();
        address.await.map_err(netlink("the uplink cannot have its address"))?;
        up(&handle, own).await?;
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").map_err(system("forwarding cannot be switched on"))
    })?;
    let rules = firewall::machine_rules(&table(host), &name, network);
    firewall::apply(&rules)?;
    namespace.run(move || async move {
        let handle = connect()?;
        let own = index(&handle, firewall::UPLINK).await?;
        let address = handle.address().add(own, lab.into(), prefix).replace().execute();
        address.await.map_err(netlink("the lab's end of the uplink cannot have its address"))?;
        up(&handle, own).await?;
        let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(machine).build();
        let route = handle.route().add(default).replace().execute();
        route.await.map_err(netlink("the lab cannot have a default route"))
    })
}

/// Removes the machine's end, which takes the other with it, and the rules.
pub(super) fn remove(host: &HostId) -> Result<(), NetError> {
    let name = interface(host);
    let removed = in_this_namespace(move || async move {
        let handle = connect()?;
        let Ok(own) = index(&handle, &name).await else { return Ok(false) };
        handle.link().del(own).execute().await.map_err(netlink("the uplink cannot be removed"))?;
        Ok(true)
    })?;
    if removed { firewall::apply(&firewall::removal(&table(host))) } else { Ok(()) }
}

/// Runs netlink work in a thread of the machine's own namespace, as callers may be within another runtime.
fn in_this_namespace<T, F>(work: impl FnOnce() -> F + Send + 'static) -> Result<T, NetError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, NetError>>,
{
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(system("a runtime cannot be made"))?.block_on(work())
    });
    thread.join().unwrap_or_else(|_| Err(NetError::Firewall("the network thread failed unexpectedly".to_owned())))
}
