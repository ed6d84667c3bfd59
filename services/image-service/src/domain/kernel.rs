//! Where a **kernel** is imported from; here it is checked before anything is done with it.

use std::path::{Component, Path};

use contract::{
    ApiError,
    kernel::{KernelSource, LABEL_MAX},
};

/// The longest path taken, in bytes (Linux's PATH_MAX with its NUL).
const PATH_MAX: usize = 4095;

/// Refuses a source that no host-agent could use.
///
/// # Errors
/// `invalid_argument`, with what is wrong with it.
pub fn check(source: &KernelSource) -> Result<(), ApiError> {
    let refuse = |what: &str, text: &str, why: &str, hint: String| {
        let shown: String = text.chars().take(80).collect();
        Err(ApiError::invalid_argument(format!("the {what} {shown:?} {why}")).hint(hint))
    };
    match source {
        KernelSource::Path(text) => {
            let path = Path::new(text);
            let why = if text.len() > PATH_MAX {
                "is too long"
            } else if text.contains(char::is_control) {
                "holds control characters"
            } else if !path.is_absolute() {
                "is not absolute"
            } else if path.components().any(|part| part == Component::ParentDir) {
                "holds '..'"
            } else {
                return Ok(());
            };
            let hint = "give the absolute path of a kernel's file, or of a directory of its packages, on the host that imports it";
            refuse("kernel path", text, why, hint.to_owned())
        }
        KernelSource::Upload { label, .. } => {
            if label.is_empty() || label.len() > LABEL_MAX || label.contains(char::is_control) {
                let hint = format!("it has 1 to {LABEL_MAX} bytes and no control characters");
                return refuse("label", label, "cannot be used", hint);
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use contract::{ErrorCode, SessionId};

    use super::*;

    #[test]
    fn a_source_is_an_absolute_path_without_a_way_up_or_an_upload_with_a_label() {
        let path = |text: &str| check(&KernelSource::Path(text.to_owned()));
        path("/srv/kernels/6.12").unwrap();
        for text in ["", "srv", "/srv/../etc", "/srv/\n", &format!("/{}", "a".repeat(5000))] {
            let error = path(text).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument);
            assert!(error.message.len() < 200 && error.hint.is_some(), "{error}");
        }
        let upload = |label: &str| check(&KernelSource::Upload { session: SessionId::new(), label: label.to_owned() });
        upload("linux-image-6.1.deb").unwrap();
        for label in ["", "a\nb", &"a".repeat(257)] {
            assert_eq!(upload(label).unwrap_err().code, ErrorCode::InvalidArgument);
        }
    }
}
