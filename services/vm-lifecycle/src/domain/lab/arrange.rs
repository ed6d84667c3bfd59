//! Which hosts a lab's VMs go to: each placed beside those placed before it. Pure: the reservation decides whether there is
//! room when it counts.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use contract::{ApiError, ErrorCode, HostId, KernelName, VmName, feature::Protocol};

use crate::domain::placement::{Candidate, Needs, Question, place};

/// A VM that wants a host.
#[derive(Clone, Debug)]
pub struct Want {
    /// Its name, for messages.
    pub name: VmName,
    /// What it needs.
    pub needs: Needs,
    /// Its image's name, for messages.
    pub image: String,
    /// The hosts that hold its image.
    pub holders: Vec<HostId>,
    /// The kernel it asks for by name.
    pub kernel: Option<KernelName>,
    /// The host it has to be on.
    pub wanted: Option<HostId>,
    /// The ports of its host that are to lead to it.
    pub ports: Vec<(Protocol, u16)>,
}

/// The hosts as they are, with how many addresses each has left.
#[derive(Clone, Debug, Default)]
pub struct Board {
    /// The hosts.
    pub hosts: Vec<Candidate>,
    /// Their free and rested addresses.
    pub addresses: BTreeMap<HostId, u32>,
}

/// A host for each VM, in their order. Those that have no choice are placed first, then the larger before the smaller, so that the
/// small ones fill what is left.
///
/// # Errors
/// That of the first VM without a host, which is named.
pub fn arrange(mut board: Board, wants: &[Want]) -> Result<Vec<HostId>, ApiError> {
    let mut order: Vec<usize> = (0..wants.len()).collect();
    order.sort_by_key(|&n| (wants[n].wanted.is_none(), Reverse((wants[n].needs.memory, wants[n].needs.cpus)), n));
    let mut ports: BTreeMap<HostId, BTreeSet<(Protocol, u16)>> = BTreeMap::new();
    let mut found: BTreeMap<usize, HostId> = BTreeMap::new();
    for n in order {
        let want = &wants[n];
        let clash =
            |(_, taken): &(&HostId, &BTreeSet<(Protocol, u16)>)| want.ports.iter().any(|port| taken.contains(port));
        let filled: BTreeSet<HostId> = ports.iter().filter(clash).map(|(host, _)| host.clone()).collect();
        let question = Question {
            needs: want.needs,
            image: &want.image,
            holders: &want.holders,
            kernel: want.kernel.as_ref(),
            wanted: want.wanted.as_ref(),
            filled: &filled,
        };
        let host = place(&board.hosts, &question).cloned().map_err(|error| refused(want, &filled, error))?;
        ports.entry(host.clone()).or_default().extend(&want.ports);
        take(&mut board, &host, want.needs);
        found.insert(n, host);
    }
    Ok(found.into_values().collect())
}

fn refused(want: &Want, filled: &BTreeSet<HostId>, mut error: ApiError) -> ApiError {
    error.message = format!("VM {}: {}", want.name, error.message);
    if error.code == ErrorCode::ResourceExhausted && !filled.is_empty() {
        let ports: Vec<_> = want.ports.iter().map(|(protocol, port)| format!("{port}/{}", protocol.as_str())).collect();
        let hosts: Vec<_> = filled.iter().map(HostId::as_str).collect();
        let more =
            format!("on {} other VMs of the lab publish one of its ports {}", hosts.join(", "), ports.join(", "));
        error.message = format!("{} ({more})", error.message);
    }
    error
}

fn take(board: &mut Board, host: &HostId, needs: Needs) {
    let left = board.addresses.entry(host.clone()).or_default();
    *left = left.saturating_sub(1);
    let left = *left;
    for candidate in board.hosts.iter_mut().filter(|candidate| candidate.id == *host) {
        candidate.free_cpus -= i64::from(needs.cpus);
        candidate.free_memory -= i64::from(needs.memory.0);
        candidate.free_disk -= i64::from(needs.disk.0);
        candidate.has_address = left > 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::MebiBytes;
    use proptest::prelude::*;

    fn board(hosts: &[(&str, i64, u32)]) -> Board {
        let one = |(id, memory, addresses): &(&str, i64, u32)| Candidate {
            id: id.parse().unwrap(),
            up: true,
            free_cpus: 64,
            free_memory: *memory,
            free_disk: 1 << 20,
            has_address: *addresses > 0,
            kernels: Vec::new(),
        };
        let addresses = hosts.iter().map(|(id, _, addresses)| (id.parse().unwrap(), *addresses)).collect();
        Board { hosts: hosts.iter().map(one).collect(), addresses }
    }

    fn want(name: &str, memory: u32) -> Want {
        Want {
            name: name.parse().unwrap(),
            needs: Needs { cpus: 1, memory: MebiBytes(memory), disk: MebiBytes(16) },
            image: "debian".into(),
            holders: vec!["a".parse().unwrap(), "b".parse().unwrap()],
            kernel: None,
            wanted: None,
            ports: Vec::new(),
        }
    }

    fn hosts(board: Board, wants: &[Want]) -> String {
        let hosts = arrange(board, wants).unwrap();
        hosts.iter().map(HostId::as_str).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_is_placed_beside_those_before_it() {
        let both = [("a", 1000, 9), ("b", 900, 9)];
        assert_eq!(hosts(board(&both), &[want("x", 500), want("y", 500), want("z", 400)]), "a b a");
        // The large one is placed first although it comes last, else it would not fit.
        assert_eq!(hosts(board(&both), &[want("x", 100), want("y", 900), want("z", 900)]), "a a b");
        // The one that has to be on a comes first of all.
        let pinned = Want { wanted: Some("a".parse().unwrap()), ..want("y", 600) };
        assert_eq!(hosts(board(&both), &[want("x", 900), pinned]), "b a");
        // Addresses count too, and a port leads to one VM of a host.
        assert_eq!(
            hosts(board(&[("a", 1000, 1), ("b", 500, 2)]), &[want("x", 100), want("y", 100), want("z", 100)]),
            "a b b"
        );
        let web = Want { ports: vec![(Protocol::Tcp, 80)], ..want("x", 100) };
        assert_eq!(hosts(board(&[("a", 1000, 9), ("b", 200, 9)]), &[web.clone(), web.clone()]), "a b");
        let error = arrange(board(&both), &[web.clone(), web.clone(), web]).unwrap_err();
        assert!(
            error.message.contains("VM x: ") && error.message.contains("publish one of its ports 80/tcp"),
            "{error}"
        );
        let error = arrange(board(&both), &[want("x", 900), want("y", 900), want("z", 900)]).unwrap_err();
        assert!(error.message.starts_with("VM z: no host has room"), "{error}");
    }

    proptest! {
        /// Whatever is arranged fits: no host gives more memory or addresses than it has.
        #[test]
        fn nothing_is_given_twice(memory in prop::collection::vec(1u32..600, 1..12), room in 0i64..2000, addresses in 0u32..6) {
            let wants: Vec<Want> = memory.iter().map(|memory| want("x", *memory)).collect();
            let start = board(&[("a", room, addresses), ("b", 700, 3)]);
            if let Ok(hosts) = arrange(start.clone(), &wants) {
                prop_assert_eq!(hosts.len(), wants.len());
                for host in &start.hosts {
                    let mine = || wants.iter().zip(&hosts).filter(|(_, at)| **at == host.id);
                    prop_assert!(mine().map(|(want, _)| i64::from(want.needs.memory.0)).sum::<i64>() <= host.free_memory);
                    prop_assert!(mine().count() <= start.addresses[&host.id] as usize);
                }
            }
        }
    }
}
