//! The **source** of a prepare, as the user writes it.

use std::path::{Path, PathBuf};

use contract::{ApiError, worktree::History};
use worktree::Repo;

use crate::args::{PrepareArgs, TakeArgs};

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

/// Refuses options that say nothing about such a source, instead of passing over them.
///
/// # Errors
/// There is one.
pub fn check(origin: &Origin, args: &PrepareArgs) -> Result<(), ApiError> {
    let refuse = |what: &str, hint: &str| {
        let message = format!("{what} does not go with {}", args.source);
        Err(ApiError::invalid_argument(message).hint(hint))
    };
    let TakeArgs { history, include_ignored, dirty } = &args.take;
    if args.reference.is_some() && !matches!(origin, Origin::Git(_)) {
        return refuse("--ref", "it names a branch of a git URL");
    }
    if history.is_some() && matches!(origin, Origin::Host(_) | Origin::Archive) {
        return refuse("--history", "files from a host or an archive are taken as they are");
    }
    if (!include_ignored.is_empty() || dirty.is_some()) && !matches!(origin, Origin::Here(_)) {
        return refuse("--include-ignored or --dirty", "they are about a worktree here");
    }
    match origin {
        Origin::Here(dir) => check_here(dir, &args.take),
        _ => Ok(()),
    }
}

/// The same for a directory here, which need not be a repository.
///
/// # Errors
/// As [`check`].
pub fn check_here(dir: &Path, take: &TakeArgs) -> Result<(), ApiError> {
    let asks = [
        ("--history", take.history.as_ref().is_some_and(|history| history != "none")),
        ("--include-ignored", !take.include_ignored.is_empty()),
        ("--dirty", take.dirty.is_some()),
    ];
    let Some((what, _)) = asks.into_iter().find(|(_, asked)| *asked) else { return Ok(()) };
    // What is no directory is refused with words of its own where it is read.
    if dir.is_dir() && Repo::find(dir)?.is_none() {
        let message = format!("{what} does not go with {}, which is no git repository", dir.display());
        return Err(ApiError::invalid_argument(message).hint("all of its files are taken as they are: leave it out"));
    }
    Ok(())
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
