//! The **address** of a repository: what its URL says of where it is, read so strictly that git and curl cannot read another host in it; and
//! the **hosts** that an operator lets repositories be fetched from.

use std::{net::Ipv6Addr, str::FromStr};

/// The schemes that are spoken, with their ports; `file` where it is allowed.
pub(crate) const SCHEMES: [(&str, u16); 4] = [("https", 443), ("http", 80), ("ssh", 22), ("git", 9418)];
/// The longest list of hosts, in patterns.
const PATTERNS_MAX: usize = 256;

/// Where a repository is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// One of [`SCHEMES`], or `file`.
    pub scheme: &'static str,
    /// In small letters, without a dot at its end; IPv6 in brackets. Empty for a file.
    pub host: String,
    /// The one said, or the scheme's.
    pub port: u16,
}

impl Address {
    /// Of a URL, or of what ssh is told in short: `git@host:path`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn of(url: &str) -> Result<Self, &'static str> {
        if url.contains(|c: char| c.is_control() || c.is_whitespace() || c == '\\') {
            return Err("it holds blanks, control characters or backslashes");
        }
        let Some((scheme, rest)) = url.split_once("://") else { return Self::of_short(url) };
        if scheme == "file" {
            return Ok(Self { scheme: "file", host: String::new(), port: 0 });
        }
        let known = SCHEMES.iter().find(|(known, _)| *known == scheme);
        let (scheme, port) = *known.ok_or("its scheme is none of https, http, ssh, git")?;
        if rest.contains(['?', '#']) {
            return Err("it has a query or a fragment");
        }
        let authority = rest.split('/').next().unwrap_or_default();
        let (user, at) = authority.rsplit_once('@').map_or((None, authority), |(user, at)| (Some(user), at));
        if user.is_some_and(|user| user.contains(':') || scheme.starts_with("http")) {
            return Err("it holds credentials; they belong into a credential helper or file");
        }
        if user.is_some_and(|user| !is_word(user)) {
            return Err("its user is no name");
        }
        let (host, own) = host_and_port(at).ok_or("it names no host")?;
        Ok(Self { scheme, host, port: own.unwrap_or(port) })
    }

    fn of_short(text: &str) -> Result<Self, &'static str> {
        let no_url = "it has no scheme such as https://";
        let (at, path) = text.split_once(':').ok_or(no_url)?;
        let (user, host) = at.split_once('@').ok_or(no_url)?;
        // With two colons it is a helper's, such as `ext::`.
        if !is_word(user) || path.is_empty() || path.starts_with([':', '-']) {
            return Err(no_url);
        }
        let (host, _) = host_and_port(host).ok_or("it names no host")?;
        Ok(Self { scheme: "ssh", host, port: 22 })
    }
}

/// Whether a text is a user or the like: no option, and nothing that a shell or a URL reads otherwise.
fn is_word(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b))
}

/// `host`, `host:port`, `[address]` or `[address]:port`.
fn host_and_port(text: &str) -> Option<(String, Option<u16>)> {
    let (host, rest) = match text.strip_prefix('[') {
        Some(inner) => {
            let (address, rest) = inner.split_once(']')?;
            (format!("[{}]", address.parse::<Ipv6Addr>().ok()?), rest)
        }
        None => {
            let end = text.find(':').unwrap_or(text.len());
            let host = text[..end].strip_suffix('.').unwrap_or(&text[..end]);
            let is_name = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            if host.is_empty() || host.starts_with(['-', '.']) || !host.bytes().all(is_name) {
                return None;
            }
            (host.to_ascii_lowercase(), &text[end..])
        }
    };
    let port = match rest.strip_prefix(':') {
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => Some(port.parse().ok()?),
        None if rest.is_empty() => None,
        _ => return None,
    };
    Some((host, port))
}

/// A list of hosts, as an operator writes it: names or addresses that commas part, `*.example.org` for all names below one, each with a
/// `:port` where only that one is meant. A name is allowed wherever it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosts(Vec<Pattern>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    below: bool,
    host: String,
    port: Option<u16>,
}

impl Hosts {
    /// Whether it names this one.
    pub(crate) fn name(&self, address: &Address) -> bool {
        self.0.iter().any(|Pattern { below, host, port }| {
            let same = match below {
                true => address.host.strip_suffix(host.as_str()).is_some_and(|front| front.ends_with('.')),
                false => address.host == *host,
            };
            same && port.is_none_or(|port| port == address.port)
        })
    }
}

impl FromStr for Hosts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let patterns = text.split(',').map(str::trim).map(|word| {
            let (below, name) = word.strip_prefix("*.").map_or((false, word), |name| (true, name));
            match host_and_port(name) {
                Some((host, port)) => Ok(Pattern { below, host, port }),
                None => Err(format!("{word:?} is no host: write git.example.org, *.example.org or 192.0.2.1:8443")),
            }
        });
        let patterns = patterns.collect::<Result<Vec<_>, _>>()?;
        if patterns.len() > PATTERNS_MAX {
            return Err(format!("more than {PATTERNS_MAX} hosts are named"));
        }
        Ok(Self(patterns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hosts_that_are_listed_are_allowed_however_they_are_written() {
        let hosts: Hosts = "git.example.org, *.forge.example, 192.0.2.1:8443,[2001:db8::1]".parse().unwrap();
        let allowed = |url: &str| Address::of(url).is_ok_and(|address| hosts.name(&address));
        for url in [
            "https://git.example.org/x",
            "https://GIT.example.org./x",
            "ssh://git@git.example.org:2222/x",
            "git@git.example.org:x/y",
            "git://a.b.forge.example/x",
            "https://192.0.2.1:8443/x",
            "https://[2001:DB8:0::1]/x",
        ] {
            assert!(allowed(url), "{url}");
        }
        for url in [
            "https://example.org/x",
            "https://forge.example/x",
            "https://evilforge.example/x",
            "https://git.example.org.evil.example/x",
            "https://192.0.2.1/x",
            "https://127.0.0.1/x",
            "https://0x7f000001/x",
            "https://[::1]/x",
            "https://git.example.org\\@127.0.0.1/x",
            "https://git.example.org@127.0.0.1/x",
            "https://git.example.org%2f@127.0.0.1/x",
            "https://127.0.0.1?git.example.org/x",
            "https://127.0.0.1#@git.example.org/x",
            "https://%67it.example.org/x",
            "git.example.org:x",
            "git@git.example.org::x",
        ] {
            assert!(!allowed(url), "{url}");
        }
    }

    #[test]
    fn what_git_could_take_for_an_option_or_a_program_is_no_address() {
        for url in [
            "",
            "x",
            "/x",
            "ext::sh -c id",
            "ext::id",
            "fd::3",
            "ssh://-oProxyCommand=x/y",
            "ssh://-x@h/y",
            "a@-h:x",
            "-a@h:x",
            "a@h:-x",
            "ftp://h/x",
            "https://h:x/y",
            "https://:80/y",
        ] {
            assert!(Address::of(url).is_err(), "{url}");
        }
        for list in ["", "a b", "https://x", "*", "a,,b", "x:99999", "-x"] {
            assert!(list.parse::<Hosts>().is_err(), "{list:?}");
        }
    }
}
