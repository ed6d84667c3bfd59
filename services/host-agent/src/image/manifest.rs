//! Manifests: from what a name points to, through indexes, to the layers and configuration for this machine
//! (OCI image-spec 1.1; Docker's schema 2 has the same shape).

use contract::{
    ApiError,
    image::{CONFIG_MAX, ImageConfig},
};
use serde::Deserialize;

use super::{bundle, identity::Identity, limits::Limits, source::Source};

/// How deep indexes may be nested.
const DEPTH_MAX: usize = 3;

/// A blob by digest and size.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Descriptor {
    pub digest: String,
    pub size: u64,
    #[serde(default, rename = "mediaType")]
    media_type: String,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

impl Descriptor {
    /// Of bytes that no manifest names.
    pub(super) fn new(digest: &str, size: u64) -> Self {
        let (media_type, annotations) = (String::new(), std::collections::BTreeMap::new());
        Self { digest: digest.to_owned(), size, media_type, platform: None, annotations }
    }
}

#[derive(Clone, Debug, Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

/// An index has `manifests`, a manifest has `config` and `layers`.
#[derive(Debug, Deserialize)]
struct Document {
    #[serde(rename = "artifactType")]
    artifact_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

#[derive(Debug, Deserialize)]
struct Configuration {
    architecture: String,
    #[serde(default)]
    config: Option<Execution>,
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Execution {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// An image for this machine.
#[derive(Clone, Debug)]
pub(super) struct Resolved {
    pub digest: String,
    pub architecture: String,
    pub config: ImageConfig,
    /// Each layer with the digest of its unpacked bytes.
    pub layers: Vec<(Descriptor, String)>,
    /// Of a bundle: what its first layer holds.
    pub identity: Option<Identity>,
    /// Digest of the kernel in a bundle's second layer, if it has one.
    pub kernel: Option<String>,
}

/// This machine's architecture in OCI's words.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Finds the image for this machine.
pub(super) async fn resolve(source: &Source, limits: &Limits) -> Result<Resolved, ApiError> {
    let (mut bytes, mut digest) = source.root(limits.document).await?;
    for _ in 0..=DEPTH_MAX {
        let document: Document = parse(&bytes, "manifest")?;
        match (document.manifests, document.config, document.layers) {
            (Some(manifests), _, _) => {
                let next = choose(manifests, source.wanted())?;
                check(&next)?;
                bytes = source.manifest(&next, limits.document).await?;
                digest = next.digest;
            }
            (None, Some(config), Some(layers)) if document.artifact_type.as_deref() == Some(bundle::ARTIFACT_TYPE) => {
                return bundled(source, limits, config, layers).await;
            }
            (None, Some(config), Some(layers)) => return image(source, limits, digest, config, layers).await,
            _ => return Err(ApiError::invalid_argument("the manifest is neither an index nor an image manifest")),
        }
    }
    Err(ApiError::invalid_argument(format!("the image's indexes are nested more than {DEPTH_MAX} deep")))
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T, ApiError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ApiError::invalid_argument(format!("the image's {what} cannot be read: {error}")))
}

/// Reads bytes as [`resolve`] reads documents; tells whether they are one.
pub(super) fn examine(bytes: &[u8]) -> bool {
    let document = parse::<Document>(bytes, "manifest").is_ok_and(|document| match document.manifests {
        Some(manifests) => choose(manifests, None).is_ok_and(|next| check(&next).is_ok()),
        None => {
            let layers = document.layers.unwrap_or_default();
            document.config.into_iter().chain(layers).map(|blob| check(&blob)).all(|checked| checked.is_ok())
        }
    });
    document || parse::<Configuration>(bytes, "configuration").is_ok() || Identity::read(bytes).is_ok()
}

/// Refuses a configuration that rows, messages and lists have no room for, before anything is downloaded.
fn check_config(config: &ImageConfig) -> Result<(), ApiError> {
    match config.size() {
        ..=CONFIG_MAX if config.texts().any(|text| text.contains('\0')) => {
            Err(ApiError::invalid_argument("what the image wants to be run holds a NUL character"))
        }
        ..=CONFIG_MAX => Ok(()),
        bytes => Err(ApiError::invalid_argument(format!(
            "what the image wants to be run (entrypoint, command, environment, …) has {bytes} bytes, more than {CONFIG_MAX}"
        ))),
    }
}

/// A digest becomes a path, so its form is checked before anything else.
fn check(descriptor: &Descriptor) -> Result<(), ApiError> {
    check_digest(&descriptor.digest)
}

/// Refuses what is no sha256 digest.
pub(super) fn check_digest(digest: &str) -> Result<(), ApiError> {
    let hash = digest.strip_prefix("sha256:").unwrap_or_default();
    if hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
        return Ok(());
    }
    let digest: String = digest.chars().take(80).collect();
    Err(ApiError::invalid_argument(format!("{digest:?} is no sha256 digest")))
}

fn choose(manifests: Vec<Descriptor>, wanted: Option<&str>) -> Result<Descriptor, ApiError> {
    const NAME: &str = "org.opencontainers.image.ref.name";
    let named = |descriptor: &Descriptor| {
        let name = descriptor.annotations.get(NAME);
        wanted.is_none() || name.is_none() || name.map(String::as_str) == wanted
    };
    let fits = |descriptor: &Descriptor| match &descriptor.platform {
        Some(platform) => platform.os == "linux" && platform.architecture == architecture(),
        None => true,
    };
    let offered: Vec<String> = manifests
        .iter()
        .filter_map(|descriptor| descriptor.platform.as_ref())
        .map(|platform| format!("{}/{}", platform.os, platform.architecture))
        .collect();
    let mut fitting: Vec<_> =
        manifests.into_iter().filter(|descriptor| fits(descriptor) && named(descriptor)).collect();
    match fitting.len() {
        0 => Err(ApiError::not_found(format!("the image is not there for linux/{}", architecture()))
            .hint(format!("it is offered for: {}", offered.join(", ")))),
        // The first match, as the specification says of indexes.
        _ => Ok(fitting.swap_remove(0)),
    }
}

async fn image(
    source: &Source,
    limits: &Limits,
    digest: String,
    config: Descriptor,
    layers: Vec<Descriptor>,
) -> Result<Resolved, ApiError> {
    check(&config)?;
    layers.iter().try_for_each(check)?;
    if layers.len() > limits.layers {
        return Err(ApiError::invalid_argument(format!("the image has more than {} layers", limits.layers)));
    }
    let packed = layers.iter().try_fold(0u64, |sum, layer| sum.checked_add(layer.size));
    if packed.is_none_or(|packed| packed > limits.packed) {
        return Err(ApiError::invalid_argument(format!("the image's layers have more than {} bytes", limits.packed)));
    }
    let bytes = source.document(&config, limits.document).await?;
    let configuration: Configuration = parse(&bytes, "configuration")?;
    if configuration.rootfs.diff_ids.len() != layers.len() {
        return Err(ApiError::invalid_argument(
            "the image's configuration names another number of layers than its manifest",
        ));
    }
    if configuration.architecture != architecture() {
        return Err(ApiError::failed_precondition(format!(
            "the image is for {}, this host for {}",
            configuration.architecture,
            architecture()
        )));
    }
    let execution = configuration.config.unwrap_or_default();
    let config = ImageConfig {
        entrypoint: execution.entrypoint.unwrap_or_default(),
        cmd: execution.cmd.unwrap_or_default(),
        env: execution.env.unwrap_or_default(),
        working_dir: execution.working_dir.unwrap_or_default(),
        user: execution.user.unwrap_or_default(),
    };
    check_config(&config)?;
    Ok(Resolved {
        digest,
        architecture: configuration.architecture,
        config,
        layers: layers.into_iter().zip(configuration.rootfs.diff_ids).collect(),
        identity: None,
        kernel: None,
    })
}

/// A bundle's manifest: its configuration is the image's identity, so its digest is the image's.
async fn bundled(
    source: &Source,
    limits: &Limits,
    config: Descriptor,
    layers: Vec<Descriptor>,
) -> Result<Resolved, ApiError> {
    check(&config)?;
    layers.iter().try_for_each(check)?;
    let kernel = kernel_layer(&layers)?;
    let mut layers = layers.into_iter().filter(|layer| layer.media_type == bundle::ROOTFS_TYPE);
    let (Some(rootfs), None) = (layers.next(), layers.next()) else {
        return Err(ApiError::invalid_argument("the bundle has not exactly one root filesystem"));
    };
    let identity = Identity::read(&source.document(&config, limits.document).await?)?;
    if identity.architecture != architecture() {
        return Err(ApiError::failed_precondition(format!(
            "the image is for {}, this host for {}",
            identity.architecture,
            architecture()
        )));
    }
    if identity.kernel.is_some() {
        return Err(ApiError::failed_precondition(
            "the bundle's image is one with its kernel, which this host does not know",
        )
        .hint("update the host-agent"));
    }
    if rootfs.size > limits.packed || identity.rootfs.size > limits.unpacked {
        return Err(ApiError::invalid_argument(format!(
            "the bundle's root filesystem has {} bytes, packed {}: more than the {} and {} this host takes",
            identity.rootfs.size, rootfs.size, limits.unpacked, limits.packed
        )));
    }
    let (layer, kernel) = kernel.unzip();
    if let Some(layer) = layer.as_ref().filter(|layer| layer.size > limits.packed) {
        return Err(ApiError::invalid_argument(format!(
            "the bundle's kernel has {} bytes, packed: more than the {} this host takes",
            layer.size, limits.packed
        )));
    }
    let raw = identity.rootfs.digest.clone();
    let program = identity.config.clone().into();
    check_config(&program)?;
    Ok(Resolved {
        digest: config.digest,
        architecture: identity.architecture.clone(),
        config: program,
        layers: std::iter::once((rootfs, raw)).chain(layer.zip(kernel.clone())).collect(),
        identity: Some(identity),
        kernel,
    })
}

/// The layer of a bundle that is a kernel, with the digest of that, if it has one.
fn kernel_layer(layers: &[Descriptor]) -> Result<Option<(Descriptor, String)>, ApiError> {
    let mut kernels = layers.iter().filter(|layer| layer.media_type == bundle::KERNEL_TYPE);
    match (kernels.next(), kernels.next()) {
        (None, _) => Ok(None),
        (Some(layer), None) => {
            let digest = layer.annotations.get(bundle::KERNEL_DIGEST).map(String::as_str).unwrap_or_default();
            check_digest(digest)?;
            Ok(Some((layer.clone(), digest.to_owned())))
        }
        _ => Err(ApiError::invalid_argument("the bundle has more than one kernel")),
    }
}
