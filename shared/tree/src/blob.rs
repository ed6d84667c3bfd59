//! The **digest** of a file's content: git's blob id, so that both sides and git itself name contents alike.

use std::io::{self, Read};

use sha1::{Digest, Sha1};

/// How much is read at once, in bytes.
const CHUNK: usize = 128 * 1024;

/// Computes a blob id piece by piece; the length has to be known at the beginning.
#[derive(Clone)]
pub struct BlobHasher(Sha1);

impl BlobHasher {
    /// Of a content of so many bytes.
    pub fn new(size: u64) -> Self {
        let mut hash = Sha1::new();
        hash.update(format!("blob {size}\0"));
        Self(hash)
    }

    /// The next bytes of it.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The id.
    pub fn finish(self) -> [u8; 20] {
        self.0.finalize().into()
    }
}

/// The git blob id of a content of `size` bytes, in hexadecimal: SHA-1 over `blob <size>\0` and the bytes.
///
/// # Errors
/// It cannot be read, or has another length.
pub fn blob_id(mut reader: impl Read, size: u64) -> io::Result<String> {
    let mut hash = BlobHasher::new(size);
    let mut buffer = vec![0; CHUNK.min(usize::try_from(size).unwrap_or(CHUNK) + 1)];
    let mut left = size;
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hash.update(&buffer[..count]);
        left = left.checked_sub(count as u64).ok_or_else(|| changed("it became longer while it was read"))?;
    }
    if left > 0 {
        return Err(changed("it became shorter while it was read"));
    }
    Ok(hex::encode(hash.finish()))
}

fn changed(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_gits_and_lengths_must_be_true() {
        assert_eq!(blob_id(&b""[..], 0).unwrap(), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(blob_id(&b"hello\n"[..], 6).unwrap(), "ce013625030ba8dba906f756967f9e9ca394464a");
        assert!(blob_id(&b"hello\n"[..], 5).is_err());
        assert!(blob_id(&b"hello\n"[..], 7).is_err());
    }
}
