//! What `--image` means: a **name, id or digest** of an image the lab holds, or a **registry reference**, which is pulled first.

use contract::{ApiError, ImageName, image::PREFIX_MIN};

/// An image as a create names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A name, id or digest, or how one of these two begins.
    Known(String),
    /// A registry reference, and the name it gets here.
    Reference {
        /// As given, e.g. `127.0.0.1:5000/debian:12`.
        reference: String,
        /// Made of the repository's last part and the tag or digest, e.g. `debian-12`; alone `debian` for a
        /// reference without a tag.
        name: ImageName,
    },
}

/// The longest registry reference taken, in bytes: a repository has 255 at the most, and a digest comes on top.
const REFERENCE_MAX: usize = 512;

/// How many digits of a digest go into a name.
const DIGEST_DIGITS: usize = 12;

/// Reads what a create gave as its image.
///
/// # Errors
/// `invalid_argument`: it is neither a name, nor an id, nor a reference.
pub fn parse(text: &str) -> Result<Wanted, ApiError> {
    let digest = text.strip_prefix("sha256:").unwrap_or_default();
    if (PREFIX_MIN..=64).contains(&digest.len()) && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Ok(Wanted::Known(text.to_owned()));
    }
    if !text.contains(['/', ':', '@']) {
        if uuid::Uuid::parse_str(text).is_err() {
            text.parse::<ImageName>().map_err(|error| {
                ApiError::invalid_argument(error.to_string()).hint("`warren image ls` lists the images")
            })?;
        }
        return Ok(Wanted::Known(text.to_owned()));
    }
    let refuse = |why: &str| {
        let shown: String = text.chars().take(80).collect();
        ApiError::invalid_argument(format!("the image reference {shown:?} {why}"))
            .hint("a reference looks like registry.example:5000/path/name:tag or …@sha256:…")
    };
    if text.len() > REFERENCE_MAX {
        return Err(refuse("is too long"));
    }
    if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b)) {
        return Err(refuse("holds characters no reference may hold"));
    }
    let path = text.split_once('@').map_or(text, |(path, _)| path);
    if !path.split('/').all(|part| part.starts_with(|c: char| c.is_ascii_alphanumeric())) {
        return Err(refuse("has a part that does not begin with a letter or digit"));
    }
    let name = name_of(text).ok_or_else(|| refuse("names no repository"))?;
    Ok(Wanted::Reference { reference: text.to_owned(), name })
}

/// The name a reference gets here: always the same for the same reference.
fn name_of(reference: &str) -> Option<ImageName> {
    let (path, digest) = match reference.split_once('@') {
        Some((path, digest)) => (path, Some(digest.split_once(':')?.1)),
        None => (reference, None),
    };
    let last = path.rsplit('/').next()?;
    let (repository, tag) = match last.split_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (last, None),
    };
    let suffix = digest.map(|digest| &digest[..digest.len().min(DIGEST_DIGITS)]).or(tag);
    let name = match suffix {
        Some("") => return None,
        Some(suffix) => format!("{repository}-{suffix}"),
        None => repository.to_owned(),
    };
    // Tags may hold upper case and be longer than a name may be.
    let name: String = name.to_ascii_lowercase().chars().take(63).collect();
    name.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::ErrorCode;

    #[test]
    fn a_reference_gets_a_name_of_its_repository_and_tag() {
        for (reference, name) in [
            ("127.0.0.1:5000/debian:12", "debian-12"),
            ("registry.example/a/b/nginx", "nginx"),
            ("debian:12", "debian-12"),
            ("r/App_X:Rc.1", "app_x-rc.1"),
            ("r/app@sha256:0123456789abcdef0123", "app-0123456789ab"),
            ("r/app:1@sha256:0123456789abcdef0123", "app-0123456789ab"),
        ] {
            let wanted = parse(reference).unwrap();
            assert_eq!(wanted, Wanted::Reference { reference: reference.into(), name: name.parse().unwrap() });
        }
        let long = format!("r/{}:12", "a".repeat(100));
        assert!(matches!(parse(&long).unwrap(), Wanted::Reference { name, .. } if name.as_str().len() == 63));
    }

    #[test]
    fn a_name_and_an_id_are_taken_as_they_are() {
        for text in
            ["debian", "debian-12.5_slim", "0190d5a4-0000-7000-8000-000000000000", "0190d5a4-00", "sha256:0123abcd"]
        {
            assert_eq!(parse(text).unwrap(), Wanted::Known(text.into()));
        }
    }

    #[test]
    fn hostile_text_is_refused() {
        let long = format!("r/{}", "a".repeat(600));
        for text in [
            "",
            "../x",
            "../x y",
            "a/../b",
            "a//b",
            "a/b c",
            "a:\n",
            "/",
            "a/",
            "a/:",
            "r/a:",
            "r/a@sha256",
            "Debian",
            "a b",
            &long,
        ] {
            assert_eq!(parse(text).unwrap_err().code, ErrorCode::InvalidArgument, "{text:?}");
        }
    }
}
