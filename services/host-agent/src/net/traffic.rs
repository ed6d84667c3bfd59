//! What went through the taps.

use std::collections::HashMap;

use contract::usage::Traffic;
use rtnetlink::packet_route::link::Stats64;

use super::{Lab, NetError};

impl Lab {
    /// The counters of every tap since it was made, by its name, as the guest sees them. Blocking.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn traffic(&self) -> Result<HashMap<String, Traffic>, NetError> {
        if !self.namespace.exists() {
            return Ok(HashMap::new());
        }
        let counted = self.worker.run(|inside| inside.links.counted())?;
        Ok(counted.into_iter().map(|(name, stats)| (name, of_guest(&stats))).collect())
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
