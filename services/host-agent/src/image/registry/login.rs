//! A **login**: what an endpoint grants to whom docker's configuration says we are (distribution-spec; Docker's token authentication).
//!
//! Nobody is told credentials before he asked for them, and a grant is got once for all downloads that wait for it.

use std::{path::PathBuf, time::Duration};

use contract::ApiError;
use oci_client::secrets::RegistryAuth;
use reqwest::{
    Client, Url,
    header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::{answer::Failure, body, credentials::credentials};

/// How large a token server's answer may be: the tokens of clouds have several thousand bytes.
const ANSWER_MAX: u64 = 64 << 10;
/// How long a credential helper may take, and a token server.
const PATIENCE: Duration = Duration::from_secs(15);

/// Who asks one endpoint for one repository's content.
pub(super) struct Login {
    registry: String,
    /// What a token is asked for.
    scopes: Vec<String>,
    docker_config: Option<PathBuf>,
    /// Held while a grant is got, so that it is got once.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    credentials: Option<RegistryAuth>,
    granted: Option<HeaderValue>,
}

/// What a login is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Pull,
    Push,
}

/// What an endpoint wants to see.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Bearer { realm: String, service: Option<String> },
    Basic,
}

#[derive(Deserialize)]
struct Token {
    #[serde(alias = "access_token")]
    token: String,
}

impl Login {
    pub(super) fn new(registry: String, repository: &str, purpose: Purpose, docker_config: Option<PathBuf>) -> Self {
        let actions = match purpose {
            Purpose::Pull => "pull",
            Purpose::Push => "pull,push",
        };
        let scopes = vec![format!("repository:{repository}:{actions}")];
        Self { registry, scopes, docker_config, state: Mutex::default() }
    }

    /// Asks for reading another repository too, the next time that a token is asked for.
    pub(super) fn reads_too(&mut self, repository: &str) {
        self.scopes.push(format!("repository:{repository}:pull"));
    }

    /// What was granted until now.
    pub(super) async fn header(&self) -> Option<HeaderValue> {
        self.state.lock().await.granted.clone()
    }

    /// Answers an endpoint's challenge; `None` where nothing can be answered. `shown` was refused.
    pub(super) async fn answer(
        &self,
        client: &Client,
        challenge: &HeaderMap,
        shown: Option<&HeaderValue>,
        plain: bool,
    ) -> Result<Option<HeaderValue>, Failure> {
        let mut state = self.state.lock().await;
        // Somebody else has answered meanwhile.
        if state.granted.is_some() && state.granted.as_ref() != shown {
            return Ok(state.granted.clone());
        }
        let credentials = match &state.credentials {
            Some(known) => known.clone(),
            None => state.credentials.insert(self.credentials().await).clone(),
        };
        let granted = match parse(challenge) {
            Some(Challenge::Bearer { realm, service }) => {
                Some(self.token(client, &realm, service.as_deref(), &credentials, plain).await?)
            }
            Some(Challenge::Basic) => match credentials {
                RegistryAuth::Basic(user, password) => Some(basic(client, &user, &password)?),
                _ => None,
            },
            None => None,
        };
        state.granted.clone_from(&granted);
        // The same once more would be refused once more.
        Ok(granted.filter(|granted| Some(granted) != shown))
    }

    async fn credentials(&self) -> RegistryAuth {
        let (registry, dir) = (self.registry.clone(), self.docker_config.clone());
        let asking = tokio::task::spawn_blocking(move || credentials(&registry, dir.as_deref()));
        match tokio::time::timeout(PATIENCE, asking).await {
            Ok(Ok(found)) => found,
            _ => {
                tracing::warn!(registry = self.registry, "the credential helper does not answer: asked as nobody");
                RegistryAuth::Anonymous
            }
        }
    }

    async fn token(
        &self,
        client: &Client,
        realm: &str,
        service: Option<&str>,
        credentials: &RegistryAuth,
        plain: bool,
    ) -> Result<HeaderValue, Failure> {
        let wrong =
            |why: String| Failure::elsewhere(ApiError::failed_precondition(format!("{}: {why}", self.registry)));
        let url: Url = realm.parse().map_err(|_| wrong("its token server has no URL".to_owned()))?;
        if url.scheme() != "https" && !plain {
            return Err(wrong("its token server is reached without encryption".to_owned()));
        }
        // A query names each scope by itself (Docker's token specification), a form all in one field (OAuth 2).
        let mut form: Vec<_> = self.scopes.iter().map(|scope| ("scope", scope.as_str())).collect();
        let joined = self.scopes.join(" ");
        if matches!(credentials, RegistryAuth::Bearer(_)) {
            form = vec![("scope", &joined)];
        }
        form.extend(service.map(|service| ("service", service)));
        let request = match credentials {
            RegistryAuth::Bearer(identity) => {
                form.extend([("grant_type", "refresh_token"), ("client_id", "warren"), ("refresh_token", identity)]);
                client.post(url).form(&form)
            }
            RegistryAuth::Basic(user, password) => client.get(url).query(&form).basic_auth(user, Some(password)),
            RegistryAuth::Anonymous => client.get(url).query(&form),
        };
        let asking = async {
            let response = request.send().await.map_err(|error| Failure::broken(&self.registry, &error))?;
            if !response.status().is_success() {
                let what = "a token";
                return Err(Failure::of(&self.registry, what, response.status(), response.headers()));
            }
            body::bounded(&self.registry, response, ANSWER_MAX).await
        };
        let late = |_| Failure::again(ApiError::unavailable(format!("{}: its token server is silent", self.registry)));
        let bytes = tokio::time::timeout(PATIENCE, asking).await.map_err(late)??;
        // Nothing of the answer stands in the error: it may be a secret.
        let token: Token = serde_json::from_slice(&bytes)
            .map_err(|_| wrong("its token server answers with what is no token".to_owned()))?;
        let mut header = HeaderValue::from_str(&format!("Bearer {}", token.token))
            .map_err(|_| wrong("its token server answers with what is no token".to_owned()))?;
        header.set_sensitive(true);
        Ok(header)
    }
}

/// The header of basic authentication, as the HTTP library writes it.
fn basic(client: &Client, user: &str, password: &str) -> Result<HeaderValue, Failure> {
    let unusable =
        |_| Failure::elsewhere(ApiError::failed_precondition("the registry's credentials are no header value"));
    let request = client.get("http://localhost/").basic_auth(user, Some(password)).build().map_err(unusable)?;
    let header = request.headers().get(reqwest::header::AUTHORIZATION).cloned();
    header.ok_or_else(|| Failure::elsewhere(ApiError::internal("basic authentication made no header")))
}

/// The challenge to answer: a token's, where there is a choice.
fn parse(headers: &HeaderMap) -> Option<Challenge> {
    let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let mut found = None;
    for challenge in texts.flat_map(http_auth::parser::ChallengeParser::new).filter_map(Result::ok) {
        let parameter = |name: &str| {
            let named = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            named.map(|(_, value)| value.to_unescaped())
        };
        if challenge.scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = parameter("realm")
        {
            return Some(Challenge::Bearer { realm, service: parameter("service") });
        }
        if challenge.scheme.eq_ignore_ascii_case("basic") {
            found = Some(Challenge::Basic);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_and_a_token_is_preferred() {
        let of = |texts: &[&'static str]| {
            let values = texts.iter().map(|text| (WWW_AUTHENTICATE, HeaderValue::from_static(text)));
            parse(&values.fold(HeaderMap::new(), |mut all, (name, value)| {
                all.append(name, value);
                all
            }))
        };
        let bearer = Challenge::Bearer { realm: "https://a/t".to_owned(), service: Some("r".to_owned()) };
        assert_eq!(of(&[r#"Bearer realm="https://a/t",service="r",scope="x""#]), Some(bearer));
        assert_eq!(of(&[r#"Basic realm="x""#]), Some(Challenge::Basic));
        assert!(matches!(of(&[r#"Basic realm="x""#, r#"Bearer realm="y""#]), Some(Challenge::Bearer { .. })));
        assert_eq!(of(&["Negotiate"]), None);
        assert_eq!(of(&[r#"Bearer service="no realm""#]), None);
        assert_eq!(of(&[]), None);
    }
}
