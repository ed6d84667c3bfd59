//! A **registry** as a pull sees it: manifests and blobs, from its mirrors first and then from itself. Nothing is believed before its digest
//! was checked; who gave what is not what its digest says is not asked for it again. A push sees a [`Destination`].

mod answer;
mod body;
mod credentials;
mod destination;
mod endpoint;
mod login;
mod mirrors;
mod tour;
mod upload;

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use contract::ApiError;
use futures::future::BoxFuture;
use oci_client::Reference;
use reqwest::{Url, header::HeaderValue};

pub(super) use answer::Failure;
pub(super) use destination::{Destination, Known};
pub(super) use endpoint::{Opened, no_certificates};
pub use mirrors::{Mirror, parse as parse_mirrors};
pub(super) use tour::Tour;
pub(super) use upload::Content;

use super::{
    ImageOptions,
    manifest::Descriptor,
    source::{checked, mismatch},
};
use credentials::is_loopback;
use endpoint::Endpoint;
use login::Purpose;

/// A repository of a registry, with the mirrors that may have it.
pub(super) struct Registry {
    reference: Reference,
    /// In the order in which they are asked; the registry itself is the last.
    endpoints: Vec<Endpoint>,
    /// Who gave what was not what its digest says, by place in `endpoints` and digest.
    distrusted: Mutex<HashSet<(usize, String)>>,
}

/// A reference, and where its registry is.
fn located(text: &str, options: &ImageOptions) -> Result<(Reference, Url), ApiError> {
    let reference: Reference =
        text.parse().map_err(|error| ApiError::invalid_argument(format!("{text:?} is no image reference: {error}")))?;
    let registry = reference.resolve_registry();
    let plain = is_loopback(registry) || options.insecure_registries.iter().any(|insecure| insecure == registry);
    let scheme = if plain { "http" } else { "https" };
    let root = format!("{scheme}://{registry}/")
        .parse()
        .map_err(|error| ApiError::invalid_argument(format!("{registry:?} is no registry: {error}")))?;
    Ok((reference, root))
}

impl Registry {
    /// Of a reference such as `registry.example:5000/path/name:tag`.
    ///
    /// # Errors
    /// `invalid_argument` for what is no reference.
    pub(super) fn open(text: &str, options: &ImageOptions) -> Result<Self, ApiError> {
        let (reference, own) = located(text, options)?;
        let registry = reference.resolve_registry().to_owned();
        let mirrors = options.mirrors.iter().filter(|mirror| mirror.is_of(&registry));
        let places = mirrors.map(|mirror| (mirror.name(), mirror.base())).chain([(registry.clone(), &own)]);
        let client = endpoint::client(Some(options.limits.stall))?;
        let repository = reference.repository();
        let endpoints =
            places.map(|(name, root)| Endpoint::new(client.clone(), name, root, repository, Purpose::Pull, options));
        let endpoints = endpoints.collect::<Result<_, _>>()?;
        Ok(Self { reference, endpoints, distrusted: Mutex::default() })
    }

    /// What the reference points to, with its digest.
    pub(super) async fn root(&self, limit: u64) -> Result<(Vec<u8>, String), ApiError> {
        let wanted = self.reference.digest();
        let name = wanted.or(self.reference.tag()).unwrap_or("latest");
        self.asked(name, |endpoint| {
            Box::pin(async move {
                let bytes = endpoint.manifest(name, limit).await?;
                let digest = super::identity::digest(&bytes);
                match wanted {
                    Some(wanted) if wanted != digest => {
                        Err(Failure::elsewhere(mismatch("the manifest", wanted, &digest)))
                    }
                    _ => Ok((bytes, digest)),
                }
            })
        })
        .await
    }

    /// A manifest by digest, checked.
    pub(super) async fn manifest(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, ApiError> {
        self.asked(&descriptor.digest, |endpoint| {
            Box::pin(async move {
                let bytes = endpoint.manifest(&descriptor.digest, limit).await?;
                checked(bytes, descriptor).map_err(Failure::elsewhere)
            })
        })
        .await
    }

    /// A small blob by digest, checked.
    pub(super) async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ApiError> {
        self.asked(&descriptor.digest, |endpoint| {
            Box::pin(async move {
                let bytes = endpoint.small_blob(&descriptor.digest, descriptor.size).await?;
                checked(bytes, descriptor).map_err(Failure::elsewhere)
            })
        })
        .await
    }

    async fn asked<'a, T>(
        &'a self,
        digest: &str,
        ask: impl Fn(&'a Endpoint) -> BoxFuture<'a, Result<T, Failure>>,
    ) -> Result<T, ApiError> {
        let mut tour = self.tour(digest)?;
        loop {
            match ask(&self.endpoints[tour.at()]).await {
                Ok(got) => return Ok(got),
                Err(failure) => tokio::time::sleep(tour.failed(failure, false)?).await,
            }
        }
    }

    /// Whom to ask for a blob.
    ///
    /// # Errors
    /// Everybody who has it gave what it is not.
    pub(super) fn tour(&self, digest: &str) -> Result<Tour, ApiError> {
        let distrusted = self.distrusted.lock().unwrap_or_else(PoisonError::into_inner);
        let fit = (0..self.endpoints.len()).map(|at| !distrusted.contains(&(at, digest.to_owned()))).collect();
        Tour::new(fit).ok_or_else(|| mismatch("a blob, wherever it was asked for,", digest, "another"))
    }

    /// Whether somebody is left to ask for a blob once that endpoint is not.
    pub(super) fn distrust(&self, at: usize, digest: &str) -> bool {
        let mut distrusted = self.distrusted.lock().unwrap_or_else(PoisonError::into_inner);
        distrusted.insert((at, digest.to_owned()));
        (0..self.endpoints.len()).any(|at| !distrusted.contains(&(at, digest.to_owned())))
    }

    /// A blob from a place in it on, by the endpoint that a tour is at.
    pub(super) async fn blob(
        &self,
        at: usize,
        blob: &Descriptor,
        from: u64,
        validator: Option<&HeaderValue>,
    ) -> Result<Opened, Failure> {
        self.endpoints[at].blob(blob, from, validator).await
    }
}
