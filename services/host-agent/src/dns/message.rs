//! Messages as bytes: a query is read, a reply is written within what its asker takes. Nothing here is trusted and nothing here
//! waits.

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, Record, RecordType},
    serialize::binary::{BinEncodable, BinEncoder},
};

/// The longest reply in one datagram, in bytes: it crosses every network unfragmented (DNS Flag Day 2020).
const DATAGRAM: u16 = 1232;
/// The longest reply in one datagram to an asker without EDNS, in bytes (RFC 1035 §4.2.1).
const DATAGRAM_PLAIN: u16 = 512;
/// A header, in bytes: what is shorter cannot even be refused.
const HEADER: usize = 12;

/// How an asker is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// One datagram each.
    Udp,
    /// A stream of messages with their lengths.
    Tcp,
}

/// A question worth an answer.
#[derive(Clone, Debug)]
pub struct Question {
    header: Metadata,
    query: Query,
    edns: Option<Edns>,
}

/// What to say.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// How it went.
    pub code: Code,
    /// Whether this server owns the name.
    pub authoritative: bool,
    /// Whether an upstream server vouches for it (RFC 4035 §3.2.3).
    pub authentic: bool,
    /// What was asked for.
    pub answers: Vec<Record>,
    /// Whose it is, for what is not there.
    pub authorities: Vec<Record>,
    /// What goes with it.
    pub additionals: Vec<Record>,
}

/// A response code with a default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub ResponseCode);

impl Default for Code {
    fn default() -> Self {
        Self(ResponseCode::NoError)
    }
}

impl Reply {
    /// One that holds nothing but its code.
    pub fn bare(code: ResponseCode) -> Self {
        Self { code: Code(code), ..Self::default() }
    }
}

/// What came in.
#[derive(Debug)]
pub enum Read {
    /// A question.
    Question(Box<Question>),
    /// Not to be answered by looking anything up, but with this.
    Refusal(Vec<u8>),
    /// Not to be answered at all: a reply that somebody sent here, so that no two servers talk to each other for ever, or
    /// too little to know whom to answer what.
    Noise,
}

/// Reads a message.
pub fn read(bytes: &[u8]) -> Read {
    if bytes.len() < HEADER || bytes[2] & 0x80 != 0 {
        return Read::Noise;
    }
    let refusal = |message: &Message| message.to_vec().map_or(Read::Noise, Read::Refusal);
    let Ok(mut message) = Message::from_vec(bytes) else {
        let id = u16::from_be_bytes([bytes[0], bytes[1]]);
        return refusal(&Message::error_msg(id, OpCode::Query, ResponseCode::FormErr));
    };
    let refused = match (&message.queries[..], message.metadata.op_code) {
        _ if message.version() > 0 => Some(ResponseCode::BADVERS),
        (_, opcode) if opcode != OpCode::Query => Some(ResponseCode::NotImp),
        ([query], _) => refused(query),
        _ => Some(ResponseCode::FormErr),
    };
    let Some(code) = refused else {
        let question = Question { header: message.metadata, query: message.queries.remove(0), edns: message.edns };
        return Read::Question(Box::new(question));
    };
    let mut reply = Message::new(message.metadata.id, MessageType::Response, message.metadata.op_code);
    reply.metadata = Metadata::response_from_request(&message.metadata);
    reply.metadata.response_code = code;
    reply.queries = message.queries.into_iter().take(1).collect();
    if message.edns.is_some() {
        reply.edns = Some(own_edns(false));
    }
    refusal(&reply)
}

/// Why a query is refused whatever its name is.
fn refused(query: &Query) -> Option<ResponseCode> {
    match query.query_type() {
        _ if query.query_class() != DNSClass::IN => Some(ResponseCode::Refused),
        // Nobody transfers the zone: it has no serial that would tell its states apart.
        RecordType::AXFR | RecordType::IXFR => Some(ResponseCode::Refused),
        RecordType::OPT | RecordType::ZERO | RecordType::TSIG => Some(ResponseCode::FormErr),
        _ => None,
    }
}

fn own_edns(dnssec: bool) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(DATAGRAM).set_version(0).set_dnssec_ok(dnssec);
    edns
}

impl Question {
    /// The name as it was asked for.
    pub fn name(&self) -> &Name {
        self.query.name()
    }

    /// The type of record.
    pub fn kind(&self) -> RecordType {
        self.query.query_type()
    }

    /// The whole query.
    pub fn query(&self) -> &Query {
        &self.query
    }

    /// Whether the asker takes records that prove others (DO).
    pub fn wants_proofs(&self) -> bool {
        self.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok)
    }

    /// Whether the asker checks proofs by itself (CD).
    pub fn checks_itself(&self) -> bool {
        self.header.checking_disabled
    }

    /// Whether the asker wants others to be asked (RD).
    pub fn wants_recursion(&self) -> bool {
        self.header.recursion_desired
    }

    /// The reply as bytes. What does not fit is left out, and the asker told to come again by TCP.
    pub fn write(&self, reply: Reply, recursive: bool, transport: Transport) -> Option<Vec<u8>> {
        let mut message = Message::new(self.header.id, MessageType::Response, OpCode::Query);
        message.metadata = Metadata::response_from_request(&self.header);
        message.metadata.response_code = reply.code.0;
        message.metadata.authoritative = reply.authoritative;
        message.metadata.authentic_data = reply.authentic;
        message.metadata.recursion_available = recursive;
        message.queries = vec![self.query.clone()];
        message.answers = reply.answers;
        message.authorities = reply.authorities;
        message.additionals = reply.additionals;
        message.edns = self.edns.as_ref().map(|edns| own_edns(edns.flags().dnssec_ok));
        let bytes = encode(&message)?;
        if bytes.len() <= usize::from(self.limit(transport)) {
            return Some(bytes);
        }
        encode(&message.truncate())
    }

    fn limit(&self, transport: Transport) -> u16 {
        match (transport, &self.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, Some(edns)) => edns.max_payload().clamp(DATAGRAM_PLAIN, DATAGRAM),
            (Transport::Udp, None) => DATAGRAM_PLAIN,
        }
    }
}

/// The message, without the records that no message has room for.
fn encode(message: &Message) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::from(DATAGRAM_PLAIN));
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(u16::MAX);
    match message.emit(&mut encoder) {
        Ok(()) => Some(bytes),
        Err(error) => {
            tracing::debug!(%error, "a DNS reply cannot be written");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{RData, rdata::TXT};
    use proptest::prelude::*;

    use super::*;

    fn query(edns: Option<u16>) -> Message {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii("Web.Warren.").unwrap(), RecordType::TXT));
        if let Some(payload) = edns {
            message.set_edns(own_edns(false)).edns.as_mut().unwrap().set_max_payload(payload);
        }
        message
    }

    fn question(edns: Option<u16>) -> Question {
        match read(&query(edns).to_vec().unwrap()) {
            Read::Question(question) => *question,
            other => panic!("{other:?}"),
        }
    }

    fn long(bytes: usize) -> Reply {
        let name = Name::from_ascii("web.warren.").unwrap();
        let texts = (0..bytes / 250).map(|_| "x".repeat(249)).collect();
        Reply { answers: vec![Record::from_rdata(name, 5, RData::TXT(TXT::new(texts)))], ..Reply::default() }
    }

    fn written(edns: Option<u16>, bytes: usize, transport: Transport) -> Message {
        let bytes = question(edns).write(long(bytes), true, transport).unwrap();
        Message::from_vec(&bytes).unwrap()
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_said() {
        let whole = |message: &Message| (message.truncation, message.answers.len());
        assert_eq!(whole(&written(None, 250, Transport::Udp)), (false, 1));
        assert_eq!(whole(&written(None, 750, Transport::Udp)), (true, 0));
        assert_eq!(whole(&written(Some(1232), 750, Transport::Udp)), (false, 1));
        assert_eq!(whole(&written(Some(65_000), 1500, Transport::Udp)), (true, 0));
        assert_eq!(whole(&written(Some(0), 750, Transport::Udp)), (true, 0));
        assert_eq!(whole(&written(None, 20_000, Transport::Tcp)), (false, 1));
        assert!(written(Some(1232), 1500, Transport::Udp).edns.is_some(), "also then");
        let reply = written(None, 250, Transport::Udp);
        assert_eq!(reply.queries[0].name().to_ascii(), "Web.Warren.", "as it was written");
    }

    #[test]
    fn what_is_no_query_of_ours_is_refused_or_ignored() {
        let code = |message: &Message| match read(&message.to_vec().unwrap()) {
            // By number: BADVERS and BADSIG are one (RFC 6895 §2.3).
            Read::Refusal(bytes) => Some(u16::from(Message::from_vec(&bytes).unwrap().metadata.response_code)),
            Read::Question(_) => None,
            Read::Noise => panic!("it is to be answered"),
        };
        assert_eq!(code(&query(None)), None);
        let mut twice = query(None);
        twice.add_query(twice.queries[0].clone());
        assert_eq!(code(&twice), Some(ResponseCode::FormErr.into()));
        let mut update = query(None);
        update.metadata.op_code = OpCode::Update;
        assert_eq!(code(&update), Some(ResponseCode::NotImp.into()));
        let mut newer = query(Some(1232));
        newer.edns.as_mut().unwrap().set_version(1);
        assert_eq!(code(&newer), Some(ResponseCode::BADVERS.into()));
        let mut chaos = query(None);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(code(&chaos), Some(ResponseCode::Refused.into()));
        let mut transfer = query(None);
        transfer.queries[0].set_query_type(RecordType::AXFR);
        assert_eq!(code(&transfer), Some(ResponseCode::Refused.into()));

        let mut response = query(None);
        response.metadata.message_type = MessageType::Response;
        assert!(matches!(read(&response.to_vec().unwrap()), Read::Noise));
        assert!(matches!(read(b"short"), Read::Noise));
        let Read::Refusal(bytes) = read(&[7, 9, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0]) else { panic!("it has a header") };
        let refusal = Message::from_vec(&bytes).unwrap();
        assert_eq!((refusal.metadata.id, refusal.metadata.response_code), (0x0709, ResponseCode::FormErr));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reply_larger_than_a_datagram(mut bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            if bytes.len() > 5 {
                // Often enough a plain query with one question.
                (bytes[2], bytes[4], bytes[5]) = (bytes[2] & 0x7f, 0, 1);
            }
            match read(&bytes) {
                Read::Refusal(reply) => prop_assert!(reply.len() <= 512),
                Read::Question(question) => {
                    let reply = question.write(long(2000), true, Transport::Udp);
                    prop_assert!(reply.is_none_or(|reply| reply.len() <= usize::from(DATAGRAM)));
                }
                Read::Noise => {}
            }
        }
    }
}
