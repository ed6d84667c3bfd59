//! The lab's nftables rules. One transaction replaces Warren's own table and touches no other.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use super::{NetError, system};

/// The interface of the uplink inside the namespace.
pub(super) const UPLINK: &str = "uplink";

/// The rules inside the lab's namespace: VMs reach each other and, those in `outward` through the uplink and translated,
/// the rest; of the host itself they reach the name server and nothing else, and those in `isolated` not even that.
pub(super) fn lab_rules(bridge: &str) -> String {
    format!(
        "table inet warren\n\
         delete table inet warren\n\
         table inet warren {{\n\
           set outward {{ type ipv4_addr; }}\n\
           set isolated {{ type ipv4_addr; }}\n\
           chain forwarded {{\n\
             type filter hook forward priority filter; policy drop;\n\
             ct state established,related accept\n\
             ip daddr 169.254.0.0/16 drop\n\
             ip saddr @isolated drop\n\
             iifname \"{bridge}\" oifname \"{bridge}\" accept\n\
             iifname \"{bridge}\" oifname \"{UPLINK}\" ip saddr @outward accept\n\
           }}\n\
           chain incoming {{\n\
             type filter hook input priority filter; policy drop;\n\
             iifname \"lo\" accept\n\
             ct state established,related accept\n\
             ip saddr @isolated drop\n\
             iifname \"{bridge}\" icmp type echo-request accept\n\
             iifname \"{bridge}\" meta l4proto {{ tcp, udp }} th dport 53 accept\n\
           }}\n\
           chain leaving {{\n\
             type nat hook postrouting priority srcnat; policy accept;\n\
             oifname \"{UPLINK}\" masquerade\n\
           }}\n\
         }}\n"
    )
}

/// The rules on the machine's side of an uplink, in a table of its own: VMs go out translated, reach nothing of the machine
/// itself, and nobody opens connections to them.
pub(super) fn machine_rules(table: &str, interface: &str, network: ipnet::Ipv4Net) -> String {
    format!(
        "table ip {table}\n\
         delete table ip {table}\n\
         table ip {table} {{\n\
           chain leaving {{\n\
             type nat hook postrouting priority srcnat; policy accept;\n\
             oifname != \"{interface}\" ip saddr {network} masquerade\n\
           }}\n\
           chain incoming {{\n\
             type filter hook input priority filter; policy accept;\n\
             iifname \"{interface}\" ct state established,related accept\n\
             iifname \"{interface}\" drop\n\
           }}\n\
           chain forwarded {{\n\
             type filter hook forward priority filter; policy accept;\n\
             oifname \"{interface}\" ct state established,related accept\n\
             oifname \"{interface}\" drop\n\
           }}\n\
         }}\n"
    )
}

/// Removes a table; its absence is fine.
pub(super) fn removal(table: &str) -> String {
    format!("table ip {table}\ndelete table ip {table}\n")
}

/// Applies rules in the calling thread's namespace.
pub(super) fn apply(rules: &str) -> Result<(), NetError> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(system("nft cannot be started; is nftables installed?"))?;
    if let Some(mut input) = nft.stdin.take() {
        input.write_all(rules.as_bytes()).map_err(system("nft does not take its rules"))?;
    }
    let output = nft.wait_with_output().map_err(system("nft cannot be waited for"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(NetError::Firewall(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
