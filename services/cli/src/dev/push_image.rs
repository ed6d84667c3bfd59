//! Images made of one tar: pushed to a registry on this machine, or written as an OCI layout. `deploy/` needs them, and no
//! tool for it is in every distribution.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    path::Path,
};

use contract::ApiError;
use flate2::{Compression, write::GzEncoder};
use oci_client::{
    Reference,
    client::{Client, ClientConfig, ClientProtocol},
    manifest::OciManifest,
    secrets::RegistryAuth,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_util::io::ReaderStream;

use super::{
    args::{OciLayoutArgs, PushImageArgs},
    layout::at,
};
use crate::{
    failure::{Failure, Outcome},
    output,
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A blob's digest and size.
struct Blob {
    digest: String,
    size: u64,
}

impl Blob {
    fn of(bytes: &[u8]) -> Self {
        Self { digest: digest(Sha256::digest(bytes).as_slice()), size: bytes.len() as u64 }
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": self.digest, "size": self.size })
    }
}

fn digest(hash: &[u8]) -> String {
    format!("sha256:{}", hex::encode(hash))
}

/// A writer that hashes and counts what goes through it.
struct Hashed<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Compresses the tar into `out`; the layer, and the digest of the tar itself.
fn compress(tar: &Path, out: File) -> io::Result<(Blob, String)> {
    let mut reader = BufReader::with_capacity(1 << 20, File::open(tar)?);
    let hashed = Hashed { inner: BufWriter::with_capacity(1 << 20, out), hash: Sha256::new(), size: 0 };
    let mut encoder = GzEncoder::new(hashed, Compression::fast());
    let (mut plain, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let n = reader.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        plain.update(&buffer[..n]);
        encoder.write_all(&buffer[..n])?;
    }
    let mut hashed = encoder.finish()?;
    hashed.flush()?;
    let layer = Blob { digest: digest(hashed.hash.finalize().as_slice()), size: hashed.size };
    Ok((layer, digest(plain.finalize().as_slice())))
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The image's configuration and manifest.
fn documents(layer: &Blob, diff_id: &str) -> (Vec<u8>, Vec<u8>) {
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let config = json!({
        "architecture": architecture(), "os": "linux",
        "config": { "Env": [path], "Cmd": ["/bin/sh"] },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": Blob::of(&config).descriptor(CONFIG),
        "layers": [layer.descriptor(LAYER)],
    });
    (config, manifest.to_string().into_bytes())
}

/// Pushes a tar as an image of one layer to a registry that is spoken to over http.
///
/// # Errors
/// The tar cannot be read, or the registry refuses it.
pub async fn push(args: PushImageArgs) -> Result<Outcome, Failure> {
    let reference: Reference = args.reference.parse().map_err(|error| {
        ApiError::invalid_argument(format!("{:?} is no registry reference: {error}", args.reference))
    })?;
    // Beside the tar, where there was room for it already; without a name, so that a crash leaves nothing.
    let (file, copy) = unnamed(&args.rootfs_tar).map_err(|error| at(&args.rootfs_tar, "compressed", &error))?;
    let tar = args.rootfs_tar.clone();
    let compressed = tokio::task::spawn_blocking(move || compress(&tar, file)).await;
    let compressed = compressed.map_err(|error| ApiError::internal(format!("compressing ended: {error}")))?;
    let (layer, diff_id) = compressed.map_err(|error| at(&args.rootfs_tar, "compressed", &error))?;
    let (config, manifest) = documents(&layer, &diff_id);

    let client = Client::new(ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() });
    let refused = |error| ApiError::unavailable(format!("{reference} cannot be pushed: {error}"));
    client.store_auth_if_needed(reference.resolve_registry(), &RegistryAuth::Anonymous).await;
    if !client.blob_exists(&reference, &layer.digest).await.map_err(refused)? {
        let stream = ReaderStream::with_capacity(tokio::fs::File::from_std(copy), 1 << 20);
        let stream =
            futures::StreamExt::map(stream, |chunk| chunk.map_err(oci_client::errors::OciDistributionError::from));
        client.push_blob_stream(&reference, stream, &layer.digest, Some(layer.size)).await.map_err(refused)?;
    }
    let config_digest = Blob::of(&config).digest;
    client.push_blob(&reference, config, &config_digest).await.map_err(refused)?;
    let manifest: OciManifest = serde_json::from_slice(&manifest)
        .map_err(|error| ApiError::internal(format!("the manifest made here cannot be read: {error}")))?;
    client.push_manifest(&reference, &manifest).await.map_err(refused)?;
    output::text(&format!("{reference}\n"))?;
    Ok(Outcome::Done)
}

/// A file without a name beside another, and a second handle that reads it from its beginning.
fn unnamed(beside: &Path) -> io::Result<(File, File)> {
    let path = beside.with_extension(format!("{}.layer", std::process::id()));
    let writer = File::options().write(true).create_new(true).open(&path)?;
    let reader = File::open(&path);
    std::fs::remove_file(&path)?;
    Ok((writer, reader?))
}

/// Writes a tar as an OCI layout with one image of one layer. The layout appears whole or not at all.
///
/// # Errors
/// The tar cannot be read, or the layout is there or cannot be written.
pub fn layout(args: OciLayoutArgs) -> Result<Outcome, Failure> {
    if args.out.exists() {
        return Err(ApiError::already_exists(format!("{} exists", args.out.display())).into());
    }
    let fresh = args.out.with_extension(format!("{}.tmp", std::process::id()));
    let written = write_layout(&args.rootfs_tar, &fresh).and_then(|()| std::fs::rename(&fresh, &args.out));
    if let Err(error) = written {
        if let Err(error) = std::fs::remove_dir_all(&fresh) {
            tracing::debug!(%error, "a half written layout stays");
        }
        return Err(at(&args.out, "written", &error).into());
    }
    Ok(Outcome::Done)
}

fn write_layout(tar: &Path, dir: &Path) -> io::Result<()> {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    let name = |blob: &Blob| blobs.join(blob.digest.trim_start_matches("sha256:"));
    let fresh = blobs.join("layer");
    let (layer, diff_id) = compress(tar, File::create(&fresh)?)?;
    std::fs::rename(&fresh, name(&layer))?;
    let (config, manifest) = documents(&layer, &diff_id);
    std::fs::write(name(&Blob::of(&config)), &config)?;
    let described = Blob::of(&manifest);
    std::fs::write(name(&described), &manifest)?;
    let index = json!({ "schemaVersion": 2, "manifests": [described.descriptor(MANIFEST)] });
    std::fs::write(dir.join("index.json"), index.to_string())?;
    std::fs::write(dir.join("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }).to_string())
}
