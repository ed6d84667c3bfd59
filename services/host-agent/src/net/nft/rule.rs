//! A rule: conditions that must all hold, and what then becomes of the packet. Each condition loads fields of the packet into
//! registers (`enum nft_registers`) and compares them there.

use std::fmt;

use netlink_bindings::{
    nftables::{
        CmpOps, CtKeys, LookupFlags, MetaKeys, PayloadBase, PushExprListAttrs, PushRuleAttrs, Registers, VerdictCode,
    },
    traits::Pusher,
    utils::push_header,
};

/// The first of the registers of four bytes, `NFT_REG32_00`.
const FIRST: u32 = Registers::Reg3200 as u32;
/// A register's size, in bytes.
const REGISTER: usize = 4;

/// `enum nft_lookup_attributes`. The library's own numbers are those of the kernel's YNL specification, which differ from its
/// header here.
const NFTA_LOOKUP_SREG: u16 = 2;
const NFTA_LOOKUP_FLAGS: u16 = 5;

/// A field of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::net) enum Field {
    /// The interface it came in on: 16 bytes, zeroes at the end.
    Iifname,
    /// The interface it goes out on.
    Oifname,
    /// The layer-3 family of the hook, a byte of `NFPROTO_*`.
    Nfproto,
    /// The layer-4 protocol, a byte of `IPPROTO_*`.
    L4Proto,
    /// The layer-3 protocol, an ethertype.
    Protocol,
    /// The state of its connection, bits of `enum ip_conntrack_info`'s states in the machine's byte order.
    CtState,
    /// The sender's MAC address.
    EtherSaddr,
    /// The ethertype in the frame.
    EtherType,
    /// IPv4's sender.
    IpSaddr,
    /// The first two bytes of IPv4's receiver.
    IpDaddr16,
    /// ARP's kind of hardware and of protocol, two bytes each (RFC 826).
    ArpKinds,
    /// ARP's sender's MAC address.
    ArpSenderMac,
    /// ARP's sender's IPv4 address.
    ArpSenderIp,
    /// ICMP's type.
    IcmpType,
    /// The port a TCP segment or UDP datagram is for.
    DestinationPort,
}

/// Where a field is found.
enum Place {
    Meta(MetaKeys),
    Conntrack(CtKeys),
    /// Base, offset.
    Payload(PayloadBase, u32),
}

impl Field {
    /// Where it is found, and its length in bytes.
    fn place(self) -> (Place, usize) {
        use {PayloadBase as Base, Place::Payload};
        match self {
            Self::Iifname => (Place::Meta(MetaKeys::Iifname), libc::IFNAMSIZ),
            Self::Oifname => (Place::Meta(MetaKeys::Oifname), libc::IFNAMSIZ),
            Self::Nfproto => (Place::Meta(MetaKeys::Nfproto), 1),
            Self::L4Proto => (Place::Meta(MetaKeys::L4Proto), 1),
            Self::Protocol => (Place::Meta(MetaKeys::Protocol), 2),
            Self::CtState => (Place::Conntrack(CtKeys::State), 4),
            Self::EtherSaddr => (Payload(Base::LinkLayerHeader, 6), 6),
            Self::EtherType => (Payload(Base::LinkLayerHeader, 12), 2),
            Self::IpSaddr => (Payload(Base::NetworkHeader, 12), 4),
            Self::IpDaddr16 => (Payload(Base::NetworkHeader, 16), 2),
            Self::ArpKinds => (Payload(Base::NetworkHeader, 0), 4),
            Self::ArpSenderMac => (Payload(Base::NetworkHeader, 8), 6),
            Self::ArpSenderIp => (Payload(Base::NetworkHeader, 14), 4),
            Self::IcmpType => (Payload(Base::TransportHeader, 0), 1),
            Self::DestinationPort => (Payload(Base::TransportHeader, 2), 2),
        }
    }
}

/// One step of a rule.
#[derive(Clone)]
enum Expression {
    /// A field into a register.
    Load(Field, u32),
    /// The first register's first bytes with these.
    Compare(CmpOps, Vec<u8>),
    /// The first register and these bits.
    Mask(Vec<u8>),
    /// What the registers hold in a set, or not in it.
    Lookup(String, bool),
    Verdict(VerdictCode),
    Masquerade,
}

/// A rule, built from the left to the right.
#[derive(Clone, Default)]
pub(in crate::net) struct Rule {
    expressions: Vec<Expression>,
    /// The rule in words, for errors.
    words: Vec<String>,
}

/// What becomes of a packet for which all of a rule's conditions hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::net) enum Outcome {
    /// It goes on to the next chain.
    Accept,
    /// It ends here.
    Drop,
    /// It gets the address of the interface it goes out on.
    Masquerade,
}

impl Rule {
    pub(in crate::net) fn new() -> Self {
        Self::default()
    }

    fn with(mut self, words: impl Into<String>, expressions: impl IntoIterator<Item = Expression>) -> Self {
        self.words.push(words.into());
        self.expressions.extend(expressions);
        self
    }

    fn compare(self, field: Field, operator: CmpOps, sign: &str, value: &[u8]) -> Self {
        let words = format!("{field:?} {sign} {}", shown(value));
        self.with(words, [Expression::Load(field, FIRST), Expression::Compare(operator, value.to_vec())])
    }

    /// The field begins with these bytes.
    pub(in crate::net) fn having(self, field: Field, value: &[u8]) -> Self {
        self.compare(field, CmpOps::Eq, "is", value)
    }

    /// The field does not begin with these bytes.
    pub(in crate::net) fn not_having(self, field: Field, value: &[u8]) -> Self {
        self.compare(field, CmpOps::Neq, "is not", value)
    }

    /// An interface's field has this name.
    pub(in crate::net) fn named(self, field: Field, name: &str) -> Self {
        self.having(field, &interface(name))
    }

    /// An interface's field has another name.
    pub(in crate::net) fn not_named(self, field: Field, name: &str) -> Self {
        self.not_having(field, &interface(name))
    }

    /// It is an IPv4 packet, in a table that sees IPv6 too.
    pub(in crate::net) fn ipv4(self) -> Self {
        self.having(Field::Nfproto, &[2])
    }

    /// Its connection was let through before, or it belongs to one that was.
    pub(in crate::net) fn established(self) -> Self {
        // ESTABLISHED and RELATED of NF_CT_STATE_BIT.
        let (states, none) = (0b110u32.to_ne_bytes().to_vec(), vec![0; 4]);
        self.with(
            "its connection is established",
            [Expression::Load(Field::CtState, FIRST), Expression::Mask(states), Expression::Compare(CmpOps::Neq, none)],
        )
    }

    /// IPv4's sender is in this network.
    pub(in crate::net) fn sent_from(self, network: ipnet::Ipv4Net) -> Self {
        let (mask, value) = (network.netmask().octets().to_vec(), network.network().octets().to_vec());
        self.with(
            format!("IpSaddr is in {network}"),
            [Expression::Load(Field::IpSaddr, FIRST), Expression::Mask(mask), Expression::Compare(CmpOps::Eq, value)],
        )
    }

    fn lookup(self, fields: &[Field], set: &str, absent: bool) -> Self {
        let words = format!("{fields:?} {} @{set}", if absent { "is not in" } else { "is in" });
        let mut register = FIRST;
        let mut loads = Vec::new();
        for field in fields {
            loads.push(Expression::Load(*field, register));
            register += u32::try_from(field.place().1.div_ceil(REGISTER)).unwrap_or_default();
        }
        loads.push(Expression::Lookup(set.to_owned(), absent));
        self.with(words, loads)
    }

    /// The fields together are an element of this set.
    pub(in crate::net) fn among(self, fields: &[Field], set: &str) -> Self {
        self.lookup(fields, set, false)
    }

    /// The fields together are no element of this set.
    pub(in crate::net) fn not_among(self, fields: &[Field], set: &str) -> Self {
        self.lookup(fields, set, true)
    }

    /// What becomes of the packet then.
    pub(in crate::net) fn then(self, outcome: Outcome) -> Self {
        match outcome {
            Outcome::Accept => self.with("accept", [Expression::Verdict(VerdictCode::Accept)]),
            Outcome::Drop => self.with("drop", [Expression::Verdict(VerdictCode::Drop)]),
            Outcome::Masquerade => self.with("masquerade", [Expression::Masquerade]),
        }
    }

    /// Writes it into its message.
    pub(super) fn encode<P: Pusher>(&self, message: PushRuleAttrs<P>) {
        let mut list = message.nested_expressions();
        for expression in &self.expressions {
            list = expression.encode(list);
        }
        list.end_nested();
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.words.join(", "))
    }
}

/// An interface's name as the kernel compares it.
pub(super) fn interface(name: &str) -> [u8; libc::IFNAMSIZ] {
    let mut bytes = [0; libc::IFNAMSIZ];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}

fn shown(value: &[u8]) -> String {
    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
    match std::str::from_utf8(text) {
        Ok(text) if text.len() > 1 && text.bytes().all(|byte| byte.is_ascii_graphic()) => text.to_owned(),
        _ => hex::encode(value),
    }
}

/// Adds an attribute of four bytes.
fn push(attributes: &mut impl Pusher, kind: u16, value: u32) {
    let bytes = attributes.as_vec_mut();
    push_header(bytes, kind, 4);
    bytes.extend(value.to_be_bytes());
}

impl Expression {
    /// Adds it to a rule's list: `NFTA_LIST_ELEM` with the attributes `NFTA_EXPR_*`.
    fn encode<P: Pusher>(&self, list: PushExprListAttrs<P>) -> PushExprListAttrs<P> {
        let element = list.nested_elem();
        match self {
            Self::Load(field, register) => {
                let (place, length) = field.place();
                match place {
                    Place::Meta(key) => {
                        element.nested_data_meta().push_dreg(*register).push_key(key as u32).end_nested().end_nested()
                    }
                    Place::Conntrack(key) => {
                        element.nested_data_ct().push_dreg(*register).push_key(key as u32).end_nested().end_nested()
                    }
                    Place::Payload(base, offset) => element
                        .nested_data_payload()
                        .push_dreg(*register)
                        .push_base(base as u32)
                        .push_offset(offset)
                        .push_len(u32::try_from(length).unwrap_or_default())
                        .end_nested()
                        .end_nested(),
                }
            }
            Self::Compare(operator, value) => element
                .nested_data_cmp()
                .push_sreg(FIRST)
                .push_op(*operator as u32)
                .nested_data()
                .push_value(value)
                .end_nested()
                .end_nested()
                .end_nested(),
            Self::Mask(mask) => element
                .nested_data_bitwise()
                .push_sreg(FIRST)
                .push_dreg(FIRST)
                .push_len(u32::try_from(mask.len()).unwrap_or_default())
                .nested_mask()
                .push_value(mask)
                .end_nested()
                .nested_xor()
                .push_value(&vec![0; mask.len()])
                .end_nested()
                .end_nested()
                .end_nested(),
            Self::Lookup(set, absent) => {
                let mut lookup = element.nested_data_lookup().push_set_bytes(set.as_bytes());
                push(&mut lookup, NFTA_LOOKUP_SREG, FIRST);
                if *absent {
                    push(&mut lookup, NFTA_LOOKUP_FLAGS, LookupFlags::Invert as u32);
                }
                lookup.end_nested().end_nested()
            }
            Self::Verdict(code) => element
                .nested_data_immediate()
                .push_dreg(Registers::RegVerdict as u32)
                .nested_data()
                .nested_verdict()
                .push_code(*code as u32)
                .end_nested()
                .end_nested()
                .end_nested()
                .end_nested(),
            // Without NFTA_MASQ_*: to the interface's address and any port.
            Self::Masquerade => element.push_name_bytes(b"masq").end_nested(),
        }
    }
}
