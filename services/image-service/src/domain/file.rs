//! **Files** that images are made of, and what is to be run in them; checked before anything is done with them.

use std::path::{Component, Path};

use contract::{
    ApiError,
    image::{CONFIG_MAX, FileSource, ImageConfig, LABEL_MAX},
};

/// The longest path taken, in bytes (Linux's PATH_MAX with its NUL).
const PATH_MAX: usize = 4095;
/// The longest name of a bucket, and of an object, in bytes.
const BUCKET_MAX: usize = 200;
const OBJECT_MAX: usize = 1024;

/// Refuses a file that no host-agent could take.
///
/// # Errors
/// `invalid_argument`, with what is wrong with it.
pub fn check(source: &FileSource) -> Result<(), ApiError> {
    match source {
        FileSource::Path(path) => host_path(path),
        FileSource::Upload { label, .. } if label.len() > LABEL_MAX || label.contains(char::is_control) => {
            Err(ApiError::invalid_argument(format!("the label {:?} cannot be used", shown(label)))
                .hint(format!("it has at most {LABEL_MAX} bytes and no control characters")))
        }
        FileSource::Upload { .. } => Ok(()),
        FileSource::Object(name) => object(name),
    }
}

/// Refuses a configuration that no VM could be given.
///
/// # Errors
/// `invalid_argument`, with what is wrong with it.
pub fn check_config(config: &ImageConfig) -> Result<(), ApiError> {
    let ImageConfig { entrypoint, env, working_dir, .. } = config;
    let refuse = |why: String| Err(ApiError::invalid_argument(format!("the image's configuration {why}")));
    if config.size() > CONFIG_MAX {
        return refuse(format!("has more than {} KiB", CONFIG_MAX / 1024));
    }
    if config.texts().any(|text| text.contains('\0')) {
        return refuse("holds a NUL character".to_owned());
    }
    if entrypoint.first().is_some_and(String::is_empty) {
        return refuse("has an entrypoint without a name".to_owned());
    }
    if let Some(wrong) = env.iter().find(|line| line.split_once('=').is_none_or(|(name, _)| name.is_empty())) {
        return refuse(format!("has {:?} in its environment, which is not NAME=value", shown(wrong)));
    }
    if !working_dir.is_empty() && !working_dir.starts_with('/') {
        return refuse(format!("has {:?} as its working directory, which is not absolute", shown(working_dir)));
    }
    Ok(())
}

fn host_path(text: &str) -> Result<(), ApiError> {
    let path = Path::new(text);
    let wrong = text.len() > PATH_MAX
        || text.contains(char::is_control)
        || !path.is_absolute()
        || path.components().any(|part| part == Component::ParentDir);
    if wrong {
        return Err(ApiError::invalid_argument(format!("{:?} is no file of a host", shown(text))).hint(
            "give an absolute path without `..`, below a directory that the host's operator allows (WARREN_IMAGE_DIRS)",
        ));
    }
    Ok(())
}

fn object(text: &str) -> Result<(), ApiError> {
    // ADR-20: a bucket is a subject token; a name may be anything.
    let token = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let named = text.split_once('/').is_some_and(|(bucket, name)| {
        (1..=BUCKET_MAX).contains(&bucket.len())
            && bucket.chars().all(token)
            && (1..=OBJECT_MAX).contains(&name.len())
            && !name.contains(char::is_control)
    });
    if named {
        return Ok(());
    }
    Err(ApiError::invalid_argument(format!("{:?} names no object", shown(text)))
        .hint("write bucket/name, as `nats object ls` shows them"))
}

/// The beginning of a text that may be hostile and megabytes long.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use contract::{ErrorCode, SessionId};

    use super::*;

    #[test]
    fn files_that_a_host_could_have_are_taken_and_no_others() {
        let upload = |label: String| FileSource::Upload { session: SessionId::new(), label };
        for taken in [
            FileSource::Path("/srv/images/debian.ext4".into()),
            upload("debian.ext4".into()),
            FileSource::Object("images/debian/12".into()),
        ] {
            assert_eq!(check(&taken), Ok(()), "{taken:?}");
        }
        for refused in [
            FileSource::Path(String::new()),
            FileSource::Path("srv".into()),
            FileSource::Path("/srv/../etc/shadow".into()),
            FileSource::Path("/srv/\n".into()),
            FileSource::Path(format!("/{}", "a".repeat(5000))),
            upload("a\x1b[2J".into()),
            upload("a".repeat(256)),
            FileSource::Object("images".into()),
            FileSource::Object("a.b/c".into()),
            FileSource::Object("a/".into()),
            FileSource::Object("*/>".into()),
        ] {
            let error = check(&refused).unwrap_err();
            assert!(error.code == ErrorCode::InvalidArgument && error.message.len() < 300, "{refused:?}");
        }
    }

    #[test]
    fn a_configuration_is_one_a_vm_could_be_given() {
        let with = |change: fn(&mut ImageConfig)| {
            let mut config = ImageConfig::default();
            change(&mut config);
            check_config(&config).map_err(|error| error.message)
        };
        assert_eq!(with(|config| config.entrypoint = vec!["/app".into(), String::new()]), Ok(()));
        assert_eq!(with(|config| config.env = vec!["A=b=c".into(), "B=".into()]), Ok(()));
        assert!(with(|config| config.env = vec!["A".into()]).unwrap_err().contains("NAME=value"));
        assert!(with(|config| config.env = vec!["=b".into()]).unwrap_err().contains("NAME=value"));
        assert!(with(|config| config.entrypoint = vec![String::new()]).unwrap_err().contains("entrypoint"));
        assert!(with(|config| config.cmd = vec!["a\0b".into()]).unwrap_err().contains("NUL"));
        assert!(with(|config| config.working_dir = "srv".into()).unwrap_err().contains("absolute"));
        assert!(with(|config| config.cmd = vec!["a".repeat(70_000)]).unwrap_err().contains("KiB"));
    }
}
