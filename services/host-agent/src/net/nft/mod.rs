//! nftables (nf_tables of Linux 5.6 and newer) spoken by netlink: a [`Batch`] of changes that the kernel makes together or not at
//! all. Numbers and layouts are those of `linux/netfilter/nf_tables.h`; what is made is read with `nft list ruleset`.

mod rule;
mod set;
mod socket;

use netlink_bindings::nftables::{Chained, Nfgenmsg};

pub(super) use rule::{Field, Outcome, Rule};
pub(super) use set::{Element, Key, Set};
pub(super) use socket::Socket;

use super::NetError;

/// `NFNL_SUBSYS_NFTABLES`, which the first and last message of a batch name.
const SUBSYSTEM: u16 = 10;
/// How many elements one message carries: an attribute has at most 64 KiB, an element less than 128 bytes.
const ELEMENTS: usize = 256;

/// Whose packets a table sees (`NFPROTO_*` of `linux/netfilter.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    /// IPv4.
    Ipv4 = 2,
    /// What crosses a bridge.
    Bridge = 7,
}

/// A table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table<'a> {
    pub(super) family: Family,
    pub(super) name: &'a str,
}

impl std::fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = match self.family {
            Family::Inet => "inet",
            Family::Ipv4 => "ip",
            Family::Bridge => "bridge",
        };
        write!(f, "{family} {}", self.name)
    }
}

impl Table<'_> {
    fn header(&self) -> Nfgenmsg {
        Nfgenmsg { nfgen_family: self.family as u8, ..Nfgenmsg::default() }
    }
}

/// Where a chain sees packets (`NF_INET_*` and `NF_BR_*`, which number these alike).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// As they come in.
    Prerouting = 0,
    /// Those for this machine.
    Input = 1,
    /// Those for others.
    Forward = 2,
    /// As they go out.
    Postrouting = 4,
}

/// A chain at a hook.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain<'a> {
    pub(super) table: Table<'a>,
    pub(super) name: &'a str,
    /// `filter` or `nat`.
    pub(super) kind: &'a str,
    pub(super) hook: Hook,
    /// Lower ones come first.
    pub(super) priority: i32,
    /// Whether what no rule decides on goes on.
    pub(super) accepts: bool,
}

/// Changes that are made in one transaction.
pub(super) struct Batch {
    messages: Chained<'static>,
    /// What each message is about, for the error that names it.
    about: Vec<String>,
    /// Gives each new set of the batch an id of its own.
    sets: u32,
}

impl Batch {
    pub(super) fn new() -> Self {
        let mut batch = Self { messages: Chained::new(socket::next_sequence()), about: Vec::new(), sets: 0 };
        batch.about("the transaction");
        batch.messages.request().op_batch_begin_do(&batch_header());
        batch
    }

    fn about(&mut self, what: impl Into<String>) {
        self.about.push(what.into());
    }

    /// Makes a table where there is none.
    pub(super) fn table(&mut self, table: Table<'_>) {
        self.about(format!("the table {table}"));
        let request = self.messages.request().set_create();
        request.op_newtable_do(&table.header()).encode().push_name_bytes(table.name.as_bytes()).push_flags(0);
    }

    /// Removes a table with all in it; its absence is fine.
    pub(super) fn remove_table(&mut self, table: Table<'_>) {
        self.table(table);
        self.about(format!("the removal of the table {table}"));
        self.messages.request().op_deltable_do(&table.header()).encode().push_name_bytes(table.name.as_bytes());
    }

    /// Makes a chain where there is none, and takes all rules from one that is there.
    pub(super) fn chain(&mut self, chain: &Chain<'_>) {
        let Chain { table, name, .. } = chain;
        self.about(format!("the chain {name} of {table}"));
        self.messages
            .request()
            .set_create()
            .op_newchain_do(&table.header())
            .encode()
            .push_table_bytes(table.name.as_bytes())
            .push_name_bytes(name.as_bytes())
            .nested_hook()
            .push_num(chain.hook as u32)
            .push_priority(chain.priority)
            .end_nested()
            .push_policy(u32::from(chain.accepts))
            .push_type_bytes(chain.kind.as_bytes());
        self.about(format!("the removal of the rules of the chain {name} of {table}"));
        self.messages
            .request()
            .op_delrule_do(&table.header())
            .encode()
            .push_table_bytes(table.name.as_bytes())
            .push_chain_bytes(name.as_bytes());
    }

    /// Adds a rule at the end of a chain.
    pub(super) fn rule(&mut self, chain: &Chain<'_>, rule: Rule) {
        let Chain { table, name, .. } = chain;
        self.about(format!("the rule {rule:?} of the chain {name} of {table}"));
        let mut request = self.messages.request().set_create().set_append().op_newrule_do(&table.header());
        let message = request.encode();
        rule.encode(message.push_table_bytes(table.name.as_bytes()).push_chain_bytes(name.as_bytes()));
    }

    /// Makes a set where there is none.
    pub(super) fn set(&mut self, set: &Set<'_>) {
        let Set { table, name, .. } = set;
        self.about(format!("the set {name} of {table}"));
        self.sets += 1;
        self.messages
            .request()
            .set_create()
            .op_newset_do(&table.header())
            .encode()
            .push_table_bytes(table.name.as_bytes())
            .push_name_bytes(name.as_bytes())
            .push_flags(0)
            .push_key_type(set.key_type())
            .push_key_len(set.key_length())
            .push_id(self.sets)
            .push_userdata(&set.byte_order());
    }

    /// Adds elements to a set; those that are there are fine.
    pub(super) fn add(&mut self, set: &Set<'_>, elements: &[Element]) {
        for some in elements.chunks(ELEMENTS) {
            self.about(set.describe("", some));
            let mut request = self.messages.request().set_create().op_newsetelem_do(&set.table.header());
            set.encode(some, request.encode());
        }
    }

    /// Takes elements from a set; the absence of some is fine, as they are added first.
    pub(super) fn remove(&mut self, set: &Set<'_>, elements: &[Element]) {
        self.add(set, elements);
        for some in elements.chunks(ELEMENTS) {
            self.about(set.describe("the removal of ", some));
            let mut request = self.messages.request().op_delsetelem_do(&set.table.header());
            set.encode(some, request.encode());
        }
    }

    /// Makes the changes, or none of them.
    ///
    /// # Errors
    /// The kernel refused one of them, which the error names.
    pub(super) fn commit(mut self, socket: &mut Socket) -> Result<(), NetError> {
        self.about("the transaction's end");
        self.messages.request().op_batch_end_do(&batch_header());
        socket.transact(&self.messages.finalize(), &self.about)
    }
}

fn batch_header() -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.set_res_id(SUBSYSTEM);
    header
}
