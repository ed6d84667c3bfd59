//! Sizes, always in whole MiB on the wire: `256` or `"256M"`, `"2G"`.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A size in MiB (2^20 bytes). JSON accepts a number of MiB or text such as `"512M"`, `"2G"`, `"1.5GiB"`;
/// it is always written as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct MebiBytes(pub u32);

/// Why a size was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("size {0:?} is not a number of MiB, nor a number followed by M or G, such as 512M or 2G")]
pub struct SizeError(String);

impl MebiBytes {
    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0 as u64 * 1024 * 1024
    }

    /// The smallest size that holds `bytes`.
    pub fn holding(bytes: u64) -> Self {
        Self(u32::try_from(bytes.div_ceil(1024 * 1024)).unwrap_or(u32::MAX))
    }
}

impl fmt::Display for MebiBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >= 1024 && self.0.is_multiple_of(1024) {
            write!(f, "{}G", self.0 / 1024)
        } else {
            write!(f, "{}M", self.0)
        }
    }
}

impl FromStr for MebiBytes {
    type Err = SizeError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || SizeError(text.chars().take(40).collect());
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let factor = match &text[digits.len()..] {
            "" | "M" | "m" | "MiB" | "Mi" => 1.0,
            "G" | "g" | "GiB" | "Gi" => 1024.0,
            "T" | "t" | "TiB" | "Ti" => 1024.0 * 1024.0,
            _ => return Err(refuse()),
        };
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(refuse());
        }
        let size = digits.parse::<f64>().map_err(|_| refuse())? * factor;
        if size.fract() != 0.0 || size > f64::from(u32::MAX) {
            return Err(refuse());
        }
        Ok(Self(size as u32))
    }
}

impl<'de> Deserialize<'de> for MebiBytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum NumberOrText {
            Number(u32),
            Text(String),
        }
        match NumberOrText::deserialize(deserializer).map_err(|_| {
            serde::de::Error::custom("a size is a whole number of MiB, or text such as \"512M\" or \"2G\"")
        })? {
            NumberOrText::Number(mib) => Ok(Self(mib)),
            NumberOrText::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

impl JsonSchema for MebiBytes {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "MebiBytes".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "a number of MiB, or text such as \"512M\" or \"2G\"",
            "type": ["integer", "string"],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, mib) in [("256", 256), ("256M", 256), ("2G", 2048), ("1.5G", 1536), ("1T", 1 << 20), ("64MiB", 64)] {
            assert_eq!(text.parse(), Ok(MebiBytes(mib)), "{text}");
        }
        for text in ["", "G", "-1", "1K", "0.3M", "9999999G", "1e3", "NaN", "2 G"] {
            assert!(text.parse::<MebiBytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn json_takes_a_number_or_text() {
        assert_eq!(serde_json::from_str::<MebiBytes>("256").unwrap(), MebiBytes(256));
        assert_eq!(serde_json::from_str::<MebiBytes>("\"2G\"").unwrap(), MebiBytes(2048));
        assert_eq!(serde_json::to_string(&MebiBytes(2048)).unwrap(), "2048");
    }
}
