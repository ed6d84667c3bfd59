//! **Mirrors**: other places that may have a registry's images, asked before it, in order. What comes from one is proven by its digest like
//! anything else; only a tag is what the mirror says it is.

use reqwest::Url;

use super::credentials::is_loopback;

/// A mirror of a registry, or of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Whose images it has, e.g. `hub.example`; `None`: everybody's.
    registry: Option<String>,
    /// Where its `/v2/` is below.
    base: Url,
}

impl Mirror {
    /// Whether it may have a registry's images.
    pub(super) fn is_of(&self, registry: &str) -> bool {
        self.registry.as_deref().is_none_or(|of| canonical(of) == canonical(registry))
    }

    /// As docker's configuration calls it: `host:port`.
    pub(super) fn name(&self) -> String {
        let host = self.base.host_str().unwrap_or_default();
        self.base.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }

    pub(super) fn base(&self) -> &Url {
        &self.base
    }
}

/// docker.io has several names.
fn canonical(registry: &str) -> &str {
    match registry {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

/// Reads `WARREN_IMAGE_MIRRORS`: `REGISTRY=MIRROR` or `*=MIRROR`, separated by commas, in the order in which they are asked. A mirror is
/// `host[:port]` (https, or http on loopback) or a URL, whose path comes before `/v2/`.
///
/// # Errors
/// A sentence that names the part that is none.
pub fn parse(text: &str) -> Result<Vec<Mirror>, String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(one).collect()
}

fn one(part: &str) -> Result<Mirror, String> {
    let wrong = || format!("{part:?} is not REGISTRY=MIRROR, e.g. hub.example=https://mirror.example:5000");
    let (registry, mirror) = part.split_once('=').ok_or_else(wrong)?;
    let (registry, mirror) = (registry.trim(), mirror.trim());
    if registry.is_empty() || registry.contains('/') {
        return Err(wrong());
    }
    let url = match mirror {
        "" => return Err(wrong()),
        url if url.contains("://") => url.to_owned(),
        name if is_loopback(name.split('/').next().unwrap_or(name)) => format!("http://{name}"),
        name => format!("https://{name}"),
    };
    let mut base: Url = url.parse().map_err(|_| wrong())?;
    let usable = matches!(base.scheme(), "http" | "https") && base.host_str().is_some();
    if !usable || base.query().is_some() || base.fragment().is_some() {
        return Err(wrong());
    }
    if !base.username().is_empty() || base.password().is_some() {
        return Err(format!("{registry}'s mirror has credentials in its URL: put them into the docker config.json"));
    }
    if !base.path().ends_with('/') {
        let path = format!("{}/", base.path());
        base.set_path(&path);
    }
    Ok(Mirror { registry: (registry != "*").then(|| registry.to_owned()), base })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_read_in_order() {
        let all = parse("docker.io=localhost:5001, docker.io=https://cache.example/hub ,*=http://[::1]:5").unwrap();
        let bases: Vec<_> = all.iter().map(|mirror| mirror.base().as_str()).collect();
        assert_eq!(bases, ["http://localhost:5001/", "https://cache.example/hub/", "http://[::1]:5/"]);
        assert!(all[0].is_of("index.docker.io") && !all[0].is_of("ghcr.example"));
        assert!(all[2].is_of("ghcr.example"));
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn what_is_no_mirror_is_named() {
        for wrong in ["mirror.example", "=m", "a/b=m", "a=", "a=ftp://m", "a=http://", "a=https://m/?x=1"] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains(wrong), "{wrong}: {error}");
        }
        assert!(parse("a=https://user:secret@m").unwrap_err().contains("docker config.json"));
        assert!(!parse("a=https://user:secret@m").unwrap_err().contains("secret"));
    }
}
