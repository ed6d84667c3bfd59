//! A **reference** is how a request calls an image: by name, id or digest, or by how an id or a digest begins.

use contract::{ImageName, image::PREFIX_MIN};

/// How an id or a digest begins, in the words of the database; what cannot be meant matches nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Hexadecimal digits of a digest.
    pub digest: Option<String>,
    /// Hexadecimal digits and dashes of an id.
    pub id: Option<String>,
}

/// The name a reference may be.
pub fn name(reference: &str) -> Option<ImageName> {
    reference.parse().ok()
}

/// The beginning of an id or a digest it may be.
pub fn prefix(reference: &str) -> Option<Prefix> {
    /// Digits of a sha256.
    const DIGEST: usize = 64;
    /// An id as text.
    const ID: usize = 36;
    let hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let (digits, marked) = match reference.strip_prefix("sha256:") {
        Some(digits) => (digits, true),
        None => (reference, false),
    };
    let digest = (PREFIX_MIN..=DIGEST).contains(&digits.len()) && hex(digits);
    let id = !marked && (PREFIX_MIN..=ID).contains(&digits.len()) && hex(&digits.replace('-', ""));
    let found = Prefix { digest: digest.then(|| digits.to_owned()), id: id.then(|| digits.to_owned()) };
    (digest || id).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_read_as_all_it_may_be() {
        let long = "a".repeat(64);
        for (text, digest, id) in [
            ("0123abcd", true, true),
            ("sha256:0123abcd", true, false),
            ("0190d5a4-0000-7000-8000-000000000000", false, true),
            ("0190d5a4-00", false, true),
            (long.as_str(), true, false),
        ] {
            let found = prefix(text).unwrap();
            assert_eq!((found.digest.is_some(), found.id.is_some()), (digest, id), "{text}");
        }
        for text in ["", "0123abc", "sha256:", "sha256:0123ABCD", "sha256:%", "debian", "12345678%", &"a".repeat(65)] {
            assert_eq!(prefix(text), None, "{text}");
        }
    }
}
