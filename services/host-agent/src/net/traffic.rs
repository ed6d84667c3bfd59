//! What went through the taps.

use std::collections::HashMap;

use contract::usage::Traffic;
use futures::TryStreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, Stats64};

use super::{Lab, NetError, TAP_PREFIX, connect, netlink};

impl Lab {
    /// The counters of every tap since it was made, by its name, as the guest sees them. Blocking.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn traffic(&self) -> Result<HashMap<String, Traffic>, NetError> {
        if !self.namespace.exists() {
            return Ok(HashMap::new());
        }
        self.namespace.run(|| async {
            let handle = connect()?;
            let mut links = handle.link().get().execute();
            let mut all = HashMap::new();
            while let Some(link) = links.try_next().await.map_err(netlink("interfaces cannot be listed"))? {
                let (mut name, mut counted) = (None, None);
                for attribute in link.attributes {
                    match attribute {
                        LinkAttribute::IfName(known) if known.starts_with(TAP_PREFIX) => name = Some(known),
                        LinkAttribute::Stats64(stats) => counted = Some(of_guest(&stats)),
                        _ => {}
                    }
                }
                all.extend(name.zip(counted));
            }
            Ok(all)
        })
    }
}

/// What a tap received its guest sent, and the reverse.
fn of_guest(tap: &Stats64) -> Traffic {
    Traffic {
        received_bytes: tap.tx_bytes,
        received_packets: tap.tx_packets,
        sent_bytes: tap.rx_bytes,
        sent_packets: tap.rx_packets,
    }
}
