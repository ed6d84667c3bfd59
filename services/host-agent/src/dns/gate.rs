//! The gate: how much of this server one asker, and all together, may have. VMs cannot send under another's address
//! (`net/guard.rs`), so an address is an asker.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::zone::Moment;

/// How many questions of all askers are in hand at once: some kilobytes each.
const IN_HAND_MAX: u32 = 4096;
/// How many questions of one asker are in hand at once; a resolver asks a handful.
const IN_HAND_EACH: u32 = 64;
/// How many TCP connections are open at once, of all and of one asker: each is a descriptor of the agent.
const CONNECTIONS_MAX: u32 = 256;
const CONNECTIONS_EACH: u32 = 8;
/// How many questions a second one asker gets answered for long, and how many at once after a pause.
const RATE: f64 = 500.0;
const BURST: f64 = 1000.0;
/// How many askers are remembered before those that have been quiet are forgotten.
const ASKERS: usize = 1024;
/// How many are remembered at all: where anybody can send under any address, the rest waits until some are forgotten.
const ASKERS_MAX: usize = 4096;
/// How often the quiet ones are looked for at the most.
const SWEEP: Duration = Duration::from_secs(1);

/// Lets questions and connections in, or not.
#[derive(Debug, Default)]
pub struct Gate(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    questions: u32,
    connections: u32,
    askers: HashMap<IpAddr, Asker>,
    swept: Moment,
}

#[derive(Debug)]
struct Asker {
    questions: u32,
    connections: u32,
    tokens: f64,
    at: Moment,
}

impl Asker {
    fn refill(&mut self, now: Moment) {
        self.tokens = BURST.min(self.tokens + now.saturating_sub(self.at).as_secs_f64() * RATE);
        self.at = now;
    }

    fn is_quiet(&self, now: Moment) -> bool {
        let full = Duration::from_secs_f64(BURST / RATE);
        self.questions == 0 && self.connections == 0 && now.saturating_sub(self.at) > full
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Question,
    Connection,
}

/// Something that was let in, until it is dropped.
#[derive(Debug)]
pub struct Pass {
    gate: Arc<Gate>,
    asker: IpAddr,
    kind: Kind,
}

impl Gate {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a question in.
    pub fn question(self: &Arc<Self>, asker: IpAddr, now: Moment) -> Option<Pass> {
        let mut inner = self.inner();
        if inner.questions >= IN_HAND_MAX {
            return None;
        }
        let known = inner.asker(asker, now)?;
        known.refill(now);
        if known.questions >= IN_HAND_EACH || known.tokens < 1.0 {
            return None;
        }
        known.tokens -= 1.0;
        known.questions += 1;
        inner.questions += 1;
        Some(Pass { gate: self.clone(), asker, kind: Kind::Question })
    }

    /// Lets a connection in.
    pub fn connection(self: &Arc<Self>, asker: IpAddr, now: Moment) -> Option<Pass> {
        let mut inner = self.inner();
        if inner.connections >= CONNECTIONS_MAX {
            return None;
        }
        let known = inner.asker(asker, now)?;
        if known.connections >= CONNECTIONS_EACH {
            return None;
        }
        known.connections += 1;
        inner.connections += 1;
        Some(Pass { gate: self.clone(), asker, kind: Kind::Connection })
    }
}

impl Inner {
    fn asker(&mut self, asker: IpAddr, now: Moment) -> Option<&mut Asker> {
        if self.askers.len() >= ASKERS && !self.askers.contains_key(&asker) {
            if now.saturating_sub(self.swept) >= SWEEP {
                self.swept = now;
                self.askers.retain(|_, known| !known.is_quiet(now));
            }
            if self.askers.len() >= ASKERS_MAX {
                return None;
            }
        }
        Some(self.askers.entry(asker).or_insert(Asker { questions: 0, connections: 0, tokens: BURST, at: now }))
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut inner = self.gate.inner();
        // Whoever has something in hand is not forgotten.
        let Some(asker) = inner.askers.get_mut(&self.asker) else { return };
        match self.kind {
            Kind::Question => {
                asker.questions -= 1;
                inner.questions -= 1;
            }
            Kind::Connection => {
                asker.connections -= 1;
                inner.connections -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker(n: u32) -> IpAddr {
        IpAddr::V4(std::net::Ipv4Addr::from(0x0a4d_0000 + n))
    }

    #[test]
    fn one_asker_has_its_share_and_leaves_the_others_theirs() {
        let (gate, now) = (Arc::new(Gate::default()), Duration::from_secs(100));
        let held: Vec<_> = std::iter::from_fn(|| gate.question(asker(1), now)).collect();
        assert_eq!(held.len(), 64);
        assert!(gate.question(asker(2), now).is_some());
        drop(held);
        assert!(gate.question(asker(1), now).is_some());
        let open: Vec<_> = std::iter::from_fn(|| gate.connection(asker(1), now)).collect();
        assert_eq!(open.len(), 8);
        assert!(gate.connection(asker(2), now).is_some());
    }

    #[test]
    fn a_flood_is_answered_at_its_rate() {
        let gate = Arc::new(Gate::default());
        let answered = |ms| (0..5000).filter(|_| gate.question(asker(1), Duration::from_millis(ms)).is_some()).count();
        assert_eq!(answered(100_000), 1000);
        assert_eq!(answered(100_000), 0);
        assert_eq!(answered(100_100), 50);
        assert_eq!(answered(200_000), 1000, "and no more after a pause");
    }

    #[test]
    fn quiet_askers_are_forgotten_and_busy_ones_are_not() {
        let gate = Arc::new(Gate::default());
        let busy = gate.question(asker(0), Duration::from_secs(100)).unwrap();
        for n in 1..2000 {
            drop(gate.question(asker(n), Duration::from_secs(100 + 10 * u64::from(n / 1000))));
        }
        assert!(gate.inner().askers.len() < 1100);
        drop(busy);
        let inner = gate.inner();
        assert_eq!((inner.questions, inner.askers[&asker(0)].questions), (0, 0));
    }
}
