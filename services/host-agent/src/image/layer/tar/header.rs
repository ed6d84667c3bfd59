//! A tar header: 512 bytes of fixed fields (POSIX.1-1988 ustar, the older v7, and GNU's use of the same bytes).

use super::{BLOCK, Error, malformed};

/// One header block, its checksum right.
pub(super) struct Header<'a>(&'a [u8; BLOCK]);

impl<'a> Header<'a> {
    /// Takes a block for a header.
    pub(super) fn read(block: &'a [u8; BLOCK]) -> Result<Self, Error> {
        let header = Self(block);
        let said = header.number(148, 8, "checksum")?;
        let sum = |add: fn(i64, u8) -> i64| {
            let field = 148..156;
            block.iter().enumerate().fold(0, |all, (n, byte)| add(all, if field.contains(&n) { b' ' } else { *byte }))
        };
        // Some old archivers added up signed bytes.
        if said == sum(|all, byte| all + i64::from(byte))
            || said == sum(|all, byte| all + i64::from(byte.cast_signed()))
        {
            Ok(header)
        } else {
            Err(malformed("a header's checksum is wrong"))
        }
    }

    /// A field of text: up to its first NUL.
    pub(super) fn text(&self, at: usize, length: usize) -> &'a [u8] {
        let field = &self.0[at..at + length];
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(length);
        &field[..end]
    }

    /// A field of a number: octal digits, or base 256 where the first bit is set (GNU's, for what octal cannot hold).
    pub(super) fn number(&self, at: usize, length: usize, what: &str) -> Result<i64, Error> {
        number(&self.0[at..at + length]).ok_or_else(|| malformed(format!("a header's {what} is no number")))
    }

    /// The entry's type, `0` for what predates types.
    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    /// The name with ustar's prefix. GNU has other things where the prefix is.
    pub(super) fn path(&self) -> Vec<u8> {
        let (name, prefix) = (self.text(0, 100), self.text(345, 155));
        if &self.0[257..263] != b"ustar\0" || prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    pub(super) fn bytes(&self, at: usize, length: usize) -> &'a [u8] {
        &self.0[at..at + length]
    }

    pub(super) fn link(&self) -> Vec<u8> {
        self.text(157, 100).to_vec()
    }

    pub(super) fn size(&self) -> Result<u64, Error> {
        u64::try_from(self.number(124, 12, "size")?).map_err(|_| malformed("an entry's size is negative"))
    }

    /// Major and minor number.
    pub(super) fn device(&self) -> Result<(u32, u32), Error> {
        let part = |at| u32::try_from(self.number(at, 8, "device number")?).map_err(|_| malformed("no device number"));
        Ok((part(329)?, part(337)?))
    }
}

/// A number as headers have it; none where the field says nothing that is one, or more than 63 bits hold.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    match field.first()? {
        // Two's complement, whose sign is the second bit.
        first if first & 0x80 != 0 => {
            let negative = first & 0x40 != 0;
            let fill = if negative { 0xff } else { 0 };
            let bytes: Vec<u8> = field
                .iter()
                .enumerate()
                .map(|(n, byte)| match n {
                    0 if negative => *byte,
                    0 => byte & 0x7f,
                    _ => *byte,
                })
                .collect();
            let (high, low) = bytes.split_at(bytes.len().saturating_sub(8));
            if high.iter().any(|byte| *byte != fill) {
                return None;
            }
            let mut value = [fill; 8];
            value[8 - low.len()..].copy_from_slice(low);
            let value = i64::from_be_bytes(value);
            ((value < 0) == negative).then_some(value)
        }
        _ => {
            let digits = field.trim_ascii_start();
            let digits = digits.split(|byte| *byte == 0 || *byte == b' ').next()?;
            digits.iter().try_fold(0i64, |all, digit| match digit {
                b'0'..=b'7' => all.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
                _ => None,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"77777777777\0"), Some(0o77_777_777_777));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1]), Some((2 << 32) + 1));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        for wrong in [
            &b"0000689\0"[..],
            b"x",
            &[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(number(wrong), None, "{wrong:?}");
        }
    }
}
