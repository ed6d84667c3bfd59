//! **SSH public keys** as people give them, one line each.

use crate::{
    error::ApiError,
    vm::{SSH_KEY_BYTES_MAX, SSH_KEYS_MAX},
};

/// The key types guest-agent's ssh server takes.
const KEY_TYPES: [&str; 8] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "ssh-dss",
];

/// Checks ssh public keys.
///
/// # Errors
/// `invalid_argument`: too many, or one is none.
pub fn check(keys: &[String]) -> Result<(), ApiError> {
    if keys.len() > SSH_KEYS_MAX {
        return Err(ApiError::invalid_argument(format!("{} ssh keys are too many", keys.len()))
            .hint(format!("a VM takes {SSH_KEYS_MAX}")));
    }
    keys.iter().enumerate().try_for_each(|(n, line)| ssh_key(n + 1, line))
}

/// Checks that a line is one OpenSSH public key: type, base64 blob that names the same type, comment.
fn ssh_key(n: usize, line: &str) -> Result<(), ApiError> {
    let refuse = |why: &str| {
        Err(ApiError::invalid_argument(format!("ssh key {n} {why}"))
            .hint("give the line of a .pub file, such as ~/.ssh/id_ed25519.pub"))
    };
    if line.len() > SSH_KEY_BYTES_MAX {
        return refuse("is too long for a public key");
    }
    if line.contains(|c: char| c.is_control()) {
        return refuse("is more than one line, or holds control characters");
    }
    if line.contains("PRIVATE KEY") {
        return refuse("is a private key: never give it away");
    }
    let mut words = line.split_ascii_whitespace();
    let (Some(kind), Some(blob)) = (words.next(), words.next()) else {
        return refuse("is not of the form `type base64 [comment]`");
    };
    if !KEY_TYPES.contains(&kind) {
        return refuse("does not begin with a known key type such as ssh-ed25519");
    }
    match blob_type(blob) {
        Some(inner) if inner == kind.as_bytes() => Ok(()),
        Some(_) => refuse("says one type and holds another"),
        None => refuse("does not hold base64 of a public key"),
    }
}

/// The type inside a key's blob: base64 of a length (four bytes, big endian) and so many bytes (RFC 4253 §6.6).
fn blob_type(blob: &str) -> Option<Vec<u8>> {
    let bytes = base64(blob)?;
    let length = u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = bytes.get(4..4usize.checked_add(length)?)?;
    // A key without key material is none.
    (bytes.len() > 4 + length + 4).then(|| kind.to_vec())
}

/// Decodes base64 (RFC 4648 §4); a few lines here instead of a crate for one use.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let (mut bytes, mut bits, mut filled) = (Vec::with_capacity(text.len() * 3 / 4), 0u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        filled += 6;
        if filled >= 8 {
            filled -= 8;
            bytes.push((bits >> filled) as u8);
            bits &= (1 << filled) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_line_that_is_what_it_says() {
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJk5hJv8rEx3l2Qm0kTkq3zN0a0y8mX0kq1l0nB1bZ0a me@example";
        check(&[key.to_owned()]).unwrap();
        for (wrong, why) in [
            (key.replace("ssh-ed25519", "ssh-rsa"), "one type"),
            (format!("{key}\nrm"), "more than one line"),
            ("ssh-ed25519 AAAA!".to_owned(), "base64"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----".to_owned(), "private key"),
            ("x".repeat(9000), "too long"),
        ] {
            assert!(check(&[wrong]).unwrap_err().message.contains(why), "{why}");
        }
        assert!(check(&vec![key.to_owned(); SSH_KEYS_MAX + 1]).unwrap_err().message.contains("too many"));
    }
}
