//! How a registry is reached and with which **credentials**, for pulls and pushes alike.

use std::{net::IpAddr, path::Path};

use oci_client::secrets::RegistryAuth;

/// Registries on this machine are spoken to over http, as docker does.
pub(super) fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// What docker's configuration holds for a registry, asking its credential helper where it names one; nobody's where it holds nothing. Blocking.
pub(super) fn credentials(registry: &str, docker_config: Option<&Path>) -> RegistryAuth {
    let found = match docker_config {
        Some(dir) => match std::fs::File::open(dir.join("config.json")) {
            Ok(file) => docker_credential::get_credential_from_reader(file, registry),
            Err(_) => return RegistryAuth::Anonymous,
        },
        None => docker_credential::get_credential(registry),
    };
    use docker_credential::{CredentialRetrievalError as Failed, DockerCredential as Found};
    match found {
        Ok(Found::UsernamePassword(user, password)) => RegistryAuth::Basic(user, password),
        Ok(Found::IdentityToken(token)) => RegistryAuth::Bearer(token),
        Err(Failed::NoCredentialConfigured | Failed::ConfigNotFound | Failed::ConfigReadError) => {
            RegistryAuth::Anonymous
        }
        Err(error) => {
            // What a helper printed may hold a secret, so its words are left out.
            let why = match error {
                Failed::HelperFailure { helper, .. } => format!("the credential helper {helper} failed"),
                other => other.to_string(),
            };
            tracing::warn!(registry, why, "no credentials: the registry is asked as nobody");
            RegistryAuth::Anonymous
        }
    }
}
