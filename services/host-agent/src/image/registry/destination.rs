//! A **destination**: a registry as a push sees it. It is asked first what it has; what it lacks is sent ([`Upload`]), and the manifest last.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use contract::ApiError;
use oci_client::Reference;
use reqwest::{StatusCode, header::CONTENT_TYPE};

use super::{
    Failure, Tour,
    endpoint::{self, Endpoint},
    located,
    login::Purpose,
    upload::{Blob, Content, Upload},
};
use crate::image::{ImageOptions, progress::Reporter};

/// How many blobs are remembered; past it all are forgotten, which costs bytes of later pushes and nothing else.
const KNOWN_MAX: usize = 4096;

/// In which repository of a registry a blob is, as far as this process has sent it there.
#[derive(Clone, Default)]
pub(in crate::image) struct Known {
    /// By registry and digest. Held for map operations only.
    all: Arc<Mutex<HashMap<(String, String), String>>>,
}

impl Known {
    fn repository(&self, registry: &str, digest: &str) -> Option<String> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&(registry.to_owned(), digest.to_owned())).cloned()
    }

    fn add(&self, registry: &str, digest: &str, repository: &str) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KNOWN_MAX {
            all.clear();
        }
        all.insert((registry.to_owned(), digest.to_owned()), repository.to_owned());
    }
}

/// A tag of a registry's repository that gets an image.
pub(in crate::image) struct Destination {
    endpoint: Endpoint,
    reference: Reference,
    /// What a registry is told to refuse: `a push to …`.
    what: String,
    known: Known,
    /// Which repository to take a blob over from, by digest.
    mounts: HashMap<String, String>,
}

impl Destination {
    /// Of a reference such as `registry.example:5000/path/name:tag`. Asks nobody yet.
    ///
    /// # Errors
    /// `invalid_argument` for what is no reference, or names a digest.
    pub(in crate::image) fn open(text: &str, options: &ImageOptions, known: Known) -> Result<Self, ApiError> {
        let (reference, root) = located(text, options)?;
        if reference.digest().is_some() {
            return Err(ApiError::invalid_argument(format!("{text} names a digest, which a push cannot choose"))
                .hint("push to a tag: registry.example:5000/path/name:tag"));
        }
        let name = reference.resolve_registry().to_owned();
        let client = endpoint::client(None)?;
        let endpoint = Endpoint::new(client, name, &root, reference.repository(), Purpose::Push, options)?;
        let what = format!("a push to {}:{}", reference.repository(), reference.tag().unwrap_or("latest"));
        Ok(Self { endpoint, reference, what, known, mounts: HashMap::new() })
    }

    /// Looks up which of those blobs another repository of the registry has, so that it can take them over from there.
    pub(in crate::image) fn look_up<'a>(&mut self, digests: impl IntoIterator<Item = &'a str>) {
        for digest in digests {
            let found = self.known.repository(self.endpoint.name(), digest);
            let Some(repository) = found.filter(|repository| repository != self.reference.repository()) else {
                continue;
            };
            if !self.mounts.values().any(|other| *other == repository) {
                self.endpoint.reads_too(&repository);
            }
            self.mounts.insert(digest.to_owned(), repository);
        }
    }

    /// Sends a blob unless the registry has it; gives how many bytes it did not have.
    ///
    /// # Errors
    /// The registry refuses it, stays away, or breaks off again and again without keeping anything; or the file cannot be read.
    pub(in crate::image) async fn blob(
        &self,
        digest: &str,
        size: u64,
        content: Content<'_>,
        progress: &Reporter,
    ) -> Result<u64, ApiError> {
        let blob = Blob { digest, size, content };
        let from = self.mounts.get(digest).map(String::as_str);
        let sent = Upload::new(&self.endpoint, &self.what, blob, from, progress).run().await?;
        self.known.add(self.endpoint.name(), digest, self.reference.repository());
        Ok(sent)
    }

    /// Sends the manifest, by which the tag gets the image.
    ///
    /// # Errors
    /// The registry refuses it or stays away.
    pub(in crate::image) async fn manifest(&self, bytes: &[u8], media: &str) -> Result<(), ApiError> {
        let mut tour = Tour::of_one();
        loop {
            match self.manifest_once(bytes, media).await {
                Ok(()) => return Ok(()),
                Err(failure) => tokio::time::sleep(tour.failed(failure, false)?).await,
            }
        }
    }

    async fn manifest_once(&self, bytes: &[u8], media: &str) -> Result<(), Failure> {
        let url = self.endpoint.url(&format!("manifests/{}", self.reference.tag().unwrap_or("latest")))?;
        let client = self.endpoint.client();
        let put = || client.put(url.clone()).header(CONTENT_TYPE, media).body(bytes.to_vec());
        let response = self.endpoint.asked(put).await?;
        match response.status() {
            StatusCode::OK | StatusCode::CREATED => Ok(()),
            _ => Err(Failure::refused(self.endpoint.name(), &self.what, response).await),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_repository_has_is_known_by_registry_and_bounded() {
        let known = Known::default();
        known.add("r.example", "sha256:1", "a");
        assert_eq!(known.repository("r.example", "sha256:1").as_deref(), Some("a"));
        assert_eq!(known.repository("other.example", "sha256:1"), None);
        for blob in 0..=KNOWN_MAX {
            known.add("r.example", &format!("sha256:{blob}"), "b");
        }
        assert!(known.all.lock().unwrap().len() <= KNOWN_MAX);
    }
}
