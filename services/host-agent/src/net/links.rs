//! Links: interfaces by rtnetlink(7), in the namespace its connection was opened in.

use std::{future::Future, net::Ipv4Addr, os::fd::AsRawFd};

use futures::TryStreamExt;
use rtnetlink::{
    Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection,
    packet_route::link::{LinkAttribute, Stats64},
};
use tokio::runtime::Runtime;

use super::{NetError, TAP_PREFIX, system, tap};

/// The bridge inside the lab's namespace.
pub(super) const BRIDGE: &str = "wrbr0";

fn netlink(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetError {
    let what = what.into();
    move |source| NetError::Netlink { what, source }
}

/// A connection to rtnetlink, with the runtime that its library asks for.
pub(super) struct Links {
    runtime: Runtime,
    handle: Handle,
    /// The bridge's index, once looked up.
    bridge: Option<u32>,
}

impl Links {
    /// Opens one in the calling thread's namespace.
    pub(super) fn open() -> Result<Self, NetError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(system("a runtime cannot be made"))?;
        let entered = runtime.enter();
        let (connection, handle, _) = new_connection().map_err(system("netlink cannot be reached"))?;
        drop(entered);
        runtime.spawn(connection);
        Ok(Self { runtime, handle, bridge: None })
    }

    /// Waits for an answer of the kernel's, which is there at once.
    fn ask<T>(
        &self,
        what: impl Into<String>,
        request: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, NetError> {
        self.runtime.block_on(request).map_err(netlink(what))
    }

    /// An interface's index; nothing where there is no such interface.
    pub(super) fn find(&self, name: &str) -> Result<Option<u32>, NetError> {
        let mut links = self.handle.link().get().match_name(name.to_owned()).execute();
        match self.runtime.block_on(links.try_next()) {
            Ok(link) => Ok(link.map(|link| link.header.index)),
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(None),
            Err(error) => Err(netlink(format!("the interface {name} cannot be looked for"))(error)),
        }
    }

    fn index(&self, name: &str) -> Result<u32, NetError> {
        self.find(name)?.ok_or_else(|| NetError::Unfit(format!("the interface {name} is not there")))
    }

    /// Switches an interface on.
    pub(super) fn up(&self, name: &str) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(self.index(name)?).up().build();
        self.ask(format!("{name} cannot be switched on"), self.handle.link().set(message).execute())
    }

    /// Gives an interface an address.
    pub(super) fn address(&self, name: &str, address: Ipv4Addr, prefix: u8) -> Result<(), NetError> {
        let request = self.handle.address().add(self.index(name)?, address.into(), prefix).replace().execute();
        self.ask(format!("{name} cannot have the address {address}"), request)
    }

    /// Sends what is for no known network to a gateway.
    pub(super) fn default_route(&self, gateway: Ipv4Addr) -> Result<(), NetError> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
        self.ask("the lab cannot have a default route", self.handle.route().add(route).replace().execute())
    }

    /// Makes the bridge where there is none.
    pub(super) fn ensure_bridge(&mut self) -> Result<(), NetError> {
        self.bridge = self.find(BRIDGE)?;
        if self.bridge.is_none() {
            let message = LinkBridge::new(BRIDGE).build();
            self.ask("the bridge cannot be made", self.handle.link().add(message).execute())?;
        }
        Ok(())
    }

    fn bridge(&mut self) -> Result<u32, NetError> {
        let index = match self.bridge {
            Some(index) => index,
            None => self.index(BRIDGE)?,
        };
        self.bridge = Some(index);
        Ok(index)
    }

    /// Makes a veth pair, and moves its other end into another namespace.
    pub(super) fn pair(&self, own: &str, other: &str, namespace: &impl AsRawFd) -> Result<(), NetError> {
        let pair = LinkVeth::new(own, other).build();
        self.ask(format!("{own} cannot be made"), self.handle.link().add(pair).execute())?;
        let moved = LinkUnspec::new_with_index(self.index(other)?).setns_by_fd(namespace.as_raw_fd()).build();
        self.ask(format!("{other} cannot enter the lab"), self.handle.link().set(moved).execute())
    }

    /// Makes a tap where there is none, on the bridge and switched on.
    pub(super) fn ensure_tap(&mut self, name: &str) -> Result<(), NetError> {
        let found = self.find(name)?;
        if found.is_none() {
            tap::create(name).map_err(system(format!("the tap {name} cannot be made")))?;
        }
        let tap = found.map_or_else(|| self.index(name), Ok)?;
        let message = LinkUnspec::new_with_index(tap).controller(self.bridge()?).up().build();
        self.ask(format!("{name} cannot join the bridge"), self.handle.link().set(message).execute())
    }

    /// Removes an interface; whether there was one.
    pub(super) fn remove(&self, name: &str) -> Result<bool, NetError> {
        let Some(index) = self.find(name)? else { return Ok(false) };
        self.ask(format!("{name} cannot be removed"), self.handle.link().del(index).execute())?;
        Ok(true)
    }

    /// The taps that are there, with all the kernel tells of each.
    fn listed(&self) -> Result<Vec<(String, Vec<LinkAttribute>)>, NetError> {
        let links = self.handle.link().get().execute().try_collect::<Vec<_>>();
        let links = self.ask("interfaces cannot be listed", links)?;
        let named = links.into_iter().filter_map(|link| {
            let name = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) if name.starts_with(TAP_PREFIX) => Some(name.clone()),
                _ => None,
            })?;
            Some((name, link.attributes))
        });
        Ok(named.collect())
    }

    /// The names of the taps that are there.
    pub(super) fn taps(&self) -> Result<Vec<String>, NetError> {
        Ok(self.listed()?.into_iter().map(|(name, _)| name).collect())
    }

    /// The counters of the taps that are there.
    pub(super) fn counted(&self) -> Result<Vec<(String, Stats64)>, NetError> {
        let counters = |attributes: Vec<LinkAttribute>| {
            attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::Stats64(stats) => Some(stats),
                _ => None,
            })
        };
        Ok(self.listed()?.into_iter().filter_map(|(name, all)| Some((name, counters(all)?))).collect())
    }
}
