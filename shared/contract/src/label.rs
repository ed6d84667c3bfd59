//! Labels: what people group VMs by, and how a group is asked for.

use std::{collections::BTreeMap, fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::name::{NameError, refuse};

/// The most labels of one VM.
pub const LABELS_MAX: usize = 32;

/// Labels by key.
pub type Labels = BTreeMap<LabelKey, LabelValue>;

fn within(text: &str, what: &'static str, allowed: impl Fn(u8) -> bool) -> Result<(), NameError> {
    if text.len() > 63 {
        return Err(refuse(what, text, "must not have more than 63 characters"));
    }
    if !text.bytes().all(|b| b.is_ascii_alphanumeric() || allowed(b)) {
        return Err(refuse(what, text, "may only hold letters, digits and '-', '_', '.', '/'"));
    }
    Ok(())
}

fn key(text: &str) -> Result<String, NameError> {
    const WHAT: &str = "label key";
    within(text, WHAT, |b| matches!(b, b'-' | b'_' | b'.' | b'/'))?;
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(refuse(WHAT, text, "must begin with a letter or digit"));
    }
    Ok(text.to_owned())
}

fn value(text: &str) -> Result<String, NameError> {
    within(text, "label value", |b| matches!(b, b'-' | b'_' | b'.' | b'/')).map(|()| text.to_owned())
}

crate::name::name!(
    /// The key of a label: 1 to 63 letters, digits and `-_./`, a letter or digit first.
    LabelKey,
    key,
    r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$"
);
crate::name::name!(
    /// The value of a label: up to 63 letters, digits and `-_./`; may be empty.
    LabelValue,
    value,
    r"^[A-Za-z0-9._/-]{0,63}$"
);

/// Reads `key=value`, or `key` for an empty value.
///
/// # Errors
/// The key or the value is none.
pub fn parse(text: &str) -> Result<(LabelKey, LabelValue), NameError> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    Ok((key.parse()?, value.parse()?))
}

/// Which VMs are meant: those with all of these labels; `key` alone takes any value. Written `ci=1,team`.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub struct LabelSelector(pub Vec<(LabelKey, Option<LabelValue>)>);

impl FromStr for LabelSelector {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let one = |part: &str| match part.split_once('=') {
            Some((key, value)) => Ok((key.parse()?, Some(value.parse()?))),
            None => Ok((part.parse()?, None)),
        };
        text.split(',').map(one).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (key, value)) in self.0.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            match value {
                Some(value) => write!(f, "{comma}{key}={value}")?,
                None => write!(f, "{comma}{key}")?,
            }
        }
        Ok(())
    }
}

impl Serialize for LabelSelector {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LabelSelector {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_read_as_they_are_written() {
        for text in ["ci=1", "ci", "ci=1,team=a/b,x", "ci="] {
            assert_eq!(text.parse::<LabelSelector>().unwrap().to_string(), text);
        }
        for text in ["", "=1", "a b", "ci=1,,x", "a=b=c", "-x", "a=\n"] {
            assert!(text.parse::<LabelSelector>().is_err(), "{text:?}");
        }
        assert_eq!(parse("ci").unwrap().1.as_str(), "");
    }
}
