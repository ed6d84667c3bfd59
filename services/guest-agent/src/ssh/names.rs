//! Host names for port forwarding: literals, `/etc/hosts`, then DNS. Done by ourselves, because a static binary
//! cannot load the image's name service modules.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use tokio::net::UdpSocket;

/// How long one server has for one answer.
const ANSWER_WAIT: Duration = Duration::from_secs(3);
/// The most servers asked.
const SERVERS_MAX: usize = 3;
/// The longest answer, in bytes: a UDP answer without EDNS has at most 512.
const ANSWER_MAX: usize = 512;
const DNS_PORT: u16 = 53;
const TYPE_A: u16 = 1;
const CLASS_IN: u16 = 1;

/// The addresses of a host name.
///
/// # Errors
/// It has none, or no server could be asked.
pub async fn resolve(name: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = name.parse() {
        return Ok(vec![address]);
    }
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let known = in_hosts(&hosts, name);
    if !known.is_empty() {
        return Ok(known);
    }
    let resolver = Resolver::parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    let mut names = vec![name.trim_end_matches('.').to_owned()];
    if !name.contains('.') {
        names.splice(0..0, resolver.search.iter().map(|domain| format!("{name}.{domain}")));
    }
    for name in names {
        for server in resolver.servers.iter().take(SERVERS_MAX) {
            match tokio::time::timeout(ANSWER_WAIT, ask(*server, &name)).await {
                Ok(Ok(addresses)) if !addresses.is_empty() => return Ok(addresses),
                // This server says that there is none: the next would say the same.
                Ok(Ok(_)) => break,
                Ok(Err(error)) => tracing::debug!("the name server {server} cannot be asked: {error}"),
                Err(_) => tracing::debug!("the name server {server} does not answer"),
            }
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
}

fn in_hosts(hosts: &str, name: &str) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for line in hosts.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse().ok()) else { continue };
        if words.any(|word| word.eq_ignore_ascii_case(name)) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() && name.eq_ignore_ascii_case("localhost") {
        addresses.push(Ipv4Addr::LOCALHOST.into());
    }
    addresses
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Resolver {
    servers: Vec<IpAddr>,
    search: Vec<String>,
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    resolver.servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()))
                }
                Some("search" | "domain") => resolver.search = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        resolver
    }
}

async fn ask(server: IpAddr, name: &str) -> io::Result<Vec<IpAddr>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect((server, DNS_PORT)).await?;
    let mut id = [0; 2];
    // SAFETY: getrandom writes at most the buffer's length into it; a short read leaves a worse id and no harm.
    unsafe { libc::getrandom(id.as_mut_ptr().cast(), id.len(), 0) };
    let question = question(id, name).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a host name"))?;
    socket.send(&question).await?;
    let mut answer = [0; ANSWER_MAX];
    loop {
        let length = socket.recv(&mut answer).await?;
        if let Some(addresses) = addresses(&answer[..length], &question) {
            return Ok(addresses);
        }
    }
}

/// A query for a name's IPv4 addresses.
fn question(id: [u8; 2], name: &str) -> Option<Vec<u8>> {
    // Recursion desired, one question.
    let mut message = vec![id[0], id[1], 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    if name.len() > 253 {
        return None;
    }
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        message.push(length);
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&TYPE_A.to_be_bytes());
    message.extend_from_slice(&CLASS_IN.to_be_bytes());
    Some(message)
}

/// The addresses in an answer; nothing when it is no answer to that question.
fn addresses(answer: &[u8], question: &[u8]) -> Option<Vec<IpAddr>> {
    const HEADER: usize = 12;
    let echoed = answer.get(HEADER..question.len())?;
    if answer[..2] != question[..2] || answer[2] & 0x80 == 0 || !echoed.eq_ignore_ascii_case(&question[HEADER..]) {
        return None;
    }
    let count = u16::from_be_bytes([answer[6], answer[7]]);
    let mut rest = &answer[question.len()..];
    let mut found = Vec::new();
    for _ in 0..count {
        let Some(record) = skip_name(rest).filter(|record| record.len() >= 10) else { break };
        let length = usize::from(u16::from_be_bytes([record[8], record[9]]));
        let Some(data) = record.get(10..10 + length) else { break };
        if record[..4] == [0, TYPE_A as u8, 0, CLASS_IN as u8] && length == 4 {
            found.push(IpAddr::from([data[0], data[1], data[2], data[3]]));
        }
        rest = &record[10 + length..];
    }
    Some(found)
}

fn skip_name(mut bytes: &[u8]) -> Option<&[u8]> {
    loop {
        match *bytes.first()? {
            0 => return bytes.get(1..),
            // A pointer ends a name.
            pointer if pointer >= 0xc0 => return bytes.get(2..),
            length => bytes = bytes.get(1 + usize::from(length)..)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_gives_its_addresses_and_a_cut_one_does_not_panic() {
        let question = question([7, 9], "db.warren").unwrap();
        let mut answer = question.clone();
        (answer[2], answer[7]) = (0x81, 2);
        // An alias, then the address behind it.
        answer.extend_from_slice(&[0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 2, 0xc0, 12]);
        answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 77, 0, 9]);
        assert_eq!(addresses(&answer, &question), Some(vec!["10.77.0.9".parse().unwrap()]));
        for cut in 0..answer.len() {
            let found = addresses(&answer[..cut], &question);
            assert!(found.is_none_or(|found| found.is_empty()), "cut at {cut}");
        }
        answer[0] = 8;
        assert_eq!(addresses(&answer, &question), None);
    }

    #[test]
    fn names_that_cannot_be_asked_for_are_refused() {
        assert!(question([0, 0], "a..b").is_none());
        assert!(question([0, 0], &"x".repeat(64)).is_none());
        assert!(question([0, 0], "").is_none());
    }

    #[test]
    fn hosts_and_resolv_conf_are_read() {
        assert_eq!(in_hosts("10.0.0.1 a b # c\nbad x\n", "B"), ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert!(in_hosts("10.0.0.1 a # c", "c").is_empty());
        assert_eq!(in_hosts("", "localhost").len(), 1);
        let resolver = Resolver::parse("# x\nsearch warren lab\nnameserver 10.77.0.1\nnameserver nonsense\n");
        assert_eq!(
            resolver,
            Resolver { servers: vec!["10.77.0.1".parse().unwrap()], search: vec!["warren".into(), "lab".into()] }
        );
    }
}
