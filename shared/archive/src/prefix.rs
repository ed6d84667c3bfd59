//! A **prefix** of a file: how much of it is there from its beginning on, and the digest by which both ends of a stream know it for the same.
//! Holes and zeros are one, and cost nothing: the digest is the SHA-256 of each block of 4 KiB that is not all zeros, after its number (u64,
//! big endian).

use sha2::{Digest, Sha256};

/// What is digested at once, in bytes.
pub const BLOCK: usize = 4096;

/// A prefix that grows.
#[derive(Clone, Debug, Default)]
pub struct Prefix {
    sha: Sha256,
    /// The end of the blocks digested; a multiple of [`BLOCK`].
    at: u64,
    /// What came after that and is no whole block yet.
    tail: Vec<u8>,
}

impl Prefix {
    /// Takes bytes that stand at that offset, behind all that were taken before; what is between is zeros.
    pub fn take(&mut self, offset: u64, mut bytes: &[u8]) {
        self.zeros_up_to(offset);
        while !bytes.is_empty() {
            let count = bytes.len().min(BLOCK - self.tail.len());
            if count == BLOCK {
                self.block(&bytes[..BLOCK]);
            } else {
                self.add(&bytes[..count]);
            }
            bytes = &bytes[count..];
        }
    }

    fn zeros_up_to(&mut self, offset: u64) {
        let gap = offset.saturating_sub(self.at + self.tail.len() as u64);
        if !self.tail.is_empty() {
            let count = usize::try_from(gap).unwrap_or(BLOCK).min(BLOCK - self.tail.len());
            self.add(&[0; BLOCK][..count]);
        }
        if self.tail.is_empty() && offset > self.at {
            self.at = offset / BLOCK as u64 * BLOCK as u64;
            self.tail.resize(usize::try_from(offset - self.at).unwrap_or_default(), 0);
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        if self.tail.len() == BLOCK {
            let block = std::mem::take(&mut self.tail);
            self.block(&block);
        }
    }

    fn block(&mut self, block: &[u8]) {
        if block.iter().any(|byte| *byte != 0) {
            self.sha.update((self.at / BLOCK as u64).to_be_bytes());
            self.sha.update(block);
        }
        self.at += BLOCK as u64;
    }

    /// How far it reaches: what is behind a whole block does not count.
    pub fn reached(&self) -> u64 {
        self.at
    }

    /// The digest of what it reaches over, in hexadecimal.
    pub fn digest(&self) -> String {
        self.sha.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Forgets what is behind what it reaches over.
    pub fn cut(&mut self) {
        self.tail.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with holes, in pieces that were cut anyhow.
    fn of(file: &[u8], cuts: &[usize], sparse: bool) -> Prefix {
        let mut prefix = Prefix::default();
        let mut from = 0;
        for to in cuts.iter().copied().chain([file.len()]) {
            if !sparse || file[from..to].iter().any(|byte| *byte != 0) {
                prefix.take(from as u64, &file[from..to]);
            }
            from = to;
        }
        prefix
    }

    #[test]
    fn the_digest_depends_on_the_content_only() {
        let mut file = vec![0; 40 * BLOCK + 77];
        for at in [0, 5000, 9 * BLOCK, 30 * BLOCK - 1, 40 * BLOCK + 3] {
            file[at] = 7;
        }
        let whole = of(&file, &[], false);
        assert_eq!(whole.reached(), 40 * BLOCK as u64);
        for cuts in [
            vec![1, 4095, 4097],
            vec![5000, 5001],
            (1..file.len()).step_by(777).collect(),
            vec![12 * BLOCK, 29 * BLOCK],
        ] {
            for sparse in [false, true] {
                let cut = of(&file, &cuts, sparse);
                assert_eq!((cut.reached(), cut.digest()), (whole.reached(), whole.digest()), "{cuts:?}");
            }
        }
        file[9 * BLOCK] = 8;
        assert_ne!(of(&file, &[], false).digest(), whole.digest());
        file[9 * BLOCK] = 0;
        file[10 * BLOCK] = 7;
        assert_ne!(of(&file, &[], false).digest(), whole.digest(), "the same block in another place");
    }

    #[test]
    fn what_is_cut_can_come_again() {
        let file: Vec<u8> = (0..3 * BLOCK + 9).map(|n| (n % 251) as u8 + 1).collect();
        let mut prefix = of(&file[..2 * BLOCK + 50], &[], false);
        prefix.cut();
        let at = prefix.reached();
        assert_eq!(at, 2 * BLOCK as u64);
        prefix.take(at, &file[2 * BLOCK..]);
        assert_eq!(prefix.digest(), of(&file, &[], false).digest());
    }
}
