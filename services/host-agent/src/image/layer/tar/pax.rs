//! POSIX's extended headers: records of `length key=value`, which say of the next entry what its header cannot hold.

use super::{Error, malformed, sparse::Piece};

/// The most extended attributes of an entry: ext4 holds them in one block, and each takes 16 bytes at the least.
const XATTRS_MAX: usize = 256;

/// What an extended header says; later records win.
#[derive(Debug, Default)]
pub(super) struct Extended {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: Sparse,
}

/// GNU's records of files with holes, formats 0.0, 0.1 and 1.0.
#[derive(Debug, Default)]
pub(super) struct Sparse {
    pub major: Option<u64>,
    pub name: Option<Vec<u8>>,
    pub real_size: Option<u64>,
    pub pieces: Vec<Piece>,
    /// 0.0 has an offset in one record and the length in the next.
    offset: Option<u64>,
    /// A map was named, also an empty one.
    pub mapped: bool,
}

impl Extended {
    /// Takes the records of one extended header in.
    pub(super) fn read(&mut self, mut records: &[u8]) -> Result<(), Error> {
        while !records.is_empty() {
            let (key, value, rest) =
                record(records).ok_or_else(|| malformed("an extended header has no such record"))?;
            self.take(key, value)?;
            records = rest;
        }
        Ok(())
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        let decimal = || text(value).and_then(|text| text.parse().ok());
        let number = || -> Result<Option<u64>, Error> {
            let wrong = || malformed(format!("the extended header's {} is no number", key.escape_ascii()));
            // Empty takes an earlier record back.
            if value.is_empty() { Ok(None) } else { decimal().map(Some).ok_or_else(wrong) }
        };
        let name = || -> Result<Option<Vec<u8>>, Error> {
            let wrong =
                || malformed(format!("the extended header's {} has a name no filesystem takes", key.escape_ascii()));
            if value.contains(&0) { Err(wrong()) } else { Ok((!value.is_empty()).then(|| value.to_vec())) }
        };
        match key {
            b"path" => self.path = name()?,
            b"linkpath" => self.link = name()?,
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" => self.mtime = moment(value)?,
            b"GNU.sparse.major" => self.sparse.major = number()?,
            b"GNU.sparse.name" => self.sparse.name = name()?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.real_size = number()?,
            b"GNU.sparse.numblocks" => self.sparse.mapped = true,
            b"GNU.sparse.offset" => self.sparse.offset = number()?,
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.offset.take().ok_or_else(|| malformed("a sparse map has a length alone"))?;
                self.sparse.push(offset, number()?.unwrap_or(0))?;
            }
            b"GNU.sparse.map" => self.sparse.read_list(value)?,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattr(name.to_vec(), value.to_vec())?;
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let wrong = || malformed("an extended attribute cannot be decoded");
                    self.xattr(percent(name).ok_or_else(wrong)?, base64(value).ok_or_else(wrong)?)?;
                }
            }
        }
        Ok(())
    }

    /// libarchive says each attribute twice, in its own words and in star's.
    fn xattr(&mut self, name: Vec<u8>, value: Vec<u8>) -> Result<(), Error> {
        self.xattrs.retain(|(known, _)| *known != name);
        if self.xattrs.len() == XATTRS_MAX {
            return Err(malformed(format!("an entry has more than {XATTRS_MAX} extended attributes")));
        }
        self.xattrs.push((name, value));
        Ok(())
    }
}

impl Sparse {
    /// Whether it tells where a file has data.
    pub(super) fn is_map(&self) -> bool {
        self.mapped || self.major == Some(1)
    }

    fn push(&mut self, offset: u64, length: u64) -> Result<(), Error> {
        Piece::push(&mut self.pieces, offset, length)
    }

    /// Format 0.1: `offset,length,offset,length`.
    fn read_list(&mut self, list: &[u8]) -> Result<(), Error> {
        self.mapped = true;
        self.pieces.clear();
        let mut numbers = list.split(|byte| *byte == b',').filter(|part| !part.is_empty());
        let wrong = || malformed("a sparse map has what is no number");
        let parse = |part: &[u8]| text(part).and_then(|text| text.parse().ok()).ok_or_else(wrong);
        while let Some(offset) = numbers.next() {
            let length = numbers.next().ok_or_else(wrong)?;
            self.push(parse(offset)?, parse(length)?)?;
        }
        Ok(())
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// The first record's key and value, and what follows it.
fn record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().position(|byte| *byte == b' ')?;
    let length: usize = text(&records[..space])?.parse().ok()?;
    let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &records[length..]))
}

/// Seconds with a fraction, e.g. `1700000000.25` or `-1.5`; nothing for an empty value.
fn moment(value: &[u8]) -> Result<Option<(i64, u32)>, Error> {
    if value.is_empty() {
        return Ok(None);
    }
    let parse = || -> Option<(i64, u32)> {
        let text = text(value)?;
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let nanoseconds: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
        let (seconds, nanoseconds): (i64, u32) = (whole.parse().ok()?, nanoseconds.parse().ok()?);
        // The fraction goes away from zero, nanoseconds only ever forwards.
        Some(if whole.starts_with('-') && nanoseconds > 0 {
            (seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)
        } else {
            (seconds, nanoseconds)
        })
    };
    parse().map(Some).ok_or_else(|| malformed("an entry's time is no number"))
}

/// `%41` for `A`, as in URLs.
fn percent(name: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut at) = (Vec::with_capacity(name.len()), 0);
    while let Some(byte) = name.get(at) {
        if *byte == b'%' {
            out.push(u8::from_str_radix(text(name.get(at + 1..at + 3)?)?, 16).ok()?);
            at += 3;
        } else {
            out.push(*byte);
            at += 1;
        }
    }
    Some(out)
}

/// Base64 (RFC 4648), which libarchive writes without padding.
fn base64(value: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(value.len() * 3 / 4);
    let (mut bits, mut count) = (0u32, 0);
    for byte in value.iter().filter(|byte| **byte != b'=') {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(records: &[u8]) -> Extended {
        let mut extended = Extended::default();
        extended.read(records).unwrap();
        extended
    }

    #[test]
    fn records_say_what_headers_cannot() {
        let said = read(b"13 path=x\xff/y\n14 mtime=-1.5\n16 size=1234567\n11 size=12\n");
        assert_eq!(said.path.unwrap(), b"x\xff/y");
        assert_eq!(said.mtime, Some((-2, 500_000_000)));
        assert_eq!(said.size, Some(12), "the last record counts");
        let said = read(b"37 SCHILY.xattr.user.comment=a\nb=c\0d\n46 LIBARCHIVE.xattr.user.comm%65nt=YQpiPWMAZA\n");
        assert_eq!(said.xattrs, [(b"user.comment".to_vec(), b"a\nb=c\0d".to_vec())]);
    }

    #[test]
    fn broken_records_are_refused() {
        for wrong in [
            &b"x"[..],
            b"9999 path=a\n",
            b"0 path=a\n",
            b"9 path=ab\n",
            b"7 path\n",
            b"10 size=x\n",
            b"18446744073709551615 a=b\n",
            b"28 GNU.sparse.numbytes=100\n",
            b"13 mtime=1.x\n",
            b"12 path=a\0b\n",
            b"16 linkpath=a\0b\n",
            b"23 GNU.sparse.name=a\0b\n",
        ] {
            assert!(Extended::default().read(wrong).is_err(), "{:?}", wrong.escape_ascii().to_string());
        }
    }
}
