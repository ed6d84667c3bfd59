//! **Placement** chooses the host that gets an image's first replica.

use contract::{
    ApiError, HostId,
    host::{Host, HostState},
};

/// The host asked for, or the live one with most free disk space; among equals the first by id.
///
/// # Errors
/// `not_found` for a host the lab does not have, `unavailable` when it is down or none is up,
/// `resource_exhausted` when no host has disk space left.
pub fn choose(hosts: &[Host], wanted: Option<&HostId>) -> Result<HostId, ApiError> {
    if let Some(wanted) = wanted {
        let host = hosts.iter().find(|host| host.id == *wanted).ok_or_else(|| {
            ApiError::not_found(format!("there is no host {wanted}")).hint("`warren host ls` lists the hosts")
        })?;
        return match host.state {
            HostState::Up => Ok(host.id.clone()),
            HostState::Down => Err(ApiError::unavailable(format!("host {wanted} is down"))
                .hint(format!("start the host-agent of {wanted}, or leave the host out"))),
        };
    }
    let up = hosts.iter().filter(|host| host.state == HostState::Up);
    let best = up.min_by_key(|host| (std::cmp::Reverse(free_disk(host)), &host.id)).ok_or_else(|| {
        ApiError::unavailable("no host is up to hold the image")
            .hint("start a host-agent; `warren host ls` shows the hosts")
    })?;
    if free_disk(best) == 0 {
        return Err(ApiError::resource_exhausted("no host has disk space left for another image")
            .hint("remove VMs or images, or add a host"));
    }
    Ok(best.id.clone())
}

/// Disk space no VM holds, in MiB.
fn free_disk(host: &Host) -> u32 {
    host.capacity.disk.0.saturating_sub(host.allocated.disk.0)
}

#[cfg(test)]
mod tests {
    use contract::{ErrorCode, MebiBytes, host::Capacity};
    use time::OffsetDateTime;

    use super::*;

    fn host(id: &str, state: HostState, disk: u32, held: u32) -> Host {
        let capacity = |disk| Capacity { cpus: 1, memory: MebiBytes(1), disk: MebiBytes(disk) };
        Host {
            id: id.parse().unwrap(),
            state,
            capacity: capacity(disk),
            allocated: capacity(held),
            subnet: "10.77.0.0/24".parse().unwrap(),
            vmm: "qemu-tcg".to_owned(),
            version: "0".to_owned(),
            kernels: vec![],
            vms: 0,
            last_seen: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn the_live_host_with_most_free_disk_is_chosen() {
        let hosts = [
            host("a", HostState::Up, 100, 60),
            host("b", HostState::Up, 90, 0),
            host("c", HostState::Down, 900, 0),
            host("d", HostState::Up, 90, 0),
        ];
        assert_eq!(choose(&hosts, None).unwrap().as_str(), "b");
        assert_eq!(choose(&hosts, Some(&"a".parse().unwrap())).unwrap().as_str(), "a");
    }

    #[test]
    fn a_host_that_cannot_take_it_is_named() {
        let hosts = [host("a", HostState::Down, 100, 0)];
        let code = |wanted: Option<&str>| {
            let wanted = wanted.map(|id| id.parse::<HostId>().unwrap());
            choose(&hosts, wanted.as_ref()).unwrap_err().code
        };
        assert_eq!(code(None), ErrorCode::Unavailable);
        assert_eq!(code(Some("a")), ErrorCode::Unavailable);
        assert_eq!(code(Some("x")), ErrorCode::NotFound);
        let full = [host("a", HostState::Up, 100, 100)];
        assert_eq!(choose(&full, None).unwrap_err().code, ErrorCode::ResourceExhausted);
    }
}
