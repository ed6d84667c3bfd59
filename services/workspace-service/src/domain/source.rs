//! A **source** is where a prepare takes its files from; here it is checked before anything is done with it.

use std::path::{Component, Path};

use contract::{
    ApiError,
    worktree::{About, History, PATH_MAX, Source},
};

/// The longest origin, in bytes.
const ORIGIN_MAX: usize = 1024;
/// The longest name of a branch, tag or upstream, in bytes: what a file name may have (git keeps them as files).
const REF_MAX: usize = 255;
/// The longest name of an object in an object store, in bytes.
const OBJECT_MAX: usize = 1024;
/// URLs of git that are taken; `file` is looked at once more where it is used.
const SCHEMES: [&str; 5] = ["https", "http", "ssh", "git", "file"];

/// Refuses a source that nobody could use, and one that would lead where it must not.
///
/// # Errors
/// `invalid_argument`, with what is wrong with it.
pub fn check(source: &Source) -> Result<(), ApiError> {
    match source {
        Source::Upload { about, .. } => origin(about),
        Source::Git { url, reference, history } => {
            git_url(url)?;
            reference.as_deref().map_or(Ok(()), |name| ref_name("ref", name))?;
            depth(Some(*history))
        }
        Source::Host { path } => host_path(path),
        Source::Object(name) => object(name),
    }
}

/// What clients tell of a tree is shown to others: it is short, and holds no secret.
fn origin(about: &About) -> Result<(), ApiError> {
    if about.origin.len() > ORIGIN_MAX || about.origin.contains(char::is_control) {
        return Err(ApiError::invalid_argument("`about.origin` is too long or holds control characters")
            .hint(format!("it is one line of at most {ORIGIN_MAX} bytes")));
    }
    if has_secret(&about.origin) {
        return Err(ApiError::invalid_argument(
            "`about.origin` holds a user, a password or a query, where secrets are",
        )
        .hint("leave it out: others read this"));
    }
    for (field, id) in [("head", &about.head), ("base", &about.base)] {
        if let Some(id) = id
            && (!matches!(id.len(), 40 | 64) || !id.bytes().all(|b| b.is_ascii_hexdigit()))
        {
            return Err(ApiError::invalid_argument(format!("`about.{field}` is no object id of git")));
        }
    }
    for (field, name) in [("branch", &about.branch), ("upstream", &about.upstream)] {
        name.as_deref().map_or(Ok(()), |name| ref_name(&format!("about.{field}"), name))?;
    }
    depth(about.history)
}

fn depth(history: Option<History>) -> Result<(), ApiError> {
    if history == Some(History::Depth(0)) {
        return Err(ApiError::invalid_argument("a history of depth 0 is none")
            .hint("ask for `\"none\"`, or for a depth of 1 or more"));
    }
    Ok(())
}

/// A name that git takes for a branch or tag (git-check-ref-format(1), as far as it keeps a name from being an option, a range or
/// a path), or a commit id.
fn ref_name(field: &str, name: &str) -> Result<(), ApiError> {
    let odd = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
    let wrong = name.is_empty()
        || name.len() > REF_MAX
        || name.starts_with(['-', '/', '.'])
        || name.ends_with(['/', '.'])
        || ["..", "//", "@{", "/."].iter().any(|part| name.contains(part))
        || name.ends_with(".lock")
        || name.contains(odd);
    if wrong {
        return Err(ApiError::invalid_argument(format!("`{field}` {:?} is no name of a branch or tag", shown(name)))
            .hint("give a branch, a tag, or a full commit id"));
    }
    Ok(())
}

/// Refuses URLs that git would take for a program, an option, a local path, or that hold a secret.
///
/// # Errors
/// `invalid_argument`.
pub fn git_url(url: &str) -> Result<(), ApiError> {
    let refuse = |why: &str, hint: &str| {
        let secret = has_secret(url) || url.contains(['?', '#']) || url.contains('@') && !url.starts_with("ssh://");
        let open = if secret { "…".to_owned() } else { shown(url) };
        Err(ApiError::invalid_argument(format!("the git URL {open:?} {why}")).hint(hint))
    };
    let known = "it looks like https://git.example/team/app.git or ssh://git@git.example/team/app.git";
    if url.len() > ORIGIN_MAX || url.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return refuse("is too long or holds blanks", known);
    }
    let Some((scheme, rest)) = url.split_once("://") else { return refuse("names no scheme", known) };
    if !SCHEMES.contains(&scheme) {
        return refuse("has a scheme that is not served", known);
    }
    if has_secret(url) {
        return refuse(
            "holds credentials",
            "leave them out: the operator of workspace-service names a credential helper or file (WARREN_GIT_CREDENTIALS)",
        );
    }
    if url.contains(['?', '#']) {
        return refuse("has a query or a fragment", known);
    }
    let host = authority(rest).rsplit('@').next().unwrap_or_default();
    let path = &rest[authority(rest).len()..];
    if scheme == "file" {
        return if host.is_empty() && path.len() > 1 && !path.split('/').any(|name| name == "..") {
            Ok(())
        } else {
            refuse("is no path of workspace-service's machine", "write file:///srv/git/app.git")
        };
    }
    // ssh would take a host that begins with a dash for an option (CVE-2017-1000117), and so would it a user.
    if host.is_empty() || authority(rest).starts_with('-') || host.starts_with('-') || path.len() < 2 {
        return refuse("names no host and repository", known);
    }
    Ok(())
}

fn authority(rest: &str) -> &str {
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}

/// Whether a URL has a password (RFC 3986, 3.2.1), or one of HTTP what tokens are put into: a user, or a query.
fn has_secret(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else { return false };
    let http = scheme.to_ascii_lowercase().starts_with("http");
    let user = authority(rest).rsplit_once('@').map(|(user, _)| user);
    user.is_some_and(|user| http || user.contains(':')) || http && rest.contains(['?', '#'])
}

fn host_path(text: &str) -> Result<(), ApiError> {
    let path = Path::new(text);
    let wrong = text.len() > PATH_MAX
        || text.contains(char::is_control)
        || !path.is_absolute()
        || path.components().any(|part| part == Component::ParentDir);
    if wrong {
        return Err(ApiError::invalid_argument(format!("{:?} is no directory of a host", shown(text))).hint(
            "give an absolute path without `..`, below one that the host's operator allows (WARREN_WORKSPACE_DIRS)",
        ));
    }
    Ok(())
}

fn object(text: &str) -> Result<(), ApiError> {
    let refuse = || {
        Err(ApiError::invalid_argument(format!("{:?} names no object", shown(text)))
            .hint("write bucket/name, as `nats object ls` shows them"))
    };
    let Some((bucket, name)) = text.split_once('/') else { return refuse() };
    // ADR-20: a bucket is a subject token; a name may be anything.
    let token = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if bucket.is_empty() || bucket.len() > REF_MAX || !bucket.chars().all(token) {
        return refuse();
    }
    if name.is_empty() || name.len() > OBJECT_MAX || name.contains(char::is_control) {
        return refuse();
    }
    Ok(())
}

/// The beginning of a text that may be hostile and megabytes long.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use contract::{ErrorCode, SessionId};

    use super::*;

    fn git(url: &str) -> Result<(), ApiError> {
        check(&Source::Git { url: url.into(), reference: None, history: History::Full })
    }

    #[test]
    fn urls_of_repositories_are_taken() {
        for url in [
            "https://git.example/team/app.git",
            "http://127.0.0.1:8080/app",
            "ssh://git@git.example:2222/~ann/app.git",
            "git://git.example/app",
            "file:///srv/git/app.git",
        ] {
            assert_eq!(git(url), Ok(()), "{url}");
        }
    }

    #[test]
    fn urls_that_lead_elsewhere_are_refused() {
        for url in [
            "",
            "/srv/git/app",
            "app",
            "../app",
            "ext::sh -c touch% /tmp/x",
            "ext::sh",
            "fd::17",
            "ftp://x/y",
            "https://",
            "https://host",
            "https:///x",
            "ssh://-oProxyCommand=x/y",
            "ssh://-x@host/y",
            "ssh://git@-x/y",
            "--upload-pack=x",
            "file://host/x",
            "file:///",
            "file:///srv/../etc",
            "https://git.example/a b",
            "https://git.example/a\n",
        ] {
            let error = git(url).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument, "{url}");
            assert!(error.hint.is_some());
        }
    }

    #[test]
    fn credentials_are_refused_and_never_repeated() {
        for url in
            ["https://ann:hunter2@git.example/x", "https://hunter2@git.example/x", "ssh://ann:hunter2@git.example/x"]
        {
            let error = git(url).unwrap_err();
            assert!(error.hint.unwrap().contains("credential"), "{url}");
            assert!(!error.message.contains("hunter2"), "{}", error.message);
        }
        for url in
            ["https://git.example/x?token=hunter2", "https://git.example/x#hunter2", "ssh://git@git.example/x?hunter2"]
        {
            let error = git(url).unwrap_err();
            assert!(!error.message.contains("hunter2"), "{}", error.message);
        }
        for origin in [
            "https://ann:hunter2@git.example/x",
            "https://hunter2@git.example/x",
            "HTTP://hunter2@git.example/x",
            "https://git.example/x?token=hunter2",
            "ssh://ann:hunter2@git.example/x",
        ] {
            let about = About { origin: origin.into(), ..About::default() };
            let error = check(&Source::Upload { session: SessionId::new(), about }).unwrap_err();
            assert!(!error.message.contains("hunter2"));
        }
        for origin in ["/home/ann/what?/app#1", "ssh://git@git.example/x", "https://git.example/x"] {
            let about = About { origin: origin.into(), ..About::default() };
            check(&Source::Upload { session: SessionId::new(), about }).unwrap();
        }
    }

    #[test]
    fn refs_objects_and_directories_are_names_and_no_options() {
        let with = |name: &str| {
            check(&Source::Git { url: "git://h/x".into(), reference: Some(name.into()), history: History::Depth(1) })
        };
        for name in ["main", "v1.0", "feature/a-b", "refs/tags/v1", &"a".repeat(40)] {
            assert_eq!(with(name), Ok(()), "{name}");
        }
        for name in ["", "-x", "--upload-pack=x", "a..b", "a b", "a:b", "a^", "/a", "a/", "a.lock", "@{1}", "a\n"] {
            assert!(with(name).is_err(), "{name:?}");
        }
        for name in ["files/app.tar", "a-B_1/x/y z"] {
            assert_eq!(check(&Source::Object(name.into())), Ok(()), "{name}");
        }
        for name in ["", "files", "files/", "/x", "a.b/x", "a*/x", "a>/x", "f/\n"] {
            assert!(check(&Source::Object(name.into())).is_err(), "{name:?}");
        }
        let host = |path: &str| check(&Source::Host { path: path.into() });
        assert_eq!(host("/srv/trees/app"), Ok(()));
        for path in ["", "srv", "/srv/../etc", "/a\0"] {
            assert!(host(path).is_err(), "{path:?}");
        }
    }
}
