//! A **source** is where a pull takes its image from; here it is checked before anything is done with it.

use std::path::{Component, Path};

use contract::{ApiError, image::ImageSource};
use oci_spec::distribution::Reference;

/// The longest registry reference taken, in bytes: a repository has 255 at the most, and a digest comes on top.
const REFERENCE_MAX: usize = 512;

/// The longest path taken, in bytes (Linux's PATH_MAX with its NUL).
const PATH_MAX: usize = 4095;

/// The longest name of a manifest in a layout, in bytes.
const REF_NAME_MAX: usize = 255;

/// Refuses a source that no host-agent could use.
///
/// # Errors
/// `invalid_argument`, with what is wrong with it.
pub fn check(source: &ImageSource) -> Result<(), ApiError> {
    match source {
        ImageSource::Registry(reference) => registry(reference),
        ImageSource::Layout { path, reference } => {
            layout(path)?;
            reference.as_deref().map_or(Ok(()), ref_name)
        }
    }
}

fn registry(text: &str) -> Result<(), ApiError> {
    let refuse = |why: &str| {
        ApiError::invalid_argument(format!("the image reference {:?} {why}", shown(text)))
            .hint("a reference looks like registry.example:5000/path/name:tag or …@sha256:…")
    };
    if text.len() > REFERENCE_MAX {
        return Err(refuse("is too long"));
    }
    text.parse::<Reference>().map(drop).map_err(|error| refuse(&format!("cannot be used: {error}")))
}

fn layout(text: &str) -> Result<(), ApiError> {
    let refuse = |why: &str| {
        ApiError::invalid_argument(format!("the layout path {:?} {why}", shown(text)))
            .hint("give the absolute path of an OCI layout directory on the host, such as /srv/images/debian")
    };
    let path = Path::new(text);
    if text.len() > PATH_MAX {
        Err(refuse("is too long"))
    } else if text.contains(char::is_control) {
        Err(refuse("holds control characters"))
    } else if !path.is_absolute() {
        Err(refuse("is not absolute"))
    } else if path.components().any(|part| part == Component::ParentDir) {
        Err(refuse("holds '..'"))
    } else {
        Ok(())
    }
}

fn ref_name(text: &str) -> Result<(), ApiError> {
    if text.is_empty() || text.len() > REF_NAME_MAX || text.contains(char::is_control) {
        return Err(ApiError::invalid_argument(format!(
            "the manifest name {:?} must have 1 to {REF_NAME_MAX} characters and no control characters",
            shown(text)
        ))
        .hint("it is the org.opencontainers.image.ref.name of one manifest in the layout's index.json"));
    }
    Ok(())
}

/// The beginning of a text that may be hostile and megabytes long.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use contract::ErrorCode;

    use super::*;

    fn refused(source: ImageSource) -> String {
        let error = check(&source).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
        assert!(error.hint.is_some());
        error.message
    }

    #[test]
    fn references_that_registries_know_are_taken() {
        let digest = "a".repeat(64);
        for reference in [
            "debian",
            "debian:12",
            "127.0.0.1:5000/debian:12",
            "registry.example/a/b/c",
            &format!("localhost:5000/debian@sha256:{digest}"),
        ] {
            assert_eq!(check(&ImageSource::Registry(reference.to_owned())), Ok(()), "{reference}");
        }
    }

    #[test]
    fn references_that_none_knows_are_refused() {
        for reference in
            ["", "Debian", "a b", "127.0.0.1:5000/", "../x", "x@sha256:12", "x:", "http://x/y", "x\n", &"a".repeat(600)]
        {
            let message = refused(ImageSource::Registry(reference.to_owned()));
            assert!(message.contains("image reference") && message.len() < 300, "{message}");
        }
    }

    #[test]
    fn a_layout_is_an_absolute_path_without_a_way_up() {
        let layout = |path: &str| ImageSource::Layout { path: path.to_owned(), reference: None };
        assert_eq!(check(&layout("/srv/images/debian")), Ok(()));
        for path in ["", "srv", "/srv/../etc", "/srv/..", "/srv/a\0b", "/srv/\n"] {
            refused(layout(path));
        }
        refused(layout(&format!("/{}", "a".repeat(5000))));
    }

    #[test]
    fn a_manifest_name_is_one_line() {
        let named = |name: &str| ImageSource::Layout { path: "/srv".to_owned(), reference: Some(name.to_owned()) };
        assert_eq!(check(&named("12-slim")), Ok(()));
        refused(named(""));
        refused(named("a\nb"));
        refused(named(&"a".repeat(256)));
    }
}
