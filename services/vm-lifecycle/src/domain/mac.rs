//! A VM's **MAC address**: a function of its address, so that it is unique in the lab without being stored.

use std::net::Ipv4Addr;

/// The MAC of the VM with that address: `02` (locally administered, unicast), `57` for Warren, the address.
pub fn of(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("02:57:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_mac_holds_the_address() {
        assert_eq!(super::of([10, 77, 0, 255].into()), "02:57:0a:4d:00:ff");
    }
}
