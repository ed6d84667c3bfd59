//! What `doctor` says of the name server: it asks it as a VM would.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use contract::doctor::Check;
use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RecordType},
};

use super::{PORT, Shared, locked, zone::now};
use crate::net::Lab;

/// How long the server may take to say who it is.
const ANSWER: Duration = Duration::from_secs(2);
const NAME: &str = "dns";

/// Replies by their outcome, since the agent's start.
#[derive(Debug, Default)]
pub struct Tally {
    answered: AtomicU64,
    absent: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
    dropped: AtomicU64,
}

impl Tally {
    /// A reply with that code.
    pub fn answered(&self, code: ResponseCode) {
        let count = match code {
            ResponseCode::NoError => &self.answered,
            ResponseCode::NXDomain => &self.absent,
            ResponseCode::Refused => &self.refused,
            _ => &self.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// A query that is none.
    pub fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// A query or connection beyond what its asker may have.
    pub fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (answered, absent) = (count(&self.answered), count(&self.absent));
        let (failed, refused, dropped) = (count(&self.failed), count(&self.refused), count(&self.dropped));
        write!(f, "{answered} answered, {absent} absent, {failed} failed, {refused} refused, {dropped} dropped")
    }
}

impl Shared {
    /// Asks the name server over its socket, and tells how fresh its names are. Blocking.
    pub fn examine(&self, lab: &Lab) -> Vec<Check> {
        let Some(gateway) = self.gateway.get() else {
            return vec![Check::warn(NAME, "names are not served yet: the host is not registered")];
        };
        let mut checks = vec![self.examine_names(lab, *gateway)];
        for (address, trouble) in
            locked(&self.troubles).iter().filter(|(address, _)| address.ip() != IpAddr::V4(*gateway))
        {
            checks.push(
                Check::fail(NAME, format!("names are not served on {address}: {trouble}"))
                    .mend("end what else listens there (`ss -lnup`), or set WARREN_DNS_ADDRESS to another address"),
            );
        }
        checks
    }

    fn examine_names(&self, lab: &Lab, gateway: Ipv4Addr) -> Check {
        let address = SocketAddr::from((gateway, PORT));
        if let Some(trouble) = locked(&self.troubles).get(&address) {
            return Check::fail(NAME, format!("names are not served on {address}: {trouble}"))
                .mend(format!("`ip netns exec {} ss -lnup` shows what else listens there", lab.namespace().name()));
        }
        let domain = self.zone().domain().to_owned();
        if let Err(error) = ask(lab, address, &domain) {
            return Check::fail(NAME, format!("the name server on {address} does not answer: {error}"))
                .mend("restart the host-agent; its log says what went wrong");
        }
        let (known, trust) = {
            let zone = self.zone();
            (zone.len(), zone.times().trust)
        };
        let age = locked(&self.confirmed).map(|began| now().saturating_sub(began));
        match age {
            Some(age) if age <= trust.max(Duration::from_secs(5)) => Check::pass(
                NAME,
                format!("{address} serves {known} names, confirmed {} s ago ({})", age.as_secs(), self.tally),
            ),
            Some(age) => Check::warn(
                NAME,
                format!("the names were confirmed last {} s ago: each is asked for, or not answered", age.as_secs()),
            )
            .mend("is vm-lifecycle running, and NATS reached?"),
            None => Check::warn(NAME, "the lab's names were not told yet: each is asked for, or not answered")
                .mend("is vm-lifecycle running, of this version, and NATS reached?"),
        }
    }
}

/// Asks for the domain's SOA.
fn ask(lab: &Lab, server: SocketAddr, domain: &str) -> io::Result<()> {
    let mut query = Message::query();
    let name = Name::from_ascii(format!("{domain}.")).map_err(io::Error::other)?;
    query.add_query(Query::query(name, RecordType::SOA));
    let socket = lab.udp_socket()?;
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(ANSWER))?;
    socket.connect(server)?;
    socket.send(&query.to_vec().map_err(io::Error::other)?)?;
    let mut buffer = [0; 1500];
    let length = socket.recv(&mut buffer)?;
    let reply = Message::from_vec(&buffer[..length]).map_err(io::Error::other)?;
    if reply.metadata.id != query.metadata.id || reply.answers.is_empty() {
        return Err(io::Error::other(format!("it says {}", reply.metadata.response_code)));
    }
    Ok(())
}
