//! A layer on its way into the filesystem: inflated, hashed and applied at once, in one pass.

mod apply;
mod pipe;
pub(super) mod tar;

use std::io::Read;

use contract::ApiError;

use super::manifest::Descriptor;

pub(super) use apply::Applier;

/// The longest path, in bytes (Linux's PATH_MAX).
const PATH_MAX: usize = 4096;
/// The longest name, in bytes (Linux's NAME_MAX).
const NAME_MAX: usize = 255;

/// A layer as it is kept: gzip, zstd or plain.
pub(super) struct Packed {
    pub descriptor: Descriptor,
    /// The digest of the unpacked bytes, where somebody said it.
    pub diff_id: Option<String>,
    /// Its bytes. It may wait for a download, on a thread that may be blocked, and comes to its end only if digest and size
    /// were right; an [`ApiError`] in its [`std::io::Error`] is told as it is. It ends with one once the staging is cancelled.
    pub reader: Box<dyn Read + Send>,
}

/// The error of an entry that a host does not take.
fn refused(digest: &str, path: &[u8], why: &str) -> ApiError {
    let path: String = String::from_utf8_lossy(path).chars().take(200).collect();
    ApiError::invalid_argument(format!("the layer {digest} has an entry {path:?} that {why}"))
}

/// A path's components: never `..`, never too long; absolute ones begin at the image's root.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, String> {
    if path.len() > PATH_MAX {
        return Err(format!("has a path of more than {PATH_MAX} bytes"));
    }
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("leads out of its directory".to_owned()),
            part if part.len() > NAME_MAX || part.contains(&0) => {
                return Err("has a name no filesystem takes".to_owned());
            }
            part => parts.push(part),
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        assert_eq!(components(b"./usr//bin/./sh").unwrap(), [&b"usr"[..], b"bin", b"sh"]);
        assert_eq!(components(b"/etc/passwd").unwrap(), [&b"etc"[..], b"passwd"]);
        assert_eq!(components(b"caf\xe9").unwrap(), [b"caf\xe9"]);
        assert!(components(b"a/../../etc").is_err());
        assert!(components(&[b'a'; 256]).is_err());
        assert!(components(b"a\0b").is_err());
    }
}
