//! An **endpoint**: one place that may have a repository's content, a mirror or the registry itself.

use std::time::Duration;

use contract::{ApiError, doctor::Check};
use reqwest::{
    Client, ClientBuilder, RequestBuilder, Response, StatusCode, Url,
    header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE},
    redirect::Policy,
};

use super::{
    answer::Failure,
    body::{self, Body},
    login::{Login, Purpose},
};
use crate::image::{ImageOptions, manifest::Descriptor};

/// How long an endpoint may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a manifest may take in all.
const DOCUMENT: Duration = Duration::from_secs(60);
/// How often a registry may send a download on: to its storage, and that to another place.
const REDIRECTS: usize = 5;
/// What Warren understands; an index names other platforms' manifests too.
const ACCEPTED: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
                        application/vnd.docker.distribution.manifest.v2+json, \
                        application/vnd.docker.distribution.manifest.list.v2+json";

/// Where to ask for a repository's content.
pub(super) struct Endpoint {
    client: Client,
    /// Its `…/v2/<repository>/`.
    base: Url,
    /// As docker's configuration calls it: `host:port`.
    name: String,
    login: Login,
    stall: Duration,
}

/// A blob that begins to come.
pub(in crate::image) struct Opened {
    pub body: Body,
    /// Where it begins: where it was asked from, or 0.
    pub from: u64,
    /// What proves later that it is still the same, as the registry says.
    pub validator: Option<HeaderValue>,
}

/// The HTTP client of a pull, which nothing keeps waiting longer than `stall`; of a push, which looks after itself, without. On a machine without
/// CA certificates it takes no server's word over https, and says so in the log; plain registries need none.
pub(super) fn client(stall: Option<Duration>) -> Result<Client, ApiError> {
    let built = builder(stall).build().or_else(|error| {
        tracing::warn!(%error, "no https registry can be verified here; install ca-certificates");
        builder(stall).tls_certs_only([]).build()
    });
    built.map_err(|error| ApiError::internal(format!("no HTTP client can be made: {}", crate::files::chain(&error))))
}

/// What `doctor` says where no server's word can be taken over https.
pub(in crate::image) fn no_certificates() -> Option<Check> {
    let error = builder(None).build().err()?;
    let detail = format!("no registry can be asked over https: {}", crate::files::chain(&error));
    Some(Check::warn("registries", detail).mend("apt-get install ca-certificates, then restart the host-agent"))
}

fn builder(stall: Option<Duration>) -> ClientBuilder {
    let redirects = Policy::custom(|attempt| {
        let downgraded =
            attempt.url().scheme() != "https" && attempt.previous().iter().any(|url| url.scheme() == "https");
        if attempt.previous().len() > REDIRECTS {
            attempt.error("it is sent on too often")
        } else if downgraded {
            attempt.error("it is sent on to where nothing is encrypted")
        } else {
            attempt.follow()
        }
    });
    let builder = Client::builder().connect_timeout(CONNECT).redirect(redirects);
    let builder = builder.user_agent(concat!("warren/", env!("CARGO_PKG_VERSION")));
    stall.into_iter().fold(builder, ClientBuilder::read_timeout)
}

impl Endpoint {
    pub(super) fn new(
        client: Client,
        name: String,
        root: &Url,
        repository: &str,
        purpose: Purpose,
        options: &ImageOptions,
    ) -> Result<Self, ApiError> {
        let base = root
            .join(&format!("v2/{repository}/"))
            .map_err(|error| ApiError::invalid_argument(format!("{name} has no repository {repository:?}: {error}")))?;
        let login = Login::new(name.clone(), repository, purpose, options.docker_config.clone());
        Ok(Self { client, base, name, login, stall: options.limits.stall })
    }

    /// A manifest by tag or digest, not checked yet.
    pub(super) async fn manifest(&self, reference: &str, limit: u64) -> Result<Vec<u8>, Failure> {
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(ACCEPTED))]);
        self.document(&format!("manifests/{reference}"), headers, limit).await
    }

    /// A small blob, not checked yet.
    pub(super) async fn small_blob(&self, digest: &str, limit: u64) -> Result<Vec<u8>, Failure> {
        self.document(&format!("blobs/{digest}"), HeaderMap::new(), limit).await
    }

    async fn document(&self, path: &str, headers: HeaderMap, limit: u64) -> Result<Vec<u8>, Failure> {
        let read = async {
            let response = self.get(path, &headers).await?;
            let response = self.succeeded(path, response)?;
            body::bounded(&self.name, response, limit).await
        };
        let late = |_| Failure::again(ApiError::unavailable(format!("{} gives {path} too slowly", self.name)));
        tokio::time::timeout(DOCUMENT, read).await.map_err(late)?
    }

    /// A blob from a place in it on, or from its beginning where the endpoint knows no ranges.
    pub(super) async fn blob(
        &self,
        blob: &Descriptor,
        from: u64,
        validator: Option<&HeaderValue>,
    ) -> Result<Opened, Failure> {
        let path = format!("blobs/{}", blob.digest);
        let mut headers = HeaderMap::new();
        if from > 0 {
            let range = HeaderValue::from_str(&format!("bytes={from}-"));
            headers.insert(RANGE, range.map_err(|_| self.nonsense("a range that is no header"))?);
            if let Some(validator) = validator {
                headers.insert(IF_RANGE, validator.clone());
            }
        }
        let mut response = self.get(&path, &headers).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE && from > 0 {
            response = self.get(&path, &HeaderMap::new()).await?;
        }
        let response = self.succeeded(&path, response)?;
        let from = match response.status() {
            StatusCode::PARTIAL_CONTENT => self.range(&response, blob, from)?,
            _ => {
                if let Some(length) = response.content_length().filter(|length| *length != blob.size) {
                    return Err(self.nonsense(&format!("{length} bytes for {}, which has {}", blob.digest, blob.size)));
                }
                0
            }
        };
        // A weak one (W/"…") does not speak of bytes.
        let validator = response.headers().get(ETAG).filter(|tag| tag.as_bytes().starts_with(b"\"")).cloned();
        Ok(Opened { body: Body::new(&self.name, &blob.digest, response, self.stall), from, validator })
    }

    /// Where a partial answer begins: only where it was asked from, and only of a blob of that size.
    fn range(&self, response: &Response, blob: &Descriptor, from: u64) -> Result<u64, Failure> {
        let text = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok()).unwrap_or_default();
        let read = || -> Option<(u64, Option<u64>)> {
            let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
            let begin = range.split_once('-')?.0.parse().ok()?;
            Some((begin, if total == "*" { None } else { Some(total.parse().ok()?) }))
        };
        match read() {
            Some((begin, total)) if begin == from && total.is_none_or(|total| total == blob.size) => Ok(from),
            _ => Err(self.nonsense(&format!(
                "the range {text:?} of {}, asked for its {} bytes from {from} on",
                blob.digest, blob.size
            ))),
        }
    }

    pub(super) fn nonsense(&self, what: &str) -> Failure {
        Failure::elsewhere(ApiError::failed_precondition(format!("{} answers with {what}", self.name)))
    }

    fn succeeded(&self, what: &str, response: Response) -> Result<Response, Failure> {
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            status => Err(Failure::of(&self.name, &self.called(what), status, response.headers())),
        }
    }

    fn called(&self, path: &str) -> String {
        let repository = self.base.path().trim_matches('/').trim_start_matches("v2/");
        match path.split_once('/') {
            Some(("manifests", reference)) if reference.starts_with("sha256:") => format!("{repository}@{reference}"),
            Some(("manifests", tag)) => format!("{repository}:{tag}"),
            _ => format!("{repository}/{path}"),
        }
    }

    /// Asks for a path below the repository's.
    async fn get(&self, path: &str, headers: &HeaderMap) -> Result<Response, Failure> {
        let url = self.url(path)?;
        self.asked(|| self.client.get(url.clone()).headers(headers.clone())).await
    }

    /// The URL of a path below the repository's.
    pub(super) fn url(&self, path: &str) -> Result<Url, Failure> {
        self.base.join(path).map_err(|error| self.nonsense(&format!("no URL for {path}: {error}")))
    }

    /// Asks what a request says that is made anew each time it is sent, and waits for the answer as long as for any.
    pub(super) async fn asked(&self, request: impl Fn() -> RequestBuilder) -> Result<Response, Failure> {
        self.granted(|shown| self.send(request(), shown)).await
    }

    /// Sends a request with what was granted, and once more when it had to be said who asks.
    pub(super) async fn granted<F: Future<Output = Result<Response, Failure>>>(
        &self,
        send: impl Fn(Option<HeaderValue>) -> F,
    ) -> Result<Response, Failure> {
        let shown = self.login.header().await;
        let response = send(shown.clone()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let plain = self.base.scheme() == "http";
        match self.login.answer(&self.client, response.headers(), shown.as_ref(), plain).await? {
            Some(granted) => send(Some(granted)).await,
            None => Ok(response),
        }
    }

    async fn send(&self, request: RequestBuilder, shown: Option<HeaderValue>) -> Result<Response, Failure> {
        // Headers may trickle in too.
        let sent = tokio::time::timeout(self.stall + CONNECT, authorized(request, shown).send()).await;
        let late = |_| Failure::again(ApiError::unavailable(format!("{} does not answer", self.name)));
        sent.map_err(late)?.map_err(|error| Failure::broken(&self.name, &error))
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// How long it may say nothing.
    pub(super) fn stall(&self) -> Duration {
        self.stall
    }

    /// Lets what is granted reach another repository of the registry's too, for reading.
    pub(super) fn reads_too(&mut self, repository: &str) {
        self.login.reads_too(repository);
    }
}

/// A request that shows what was granted.
pub(super) fn authorized(request: RequestBuilder, shown: Option<HeaderValue>) -> RequestBuilder {
    shown.into_iter().fold(request, |request, shown| request.header(AUTHORIZATION, shown))
}
