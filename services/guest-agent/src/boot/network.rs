//! The VM's network interface, set through rtnetlink: loopback up, the interface with its address and default route.

use std::net::Ipv4Addr;

use contract::config_drive::Network;
use futures::TryStreamExt as _;
use rtnetlink::{
    Handle, LinkUnspec, RouteMessageBuilder, new_connection,
    packet_route::link::{LinkAttribute, LinkMessage},
};

use super::{BootError, During};

/// Sets up loopback and, where there is one, the interface with the settings' MAC address.
pub fn apply(network: Option<&Network>) -> Result<(), BootError> {
    // Without worker threads: the fork after the boot needs a single-threaded process.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().during("start the runtime")?;
    runtime.block_on(async {
        let (connection, handle, _) = new_connection().during("open rtnetlink")?;
        let connection = tokio::spawn(connection);
        let outcome = configure(&handle, network).await;
        connection.abort();
        outcome
    })
}

async fn configure(handle: &Handle, network: Option<&Network>) -> Result<(), BootError> {
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await.during("list interfaces")?;
    let loopback = links.iter().find(|link| name(link) == Some("lo")).map_or(1, |link| link.header.index);
    up(handle, loopback).await.during("bring up lo")?;
    let Some(network) = network else { return Ok(()) };
    let mac = parse_mac(&network.mac).ok_or("not a MAC address").during(format_args!("read {:?}", network.mac))?;
    let link = links
        .iter()
        .find(|link| address(link) == Some(&mac[..]))
        .ok_or("there is none")
        .during(format_args!("find the interface {}", network.mac))?;
    let index = link.header.index;
    handle
        .address()
        .add(index, network.address.addr().into(), network.address.prefix_len())
        .execute()
        .await
        .during(format_args!("set the address {}", network.address))?;
    up(handle, index).await.during("bring up the interface")?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(network.gateway).output_interface(index).build();
    handle.route().add(route).execute().await.during(format_args!("set the default route {}", network.gateway))
}

async fn up(handle: &Handle, index: u32) -> Result<(), rtnetlink::Error> {
    handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await
}

fn name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn address(link: &LinkMessage) -> Option<&[u8]> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(address) => Some(address.as_slice()),
        _ => None,
    })
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next().filter(|part| part.len() == 2)?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_are_six_pairs() {
        assert_eq!(parse_mac("52:54:00:aB:00:01"), Some([0x52, 0x54, 0, 0xab, 0, 1]));
        for wrong in ["", "52:54:00:ab:00", "52:54:00:ab:00:01:02", "52:54:00:ab:00:x1", "5254:00:ab:00:1"] {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
    }
}
