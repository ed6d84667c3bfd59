//! An end's **parting** word, repeated after its end to a peer that missed it.

use std::time::Duration;

use async_nats::Subscriber;
use contract::stream::Packet;
use futures::StreamExt;
use tokio::time::timeout;

use crate::Bus;

pub(super) struct Parting {
    pub(super) bus: Bus,
    pub(super) subject: String,
    pub(super) last: Packet,
}

impl Parting {
    /// Answers each packet that shows the peer to have missed it, for a while.
    pub(super) async fn repeat(
        self,
        mut inbound: Subscriber,
        missed: impl Fn(Option<Packet>) -> bool,
        at_most: Duration,
    ) {
        let last = self.last.encode();
        let repeat = async {
            while let Some(message) = inbound.next().await {
                if !missed(Packet::decode(message.payload)) {
                    continue;
                }
                if self.bus.client.publish(self.subject.clone(), last.clone()).await.is_err() {
                    return;
                }
            }
        };
        if timeout(at_most, repeat).await.is_ok() {
            tracing::trace!("the connection ended before the parting");
        }
    }
}
