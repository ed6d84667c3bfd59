//! The **list** of an export, as a guest may have made it: counted before it is believed, because a few bytes of JSON become many in memory.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, BufReader, Read, Seek},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use contract::worktree::ChangeList;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, IgnoredAny, SeqAccess, Visitor},
};

use super::{CHUNK, Limits, damaged, shown};
use crate::{ReadError, export::LIST};

/// The most texts of what was left out.
const WARNINGS_MAX: u64 = 64;

/// The lengths of a list's lists, and nothing else of it.
#[derive(Deserialize)]
struct Lengths {
    changes: Length,
    #[serde(default)]
    warnings: Length,
    #[serde(default)]
    losses: Length,
}

#[derive(Default)]
struct Length(u64);

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Count;
        impl<'de> Visitor<'de> for Count {
            type Value = Length;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Length, A::Error> {
                let mut count = 0;
                while items.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Length(count))
            }
        }
        deserializer.deserialize_seq(Count)
    }
}

/// Reads a list by way of a file in the quarantine, whose length the caller has bounded.
///
/// # Errors
/// It is none, or has more changes than `limits` says.
pub(super) fn read(content: &mut impl Read, quarantine: &Path, limits: Limits) -> Result<ChangeList, ReadError> {
    let path = quarantine.join(LIST);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(|source| ReadError::Write { path: path.clone(), source })?;
    // It needs no name: nothing of it is left, however this ends.
    fs::remove_file(&path).map_err(|source| ReadError::Write { path: path.clone(), source })?;
    // An error of reading the guest and one of writing here look alike; both end it.
    io::copy(content, &mut file).map_err(damaged)?;
    let lengths: Lengths = parse(&mut file)?;
    if lengths.changes.0 > limits.entries {
        return Err(ReadError::TooMuch(format!("{} changes", limits.entries)));
    }
    if lengths.warnings.0.max(lengths.losses.0) > WARNINGS_MAX {
        return Err(ReadError::Hostile(format!("its list has more than {WARNINGS_MAX} warnings")));
    }
    parse(&mut file)
}

fn parse<T: DeserializeOwned>(file: &mut fs::File) -> Result<T, ReadError> {
    file.rewind().map_err(damaged)?;
    serde_json::from_reader(BufReader::with_capacity(CHUNK, file)).map_err(|error| match error.is_io() {
        true => damaged(error.into()),
        false => ReadError::Hostile(format!("its list cannot be read: {}", shown(error.to_string().as_bytes()))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_counted_before_it_is_taken_into_memory() {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { entries: 3, bytes: 1 };
        let read = |text: String| super::read(&mut text.as_bytes(), dir.path(), limits);
        let list = |changes: usize, warnings: usize| {
            let join = |item: &str, count| vec![item; count].join(",");
            let (changes, warnings) = (join(r#"{"path":"a"}"#, changes), join(r#""""#, warnings));
            format!(r#"{{"generation":null,"about":{{"origin":""}},"changes":[{changes}],"warnings":[{warnings}]}}"#)
        };
        assert_eq!(read(list(3, 64)).unwrap().changes.len(), 3);
        assert!(matches!(read(list(4, 0)), Err(ReadError::TooMuch(_))));
        assert!(matches!(read(list(0, 65)), Err(ReadError::Hostile(_))));
        assert!(matches!(read("{".into()), Err(ReadError::Hostile(_))));
        // What is said twice counts the second time, too.
        let twice = list(0, 0).replacen('{', &format!(r#"{{"changes":[{}],"#, [r#"{"path":"a"}"#; 9].join(",")), 1);
        assert!(matches!(read(twice), Err(ReadError::Hostile(_))));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
