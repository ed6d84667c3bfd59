//! The **identity** of an image that no registry's manifest describes: a canonical JSON document of what it is, whose SHA-256 is
//! the image's digest. It is the configuration of the image's bundle ([`super::bundle`]) too, so an image that was registered, promoted
//! or built here has the same digest wherever its bundle is pulled.
//!
//! Nothing of when, where or by whom it was made is in it, nor how it is packed.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use contract::{ApiError, image::ImageConfig};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::manifest;

/// The document's media type.
pub(super) const MEDIA_TYPE: &str = "application/vnd.warren.image.config.v1+json";
/// The only kind of root filesystem there is.
const EXT4: &str = "ext4";
/// How much is read at once.
const PIECE: usize = 1 << 20;

/// What an image is. The order of the fields is part of the format: it is how they are written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Identity {
    media_type: String,
    /// OCI architecture.
    pub architecture: String,
    /// The root filesystem.
    pub rootfs: Rootfs,
    /// The digest of the kernel it names, if it names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// What its author asked to be run.
    pub config: Execution,
}

/// A root filesystem as it is in the file, holes read as zeros.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Rootfs {
    format: String,
    /// `sha256:…` of all its bytes.
    pub digest: String,
    /// Bytes.
    pub size: u64,
}

/// [`ImageConfig`] with its fields pinned: one that is added there changes no digest that is known already.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Execution {
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    env: Vec<String>,
    working_dir: String,
    user: String,
}

impl From<ImageConfig> for Execution {
    fn from(config: ImageConfig) -> Self {
        let ImageConfig { entrypoint, cmd, env, working_dir, user } = config;
        Self { entrypoint, cmd, env, working_dir, user }
    }
}

impl From<Execution> for ImageConfig {
    fn from(config: Execution) -> Self {
        let Execution { entrypoint, cmd, env, working_dir, user } = config;
        Self { entrypoint, cmd, env, working_dir, user }
    }
}

impl Identity {
    /// Of an image with that root filesystem (its digest as [`digest_of_file`] gives it).
    pub(super) fn new(
        architecture: &str,
        digest: String,
        size: u64,
        kernel: Option<String>,
        config: ImageConfig,
    ) -> Self {
        Self {
            media_type: MEDIA_TYPE.to_owned(),
            architecture: architecture.to_owned(),
            rootfs: Rootfs { format: EXT4.to_owned(), digest, size },
            kernel,
            config: config.into(),
        }
    }

    /// The document.
    ///
    /// # Errors
    /// None in practice: it holds nothing but text and numbers.
    pub(super) fn document(&self) -> Result<Vec<u8>, ApiError> {
        serde_json::to_vec(self).map_err(|error| ApiError::internal(format!("an identity cannot be written: {error}")))
    }

    /// The image's digest.
    ///
    /// # Errors
    /// As [`Identity::document`].
    pub(super) fn digest(&self) -> Result<String, ApiError> {
        self.document().map(|document| digest(&document))
    }

    /// Reads a document that anybody may have written.
    ///
    /// # Errors
    /// `invalid_argument`: it is none, of a newer version, or written otherwise than [`Identity::document`] does, which would give one image
    /// two digests.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, ApiError> {
        let refuse = |why: &str| {
            ApiError::invalid_argument(format!("the bundle's configuration cannot be used: {why}"))
                .hint("it may have been made by a newer version of Warren")
        };
        let read: Self = serde_json::from_slice(bytes).map_err(|error| refuse(&error.to_string()))?;
        if read.media_type != MEDIA_TYPE || read.rootfs.format != EXT4 {
            return Err(refuse("it is of another media type or filesystem"));
        }
        manifest::check_digest(&read.rootfs.digest)?;
        read.kernel.as_deref().map_or(Ok(()), manifest::check_digest)?;
        if read.document()? != bytes {
            return Err(refuse("it is not in its canonical form"));
        }
        Ok(read)
    }
}

/// `sha256:…` of some bytes.
pub(super) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// `sha256:…` and length of a file, holes read as zeros. Blocking; ends early when `go_on` says so.
///
/// # Errors
/// It cannot be read, or `go_on` said no (`Interrupted`).
pub(super) fn digest_of_file(path: &Path, go_on: impl Fn(u64) -> bool) -> io::Result<(String, u64)> {
    let mut file = File::open(path)?;
    let (mut hasher, mut length, mut piece) = (Sha256::new(), 0, vec![0; PIECE]);
    loop {
        let read = match file.read(&mut piece) {
            Ok(0) => return Ok((format!("sha256:{}", hex::encode(hasher.finalize())), length)),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&piece[..read]);
        length += read as u64;
        if !go_on(read as u64) {
            return Err(io::ErrorKind::Interrupted.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        let config = ImageConfig { cmd: vec!["/bin/sh".into()], ..ImageConfig::default() };
        Identity::new("amd64", digest(b"x"), 1, None, config)
    }

    #[test]
    fn one_image_has_one_document_and_one_digest() {
        let document = identity().document().unwrap();
        assert_eq!(Identity::read(&document).unwrap(), identity());
        // Whoever changes the format gives every image another digest.
        assert_eq!(
            String::from_utf8(document.clone()).unwrap(),
            format!(
                r#"{{"mediaType":"application/vnd.warren.image.config.v1+json","architecture":"amd64","rootfs":{{"format":"ext4","digest":"{}","size":1}},"config":{{"entrypoint":[],"cmd":["/bin/sh"],"env":[],"workingDir":"","user":""}}}}"#,
                digest(b"x")
            )
        );
        assert_eq!(identity().digest().unwrap(), digest(&document));
        let other = Identity { kernel: Some(digest(b"k")), ..identity() };
        assert_ne!(other.digest().unwrap(), identity().digest().unwrap());
    }

    #[test]
    fn a_document_in_another_form_is_refused() {
        let document = String::from_utf8(identity().document().unwrap()).unwrap();
        for wrong in [
            document.replacen('{', "{ ", 1),
            document.replacen("ext4", "xfs", 1),
            document.replacen("sha256:", "sha256:../", 1),
            document.replacen("\"size\":1", "\"size\":-1", 1),
            document.replacen("{\"media", "{\"new\":1,\"media", 1),
            document[1..].to_owned(),
        ] {
            assert_eq!(
                Identity::read(wrong.as_bytes()).unwrap_err().code,
                contract::ErrorCode::InvalidArgument,
                "{wrong}"
            );
        }
    }
}
