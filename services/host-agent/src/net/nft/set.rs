//! A set: elements that rules look fields of packets up in. An element is one key, or several one after the other.

use std::{fmt, net::Ipv4Addr};

use netlink_bindings::{nftables::PushSetelemListAttrs, traits::Pusher};

use super::{Table, rule::interface};

/// How many bits of a set's key type name each of its keys, as nft(8) reads it.
const TYPE_BITS: u32 = 6;
/// `NFTNL_UDATA_SET_KEYBYTEORDER` of libnftnl's `udata.h`, which tells nft(8) how to show a key.
const UDATA_BYTE_ORDER: u8 = 0;
/// `NFTNL_UDATA_SET_ELEM_COMMENT`.
const UDATA_COMMENT: u8 = 0;

/// A kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::net) enum Key {
    /// An interface's name.
    Ifname,
    /// A MAC address.
    Ether,
    /// An IPv4 address.
    Ipv4,
}

impl Key {
    /// The type's number in nft(8) (`enum datatypes`), and its length in whole registers, in bytes.
    fn number_and_length(self) -> (u32, u32) {
        match self {
            Self::Ifname => (41, 16),
            Self::Ether => (9, 8),
            Self::Ipv4 => (7, 4),
        }
    }
}

/// A named set.
#[derive(Clone, Copy, Debug)]
pub(in crate::net) struct Set<'a> {
    pub(in crate::net) table: Table<'a>,
    pub(in crate::net) name: &'a str,
    pub(in crate::net) keys: &'a [Key],
}

/// An element of a set.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::net) struct Element {
    key: Vec<u8>,
    comment: Option<String>,
    words: String,
}

impl fmt::Debug for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl Element {
    pub(in crate::net) fn new() -> Self {
        Self { key: Vec::new(), comment: None, words: String::new() }
    }

    fn with(mut self, key: &[u8], words: &str) -> Self {
        self.key.extend(key);
        self.words = if self.words.is_empty() { words.to_owned() } else { format!("{} . {words}", self.words) };
        self
    }

    pub(in crate::net) fn interface(self, name: &str) -> Self {
        self.with(&interface(name), name)
    }

    pub(in crate::net) fn mac(self, mac: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = mac;
        // Two bytes more, as a key begins in a register of its own.
        self.with(&[a, b, c, d, e, f, 0, 0], &mac.map(|byte| format!("{byte:02x}")).join(":"))
    }

    pub(in crate::net) fn address(self, address: Ipv4Addr) -> Self {
        self.with(&address.octets(), &address.to_string())
    }

    /// With words that stay with the element and decide nothing.
    pub(in crate::net) fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }

    /// Of a dump: a key and the user data beside it.
    pub(super) fn read(key: &[u8], userdata: Option<&[u8]>) -> Self {
        let comment = match userdata {
            Some([UDATA_COMMENT, length, text @ ..]) => text
                .get(..usize::from(*length))
                .map(|text| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned()),
            _ => None,
        };
        Self { key: key.to_owned(), comment, words: hex::encode(key) }
    }

    /// The name of the interface its key begins with.
    pub(in crate::net) fn first_interface(&self) -> String {
        let name = self.key.get(..libc::IFNAMSIZ).unwrap_or(&self.key);
        String::from_utf8_lossy(name).trim_end_matches('\0').to_owned()
    }

    /// Its comment.
    pub(in crate::net) fn note(&self) -> Option<&str> {
        self.comment.as_deref()
    }

    fn userdata(&self) -> Option<Vec<u8>> {
        let comment = self.comment.as_ref()?;
        let length = u8::try_from(comment.len() + 1).ok()?;
        Some([&[UDATA_COMMENT, length], comment.as_bytes(), &[0]].concat())
    }
}

impl Set<'_> {
    /// `NFTA_SET_KEY_TYPE`: which kinds of keys, for nft(8).
    pub(super) fn key_type(&self) -> u32 {
        self.keys.iter().fold(0, |all, key| all << TYPE_BITS | key.number_and_length().0)
    }

    /// `NFTA_SET_KEY_LEN`, in bytes.
    pub(super) fn key_length(&self) -> u32 {
        self.keys.iter().map(|key| key.number_and_length().1).sum()
    }

    /// `NFTA_SET_USERDATA`: whether nft(8) shows the key in the machine's byte order (1), the network's (2), or each part as
    /// its type says (0).
    pub(super) fn byte_order(&self) -> Vec<u8> {
        let order: u32 = match self.keys {
            [Key::Ifname] => 1,
            [_] => 2,
            _ => 0,
        };
        [&[UDATA_BYTE_ORDER, 4], &order.to_ne_bytes()[..]].concat()
    }

    pub(super) fn describe(&self, what: &str, elements: &[Element]) -> String {
        let Self { name, table, .. } = self;
        match elements {
            [one] => format!("{what}the element {one:?} of the set {name} of {table}"),
            many => format!("{what}{} elements of the set {name} of {table}", many.len()),
        }
    }

    /// Writes elements into their message.
    pub(super) fn encode<P: Pusher>(&self, elements: &[Element], message: PushSetelemListAttrs<P>) {
        let message = message.push_table_bytes(self.table.name.as_bytes()).push_set_bytes(self.name.as_bytes());
        let mut list = message.nested_elements();
        for element in elements {
            let one = list.nested_elem().nested_key().push_value(&element.key).end_nested();
            list = match element.userdata() {
                Some(userdata) => one.push_userdata(&userdata).end_nested(),
                None => one.end_nested(),
            };
        }
        list.end_nested();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_typed_as_nft_types_it() {
        let table = Table { family: super::super::Family::Bridge, name: "warren" };
        let set = |keys| Set { table, name: "set", keys };
        assert_eq!((set(&[Key::Ipv4]).key_type(), set(&[Key::Ipv4]).key_length()), (7, 4));
        let guests = set(&[Key::Ifname, Key::Ether, Key::Ipv4]);
        assert_eq!((guests.key_type(), guests.key_length()), (0x29247, 28));
        let element = Element::new().interface("wt0").mac([2, 0, 0, 0, 0, 1]).address([10, 77, 0, 2].into());
        assert_eq!(element.key.len(), 28);
        assert_eq!(format!("{element:?}"), "wt0 . 02:00:00:00:00:01 . 10.77.0.2");
    }

    #[test]
    fn a_comment_is_read_back_and_a_lying_one_is_none() {
        let element = Element::new().interface("wt0").comment("whose");
        let read = Element::read(&element.key, element.userdata().as_deref());
        assert_eq!((read.first_interface().as_str(), read.note()), ("wt0", Some("whose")));
        assert_eq!(Element::read(&[1, 2], Some(&[0, 200, b'x'])).note(), None);
        assert_eq!(Element::read(&[], None).first_interface(), "");
    }
}
