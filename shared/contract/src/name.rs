//! Names people choose. Parsed at the edge, so that inside Warren a name is always safe as a DNS
//! label, a path component and a NATS subject token.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a name was refused; its text names the rule and the offending value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} {rule}")]
pub struct NameError {
    what: &'static str,
    value: String,
    rule: &'static str,
}

pub(crate) fn refuse(what: &'static str, value: &str, rule: &'static str) -> NameError {
    // A hostile name may be megabytes long; the error quotes its beginning only.
    let value = value.chars().take(80).collect();
    NameError { what, value, rule }
}

/// Parses a DNS label (RFC 1123 §2.1: 1 to 63 of `a-z 0-9 -`, no hyphen at either end; lower case only).
pub(crate) fn dns_label(text: &str, what: &'static str) -> Result<String, NameError> {
    if text.is_empty() || text.len() > 63 {
        return Err(refuse(what, text, "must have 1 to 63 characters"));
    }
    if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return Err(refuse(what, text, "may only hold a-z, 0-9 and '-'"));
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err(refuse(what, text, "must not begin or end with '-'"));
    }
    Ok(text.to_owned())
}

fn vm_name(text: &str) -> Result<String, NameError> {
    let label = dns_label(text, "VM name")?;
    if uuid::Uuid::parse_str(&label).is_ok() {
        return Err(refuse("VM name", text, "must not look like an id"));
    }
    Ok(label)
}

fn image_name(text: &str) -> Result<String, NameError> {
    dotted(text, "image name")
}

fn kernel_name(text: &str) -> Result<String, NameError> {
    dotted(text, "kernel name")
}

/// Parses what is like a DNS label but may hold dots and underscores, as versions do.
fn dotted(text: &str, what: &'static str) -> Result<String, NameError> {
    if text.is_empty() || text.len() > 63 {
        return Err(refuse(what, text, "must have 1 to 63 characters"));
    }
    if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.')) {
        return Err(refuse(what, text, "may only hold a-z, 0-9, '-', '_' and '.'"));
    }
    if !text.as_bytes()[0].is_ascii_alphanumeric() {
        return Err(refuse(what, text, "must begin with a letter or digit"));
    }
    if uuid::Uuid::parse_str(text).is_ok() {
        return Err(refuse(what, text, "must not look like an id"));
    }
    Ok(text.to_owned())
}

/// Defines a name: text that is parsed where it comes in.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $parse:path, $pattern:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(#[schemars(regex(pattern = $pattern))] String);

        impl $name {
            /// The text of the name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = $crate::name::NameError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $parse(text).map(Self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
pub(crate) use name;

name!(
    /// The name of a VM: a DNS label, so that `<name>.<domain>` resolves.
    VmName,
    vm_name,
    r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
);
name!(
    /// The name of an image in this lab. It never holds `:`, `/` or `@`, which is how a registry
    /// reference is told from a name.
    ImageName,
    image_name,
    r"^[a-z0-9][a-z0-9._-]{0,62}$"
);
name!(
    /// The name of a kernel: one of the lab's, or one that a host has in a directory of its own.
    KernelName,
    kernel_name,
    r"^[a-z0-9][a-z0-9._-]{0,62}$"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names_are_taken() {
        for name in ["web", "web-1", "0", &"a".repeat(63)] {
            assert_eq!(name.parse::<VmName>().unwrap().as_str(), name);
        }
        for name in ["debian", "debian-12.5_slim", "9front"] {
            assert_eq!(name.parse::<ImageName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn names_that_could_escape_a_path_or_a_subject_are_refused() {
        for name in [
            "",
            ".",
            "..",
            "../../etc",
            "a.b",
            "a b",
            "a>",
            "*",
            "web\n",
            "-web",
            "web-",
            "WEB",
            "wéb",
            &"a".repeat(64),
        ] {
            assert!(name.parse::<VmName>().is_err(), "{name:?}");
        }
        for name in ["", ".", "..", "../etc", ".hidden", "a/b", "a:b", "a@b", "a>b", "a\0"] {
            assert!(name.parse::<ImageName>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_name_cannot_shadow_an_id() {
        assert!("0190d5a4-0000-7000-8000-000000000000".parse::<VmName>().is_err());
    }

    #[test]
    fn json_is_checked_like_text() {
        assert!(serde_json::from_str::<VmName>("\"../x\"").is_err());
        assert_eq!(serde_json::from_str::<VmName>("\"web\"").unwrap().to_string(), "web");
    }
}
