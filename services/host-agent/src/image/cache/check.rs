//! A running **check** of bytes against the digest and the size they should have.

use std::io;

use contract::ApiError;
use sha2::{Digest, Sha256};

use crate::image::source::mismatch;

/// Bytes that were seen so far.
pub(in crate::image) struct Check {
    hasher: Sha256,
    length: u64,
    digest: String,
    size: u64,
}

impl Check {
    /// Of bytes that should have such a digest (`sha256:…`) and be so many.
    pub(in crate::image) fn new(digest: &str, size: u64) -> Self {
        Self { hasher: Sha256::new(), length: 0, digest: digest.to_owned(), size }
    }

    pub(in crate::image) fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
    }

    pub(in crate::image) fn length(&self) -> u64 {
        self.length
    }

    /// Whether they were the ones, now that nothing comes any more.
    ///
    /// # Errors
    /// `failed_precondition`: a digest mismatch.
    pub(in crate::image) fn finish(&self) -> Result<(), ApiError> {
        if self.length != self.size {
            let got = if self.length < self.size { "shorter" } else { "longer" };
            return Err(mismatch("a blob", &self.digest, &format!("{got} than its {} bytes", self.size)));
        }
        let digest = format!("sha256:{}", hex::encode(self.hasher.clone().finalize()));
        if digest == self.digest { Ok(()) } else { Err(mismatch("a blob", &self.digest, &digest)) }
    }
}

/// An error in a reader's words; [`told`] gives it back.
pub(in crate::image) fn as_io(error: ApiError) -> io::Error {
    io::Error::other(error)
}

/// The error a reader of a blob gave, where it was one of ours.
pub(in crate::image) fn told(error: &io::Error) -> Option<ApiError> {
    error.get_ref()?.downcast_ref::<ApiError>().cloned()
}
