//! The **source** of a prepare, as the user writes it.

use std::path::{Path, PathBuf};

use contract::{ApiError, worktree::History};

/// Where the files come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A directory here.
    Here(PathBuf),
    /// A repository that workspace-service clones.
    Git(String),
    /// A directory on the VM's host.
    Host(String),
    /// A tar archive on standard input.
    Archive,
}

impl Origin {
    /// Reads it. What exists here as a directory is one, whatever else it looks like.
    pub fn parse(text: &str) -> Self {
        if text == "-" {
            return Self::Archive;
        }
        if Path::new(text).is_dir() {
            return Self::Here(text.into());
        }
        if let Some(path) = text.strip_prefix("host:") {
            return Self::Host(path.to_owned());
        }
        if text.contains("://") {
            return Self::Git(text.to_owned());
        }
        // As git reads user@host:path.
        match text.split_once(':') {
            Some((host, path)) if host.contains('@') && !host.contains('/') && !path.is_empty() => {
                Self::Git(format!("ssh://{host}/{}", path.trim_start_matches('/')))
            }
            _ => Self::Here(text.into()),
        }
    }
}

/// Reads `full`, `none` or a number.
///
/// # Errors
/// It is none of them.
pub fn history(text: &str) -> Result<History, ApiError> {
    let depth = text.strip_prefix("depth").map_or(text, |rest| rest.trim_start_matches([' ', '=', ':']));
    match (text, depth.parse::<u32>()) {
        ("full", _) => Ok(History::Full),
        ("none", _) => Ok(History::None),
        (_, Ok(depth @ 1..)) => Ok(History::Depth(depth)),
        _ => Err(ApiError::invalid_argument(format!("{text:?} is no history"))
            .hint("write full, none, or how many commits, such as 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_apart() {
        let git = |url: &str| Origin::Git(url.into());
        assert_eq!(Origin::parse("https://host/x.git"), git("https://host/x.git"));
        assert_eq!(Origin::parse("git@host:team/x.git"), git("ssh://git@host/team/x.git"));
        assert_eq!(Origin::parse("host:/srv/x"), Origin::Host("/srv/x".into()));
        assert_eq!(Origin::parse("-"), Origin::Archive);
        assert_eq!(Origin::parse("/"), Origin::Here("/".into()));
        assert_eq!(Origin::parse("no/such"), Origin::Here("no/such".into()));
        assert_eq!(history("depth 3"), Ok(History::Depth(3)));
        assert_eq!(
            (history("2"), history("full"), history("none")),
            (Ok(History::Depth(2)), Ok(History::Full), Ok(History::None))
        );
        assert!(history("0").is_err() && history("all").is_err());
    }
}
