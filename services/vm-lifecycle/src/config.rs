//! Configuration, from the environment.

use std::{path::PathBuf, time::Duration};

use ipnet::Ipv4Net;
use runtime::config::{ConfigError, Reader};
use store::StoreConfig;

/// The shortest and longest subnet prefix of a host: 4093 VMs, and one.
const HOST_PREFIX: std::ops::RangeInclusive<u8> = 20..=30;

/// The most hosts a lab's network is divided for, as bits: the lowest free one is looked for among them.
const HOSTS_BITS_MAX: u8 = 12;

/// What this process was told.
#[derive(Clone, Debug)]
pub struct Config {
    /// `WARREN_NATS_URL`.
    pub nats_url: String,
    /// `WARREN_NATS_CREDENTIALS`: a credentials file.
    pub nats_credentials: Option<PathBuf>,
    /// `WARREN_DATABASE_URL`.
    pub database_url: String,
    /// `WARREN_LAB_NETWORK`: what hosts get their subnets of.
    pub network: Ipv4Net,
    /// `WARREN_HOST_PREFIX`: the prefix length of a host's subnet.
    pub host_prefix: u8,
    /// `WARREN_DOMAIN`: the lab's DNS domain.
    pub domain: String,
    /// `WARREN_ADDRESS_REST`: seconds a freed address rests before it is given again, so that ARP, DNS and
    /// connection tracking have forgotten it.
    pub address_rest: Duration,
    /// The pool of database connections.
    pub pool: StoreConfig,
}

impl Config {
    /// Reads the environment.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn from_env() -> Result<Self, ConfigError> {
        let mut reader = Reader::new();
        let nats_url = reader.required("WARREN_NATS_URL", "where NATS is, such as nats://127.0.0.1:4222");
        let nats_credentials = reader.optional("WARREN_NATS_CREDENTIALS");
        let database_url = reader.required("WARREN_DATABASE_URL", "where PostgreSQL is, such as postgres:///warren");
        let network = reader.or("WARREN_LAB_NETWORK", Ipv4Net::new_assert([10, 77, 0, 0].into(), 16));
        let host_prefix = reader.or("WARREN_HOST_PREFIX", 24);
        let domain: String = reader.or("WARREN_DOMAIN", "warren".to_owned());
        let rest = reader.or("WARREN_ADDRESS_REST", 60u32);
        if let Some(problem) = network_problem(network, host_prefix) {
            reader.problem(problem);
        }
        if !is_domain(&domain) {
            reader.problem(format!("WARREN_DOMAIN: {domain:?} is no DNS domain of labels with a-z, 0-9 and '-'"));
        }
        reader.finish(|| {
            Some(Self {
                nats_url: nats_url?,
                nats_credentials,
                database_url: database_url?,
                network: network.trunc(),
                host_prefix,
                domain,
                address_rest: Duration::from_secs(rest.into()),
                pool: pool(),
            })
        })
    }
}

/// This service's pool: eight connections a core, twice the usual. A reservation mostly waits for its commit to reach the
/// disk, and commits that wait together are written together: measured on two cores with 32 clients
/// (`loadtest reserve`), 8 connections reach 63 % of the bare SQL's rate, 16 reach 81 %, 34 reach 90 %.
pub fn pool() -> StoreConfig {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    StoreConfig { max_connections: (8 * cores).clamp(8, 32), ..StoreConfig::default() }
}

fn network_problem(network: Ipv4Net, host_prefix: u8) -> Option<String> {
    if !HOST_PREFIX.contains(&host_prefix) {
        return Some(format!(
            "WARREN_HOST_PREFIX: {host_prefix} is not within {} to {}",
            HOST_PREFIX.start(),
            HOST_PREFIX.end()
        ));
    }
    if network.prefix_len() > host_prefix {
        return Some(format!("WARREN_LAB_NETWORK: {network} is smaller than one host's /{host_prefix}"));
    }
    if host_prefix - network.prefix_len() > HOSTS_BITS_MAX {
        return Some(format!(
            "WARREN_LAB_NETWORK: {network} holds more than {} subnets of /{host_prefix}; take a smaller one",
            1 << HOSTS_BITS_MAX
        ));
    }
    None
}

fn is_domain(text: &str) -> bool {
    text.len() <= 180
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_must_hold_hosts_and_hosts_must_hold_vms() {
        let problem = |network: &str, prefix| network_problem(network.parse().unwrap(), prefix);
        assert_eq!(problem("10.77.0.0/16", 24), None);
        assert_eq!(problem("10.77.0.0/29", 29), None);
        assert!(problem("10.77.0.0/16", 31).unwrap().contains("20 to 30"));
        assert!(problem("10.77.0.0/25", 24).unwrap().contains("smaller"));
        assert!(problem("10.0.0.0/8", 24).unwrap().contains("take a smaller one"));
    }

    #[test]
    fn a_domain_is_made_of_labels() {
        assert!(is_domain("warren") && is_domain("lab.example.org"));
        assert!(!is_domain("") && !is_domain("a..b") && !is_domain("A") && !is_domain("-a") && !is_domain("a b"));
    }
}
