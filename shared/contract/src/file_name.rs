//! **File names** as Linux has them: bytes without NUL, usually UTF-8 but not always.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A name or a path, byte for byte. In JSON it is a text where it is UTF-8, and `{"hex":"…"}` where it is not.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName(pub Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Text {
    Utf8(String),
    Hex { hex: String },
}

impl FileName {
    /// As a path.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }
}

impl From<&OsStr> for FileName {
    fn from(name: &OsStr) -> Self {
        Self(name.as_bytes().to_vec())
    }
}

impl From<FileName> for OsString {
    fn from(name: FileName) -> Self {
        Self::from_vec(name.0)
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_path().display())
    }
}

impl fmt::Debug for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_path(), f)
    }
}

impl Serialize for FileName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => Text::Hex { hex: hex::encode(&self.0) }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for FileName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = match Text::deserialize(deserializer)? {
            Text::Utf8(text) => text.into_bytes(),
            Text::Hex { hex } => hex::decode(hex).map_err(D::Error::custom)?,
        };
        if bytes.contains(&0) {
            return Err(D::Error::custom("a file name holds a NUL byte"));
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_comes_back_and_a_nul_does_not() {
        for name in [&b"plain"[..], b"new\nline \xe2\x82\xac", b"\xff\xfe", b""] {
            let text = serde_json::to_string(&FileName(name.to_vec())).unwrap();
            assert_eq!(serde_json::from_str::<FileName>(&text).unwrap().0, name);
        }
        assert_eq!(serde_json::to_string(&FileName(vec![0xff])).unwrap(), r#"{"hex":"ff"}"#);
        assert!(serde_json::from_str::<FileName>(r#""a\u0000b""#).is_err());
        assert!(serde_json::from_str::<FileName>(r#"{"hex":"6100"}"#).is_err());
    }
}
