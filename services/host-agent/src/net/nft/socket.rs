//! A netlink socket to nf_tables. It belongs to the namespace it was opened in, whoever uses it.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::atomic::{AtomicU32, Ordering},
};

use netlink_bindings::{
    builtin::NlmsgerrAttrs,
    nftables::{ChainedFinal, OpGetsetelemDump, Request},
    traits::{NetlinkChained, NetlinkRequest, Protocol},
};
use nix::{
    errno::Errno,
    sys::{
        socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt},
        time::TimeVal,
    },
};

use super::{Element, Set};
use crate::net::{NetError, system};

/// Longest datagram the kernel sends: its dumps and answers stay below 32 KiB.
const BUFFER: usize = 64 * 1024;
/// Room for what is sent and what waits to be read, in bytes: some hundred messages and as many answers.
const QUEUE: usize = 1 << 20;
/// How long an answer may take, in seconds. The kernel has answered before the request's system call returns.
const ANSWER: i64 = 5;
/// How often a set is looked at until it stands still.
const LOOKS: u32 = 10;
/// A netlink header's length (`struct nlmsghdr`), and what an error adds before its attributes: code and header.
const HEADER: usize = 16;
const ERROR: usize = 4 + HEADER;
/// Sequence numbers a batch may use.
const BATCH: u32 = 1 << 16;

/// The first sequence number of a batch or dump; no other under way has one of those that follow.
pub(super) fn next_sequence() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(BATCH, Ordering::Relaxed)
}

/// The socket.
pub(in crate::net) struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

/// One message of the kernel's.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl Socket {
    /// Opens one in the calling thread's namespace.
    pub(in crate::net) fn open() -> Result<Self, NetError> {
        let failed = || system("nf_tables cannot be reached; is the kernel's module nf_tables there?");
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd =
            socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter).map_err(failed())?;
        setsockopt(&fd, sockopt::SndBufForce, &QUEUE).map_err(failed())?;
        setsockopt(&fd, sockopt::RcvBufForce, &QUEUE).map_err(failed())?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER, 0)).map_err(failed())?;
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            let on: libc::c_int = 1;
            let length = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or_default();
            // SAFETY: `fd` is open, and `on` outlives the call, which reads `length` bytes of it.
            let set =
                unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const on).cast(), length) };
            Errno::result(set).map_err(failed())?;
        }
        Ok(Self { fd, buffer: vec![0; BUFFER] })
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetError> {
        let sent = send(self.fd.as_raw_fd(), bytes, MsgFlags::empty()).map_err(system("nf_tables takes no request"))?;
        if sent == bytes.len() { Ok(()) } else { Err(short("a request was cut off")) }
    }

    /// What the kernel has sent, as whole messages.
    fn receive(&mut self) -> Result<Vec<Message<'_>>, NetError> {
        let length = loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                received => break received.map_err(system("nf_tables does not answer"))?,
            }
        };
        let mut rest = self.buffer.get(..length).unwrap_or_default();
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let message = Message::first(rest).ok_or_else(|| short("an answer of nf_tables is cut off"))?;
            let whole = (HEADER + message.payload.len()).next_multiple_of(4).min(rest.len());
            messages.push(message);
            rest = &rest[whole..];
        }
        Ok(messages)
    }

    /// Sends a batch and reads what became of it; `about` says what each message is about.
    pub(super) fn transact(&mut self, batch: &ChainedFinal<'_>, about: &[String]) -> Result<(), NetError> {
        self.send(batch.payload())?;
        // The first and the last frame the batch and are not answered, except with what is wrong with all of it.
        let mut waiting = batch.chain_len().saturating_sub(2);
        while waiting > 0 {
            for message in self.receive()? {
                let Some(index) = batch.get_index(message.sequence) else { continue };
                if let Some((source, why)) = message.refusal() {
                    let what = about.get(index).cloned().unwrap_or_default();
                    return Err(NetError::Refused { what, why, source });
                }
                if index != 0 && index + 1 != batch.chain_len() {
                    waiting = waiting.saturating_sub(1);
                }
            }
        }
        Ok(())
    }

    /// Every element of a set; none where there is no such set.
    pub(in crate::net) fn elements(&mut self, set: &Set<'_>) -> Result<Vec<Element>, NetError> {
        for _ in 0..LOOKS {
            if let Some(elements) = self.look(set)? {
                return Ok(elements);
            }
        }
        Err(NetError::Unfit(format!("the set {} of {} changes too fast to be looked at", set.name, set.table)))
    }

    /// One look; nothing when the set changed meanwhile, as elements may then be missing.
    fn look(&mut self, set: &Set<'_>) -> Result<Option<Vec<Element>>, NetError> {
        let mut request = Request::new().op_getsetelem_dump(&set.table.header());
        request.encode().push_table_bytes(set.table.name.as_bytes()).push_set_bytes(set.name.as_bytes());
        let sequence = next_sequence();
        self.send(&framed(&request, sequence))?;
        let (mut elements, mut changed) = (Vec::new(), false);
        loop {
            for message in self.receive()?.into_iter().filter(|message| message.sequence == sequence) {
                changed |= i32::from(message.flags) & libc::NLM_F_DUMP_INTR != 0;
                if let Some((source, why)) = message.refusal() {
                    if source.raw_os_error() == Some(libc::ENOENT) {
                        return Ok(Some(Vec::new()));
                    }
                    let what = format!("a look at the set {} of {}", set.name, set.table);
                    return Err(NetError::Refused { what, why, source });
                }
                if message.ends() {
                    return Ok((!changed).then_some(elements));
                }
                elements.extend(listed(message.payload));
            }
        }
    }
}

/// The elements in one message of a dump; what cannot be read is none.
fn listed(payload: &[u8]) -> Vec<Element> {
    let (_, attributes) = OpGetsetelemDump::decode_reply(payload);
    let Ok(list) = attributes.get_elements() else { return Vec::new() };
    let read = list.get_elem().filter_map(|element| {
        let key = element.get_key().ok()?.get_value().ok()?;
        Some(Element::read(key, element.get_userdata().ok()))
    });
    read.collect()
}

/// A request with its header.
fn framed(request: &impl NetlinkRequest, sequence: u32) -> Vec<u8> {
    let kind = match request.protocol() {
        Protocol::Raw { request_type, .. } => request_type,
        Protocol::Generic(_) => 0,
    };
    let flags = request.flags() | u16::try_from(libc::NLM_F_REQUEST).unwrap_or_default();
    let length = u32::try_from(HEADER + request.payload().len()).unwrap_or_default();
    let mut bytes = Vec::with_capacity(HEADER + request.payload().len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(request.payload());
    bytes
}

fn short(what: &str) -> NetError {
    NetError::System { what: what.to_owned(), source: io::ErrorKind::UnexpectedEof.into() }
}

impl<'a> Message<'a> {
    /// The first of several; nothing when the bytes are too few.
    fn first(bytes: &'a [u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let half = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let length = usize::try_from(word(0)?).ok()?;
        Some(Self { kind: half(4)?, flags: half(6)?, sequence: word(8)?, payload: bytes.get(HEADER..length)? })
    }

    fn is(&self, kind: libc::c_int) -> bool {
        libc::c_int::from(self.kind) == kind
    }

    /// Whether it is the last of its answer.
    fn ends(&self) -> bool {
        self.is(libc::NLMSG_DONE) || self.is(libc::NLMSG_ERROR)
    }

    /// The error it tells of, and the kernel's words for it, if it has some.
    fn refusal(&self) -> Option<(io::Error, String)> {
        if !self.ends() {
            return None;
        }
        let code = i32::from_ne_bytes(self.payload.get(..4)?.try_into().ok()?);
        if code == 0 {
            return None;
        }
        let worded = i32::from(self.flags) & libc::NLM_F_ACK_TLVS != 0;
        let attributes = self.payload.get(ERROR..).filter(|_| worded && self.is(libc::NLMSG_ERROR)).unwrap_or_default();
        let words = NlmsgerrAttrs::new(attributes).get_msg().ok().map(|text| text.to_string_lossy().into_owned());
        Some((io::Error::from_raw_os_error(code.saturating_neg()), words.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_off_is_no_message() {
        assert!(Message::first(&[]).is_none());
        assert!(Message::first(&[0; 16]).is_none(), "shorter than its header");
        let mut lying = [0; 20];
        lying[0] = 200;
        assert!(Message::first(&lying).is_none(), "longer than what is there");
        lying[0] = 20;
        assert!(Message::first(&lying).is_some_and(|message| message.refusal().is_none()));
    }
}
