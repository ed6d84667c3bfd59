//! **Placement**: which host a new VM goes to. Pure: the reservation decides whether there is room when it counts.

use std::collections::BTreeSet;

use contract::{ApiError, HostId, KernelName, MebiBytes};

/// What a VM needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: MebiBytes,
    /// Disk.
    pub disk: MebiBytes,
}

/// A host, as far as placement is concerned. Free amounts are negative on a host that came back smaller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The host.
    pub id: HostId,
    /// Whether it was heard of lately.
    pub up: bool,
    /// Virtual CPUs left.
    pub free_cpus: i64,
    /// Memory left, in MiB.
    pub free_memory: i64,
    /// Disk left, in MiB.
    pub free_disk: i64,
    /// Whether an address is free and rested.
    pub has_address: bool,
    /// The kernels VMs may ask for by name.
    pub kernels: Vec<KernelName>,
}

impl Candidate {
    /// Whether it has that kernel, where one is asked for by name.
    pub fn has_kernel(&self, kernel: Option<&KernelName>) -> bool {
        kernel.is_none_or(|kernel| self.kernels.contains(kernel))
    }

    /// What this host lacks for a VM, in words; empty when it has room.
    pub fn lacks(&self, needs: Needs) -> Vec<String> {
        let mut short = Vec::new();
        if self.free_cpus < i64::from(needs.cpus) {
            short.push(format!("CPUs ({} asked, {} free)", needs.cpus, self.free_cpus.max(0)));
        }
        if self.free_memory < i64::from(needs.memory.0) {
            short.push(format!("memory ({} asked, {} MiB free)", needs.memory, self.free_memory.max(0)));
        }
        if self.free_disk < i64::from(needs.disk.0) {
            short.push(format!("disk ({} asked, {} MiB free)", needs.disk, self.free_disk.max(0)));
        }
        if !self.has_address {
            short.push("addresses (none is free)".to_owned());
        }
        short
    }
}

/// What placement is asked.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// What the VM needs.
    pub needs: Needs,
    /// The image's name, for messages.
    pub image: &'a str,
    /// The hosts that hold the image.
    pub holders: &'a [HostId],
    /// The kernel it asks for by name.
    pub kernel: Option<&'a KernelName>,
    /// The host the operator asked for.
    pub wanted: Option<&'a HostId>,
    /// Hosts that turned out to be full since they were read.
    pub filled: &'a BTreeSet<HostId>,
}

/// The host for a VM: the wanted one, or of those that are up, hold the image and have room the one with most free
/// memory (then most free CPUs, then the first by id).
///
/// # Errors
/// `not_found` for an unknown host, `unavailable` for a silent one, `failed_precondition` when the wanted host, or every
/// host, lacks the image, `resource_exhausted` naming what is short.
pub fn place<'a>(hosts: &'a [Candidate], question: &Question<'_>) -> Result<&'a HostId, ApiError> {
    if let Some(wanted) = question.wanted {
        return check_wanted(hosts, wanted, question);
    }
    if question.holders.is_empty() {
        return Err(ApiError::failed_precondition(format!(
            "no host has the files of the image {} any more",
            question.image
        ))
        .hint("pull it again; `warren doctor` tells which hosts have lost it"));
    }
    let holders: Vec<&Candidate> = hosts.iter().filter(|host| question.holders.contains(&host.id)).collect();
    let up: Vec<&Candidate> = holders.iter().copied().filter(|host| host.up).collect();
    if up.is_empty() {
        let names: Vec<&str> = question.holders.iter().map(HostId::as_str).collect();
        return Err(ApiError::unavailable(format!(
            "no host that holds the image {} is up (it is on: {})",
            question.image,
            names.join(", ")
        ))
        .hint("`warren host ls` shows the hosts; start a host-agent, or pull the image to another host"));
    }
    let up: Vec<&Candidate> = up.into_iter().filter(|host| host.has_kernel(question.kernel)).collect();
    if let (true, Some(kernel)) = (up.is_empty(), question.kernel) {
        return Err(no_kernel("no host that holds the image and is up", kernel));
    }
    up.iter()
        .filter(|host| !question.filled.contains(&host.id) && host.lacks(question.needs).is_empty())
        .max_by_key(|host| (host.free_memory, host.free_cpus, std::cmp::Reverse(&host.id)))
        .map(|host| &host.id)
        .ok_or_else(|| exhausted(&up, question))
}

fn check_wanted<'a>(hosts: &'a [Candidate], wanted: &HostId, question: &Question<'_>) -> Result<&'a HostId, ApiError> {
    let host = hosts.iter().find(|host| host.id == *wanted).ok_or_else(|| {
        ApiError::not_found(format!("there is no host {wanted}")).hint("`warren host ls` lists the hosts")
    })?;
    if !host.up {
        return Err(ApiError::unavailable(format!("host {wanted} is down")).hint("is its host-agent running?"));
    }
    if !question.holders.contains(wanted) {
        return Err(ApiError::failed_precondition(format!("host {wanted} does not hold the image {}", question.image))
            .hint(format!("pull it there with `warren image pull … --host {wanted}`")));
    }
    if let Some(kernel) = question.kernel.filter(|kernel| !host.has_kernel(Some(kernel))) {
        return Err(no_kernel(&format!("host {wanted}"), kernel));
    }
    if question.filled.contains(wanted) || !host.lacks(question.needs).is_empty() {
        return Err(exhausted(&[host], question));
    }
    Ok(&host.id)
}

fn no_kernel(who: &str, kernel: &KernelName) -> ApiError {
    ApiError::failed_precondition(format!("{who} has no kernel {kernel}")).hint(format!(
        "`warren kernel ls` lists the lab's kernels, `warren kernel import {kernel} FILE` makes one; `warren host ls -o json` shows those of hosts"
    ))
}

fn exhausted(hosts: &[&Candidate], question: &Question<'_>) -> ApiError {
    let short: Vec<String> = hosts
        .iter()
        .map(|host| {
            let lacks = host.lacks(question.needs);
            let what = if lacks.is_empty() { "room: others took it first".to_owned() } else { lacks.join(", ") };
            format!("{} lacks {what}", host.id)
        })
        .collect();
    ApiError::resource_exhausted(format!("no host has room for this VM: {}", short.join("; ")))
        .hint("delete or shrink VMs, or add a host; freed addresses rest for a while before they are given again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::ErrorCode;
    use proptest::prelude::*;

    fn host(id: &str, up: bool, free: i64) -> Candidate {
        let id = id.parse().unwrap();
        Candidate { id, up, free_cpus: 4, free_memory: free, free_disk: 10_000, has_address: true, kernels: vec![] }
    }

    const NEEDS: Needs = Needs { cpus: 1, memory: MebiBytes(256), disk: MebiBytes(2048) };

    fn ask<'a>(hosts: &'a [Candidate], wanted: Option<&str>, holders: &[&str]) -> Result<&'a HostId, ApiError> {
        let holders: Vec<HostId> = holders.iter().map(|id| id.parse().unwrap()).collect();
        let wanted: Option<HostId> = wanted.map(|id| id.parse().unwrap());
        let filled = BTreeSet::new();
        place(
            hosts,
            &Question {
                needs: NEEDS,
                image: "debian",
                holders: &holders,
                kernel: None,
                wanted: wanted.as_ref(),
                filled: &filled,
            },
        )
    }

    #[test]
    fn the_roomiest_host_with_the_image_is_taken() {
        let hosts = [host("a", true, 512), host("b", true, 1024), host("c", true, 9999), host("d", false, 5000)];
        assert_eq!(ask(&hosts, None, &["a", "b", "d"]).unwrap().as_str(), "b");
        assert_eq!(ask(&hosts, Some("a"), &["a", "b"]).unwrap().as_str(), "a");
    }

    #[test]
    fn each_reason_has_its_code_and_names_what_is_short() {
        let hosts = [host("a", true, 100), host("d", false, 5000)];
        assert_eq!(ask(&hosts, Some("nope"), &["a"]).unwrap_err().code, ErrorCode::NotFound);
        assert_eq!(ask(&hosts, Some("d"), &["d"]).unwrap_err().code, ErrorCode::Unavailable);
        assert_eq!(ask(&hosts, Some("a"), &["d"]).unwrap_err().code, ErrorCode::FailedPrecondition);
        assert_eq!(ask(&hosts, None, &["d"]).unwrap_err().code, ErrorCode::Unavailable);
        assert_eq!(ask(&hosts, None, &[]).unwrap_err().code, ErrorCode::FailedPrecondition);
        let short = ask(&hosts, None, &["a"]).unwrap_err();
        assert_eq!(short.code, ErrorCode::ResourceExhausted);
        assert!(short.message.contains("a lacks memory (256M asked, 100 MiB free)"), "{}", short.message);
    }

    #[test]
    fn a_vm_that_asks_for_a_kernel_goes_where_it_is() {
        let mut hosts = [host("a", true, 512), host("b", true, 9999)];
        hosts[0].kernels = vec!["6.12".parse().unwrap()];
        let (holders, filled) = (hosts.iter().map(|host| host.id.clone()).collect::<Vec<_>>(), BTreeSet::new());
        let place = |kernel: &str, wanted: Option<&HostId>| {
            let kernel = Some(&kernel.parse().unwrap());
            let question = Question { needs: NEEDS, image: "i", holders: &holders, kernel, wanted, filled: &filled };
            place(&hosts, &question).cloned()
        };
        assert_eq!(place("6.12", None).unwrap().as_str(), "a");
        for refused in [place("6.13", None), place("6.12", Some(&hosts[1].id))] {
            let error = refused.unwrap_err();
            assert_eq!(error.code, ErrorCode::FailedPrecondition);
            assert!(error.message.contains("has no kernel 6.1"), "{}", error.message);
        }
    }

    /// Up, free memory, free CPUs, has an address, holds the image, was filled meanwhile.
    type Drawn = (bool, i64, i64, bool, bool, bool);

    proptest! {
        /// What is chosen is up, holds the image and has room; and whenever such a host exists, one is chosen.
        #[test]
        fn placement_is_sound_and_complete(
            specs in prop::collection::vec((any::<bool>(), -100i64..1000, -2i64..4, any::<bool>(), any::<bool>(), any::<bool>()), 0..8)
        ) {
            let hosts: Vec<Candidate> = specs.iter().enumerate().map(|(n, (up, memory, cpus, address, _, _))| Candidate {
                id: format!("h{n}").parse().unwrap(), up: *up, free_cpus: *cpus, free_memory: *memory, free_disk: 4096, has_address: *address, kernels: vec![],
            }).collect();
            let pick = |which: fn(&Drawn) -> bool| -> Vec<HostId> {
                hosts.iter().zip(&specs).filter(|(_, spec)| which(spec)).map(|(host, _)| host.id.clone()).collect()
            };
            let (holders, filled) = (pick(|spec| spec.4), pick(|spec| spec.5).into_iter().collect::<BTreeSet<_>>());
            let question = Question { needs: NEEDS, image: "i", holders: &holders, kernel: None, wanted: None, filled: &filled };
            let good = |host: &Candidate| host.up && holders.contains(&host.id) && !filled.contains(&host.id) && host.lacks(NEEDS).is_empty();
            match place(&hosts, &question) {
                Ok(id) => {
                    let chosen = hosts.iter().find(|host| host.id == *id).unwrap();
                    prop_assert!(good(chosen));
                    prop_assert!(hosts.iter().filter(|host| good(host)).all(|host| host.free_memory <= chosen.free_memory));
                }
                Err(error) => {
                    prop_assert!(!hosts.iter().any(good));
                    let lost = error.code == ErrorCode::FailedPrecondition && holders.is_empty();
                    prop_assert!(lost || matches!(error.code, ErrorCode::ResourceExhausted | ErrorCode::Unavailable));
                }
            }
        }
    }
}
