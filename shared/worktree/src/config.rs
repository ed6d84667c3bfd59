//! The **settings** that go along: those that change how the files look to git, who commits, and where remotes are. Nothing that runs a
//! program or tells a secret.

use std::{
    fmt::Write,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    error::WorktreeError,
    git::records,
    repo::Repo,
    submodules::{Module, Modules},
};

/// Settings that are taken over as they are in effect, from wherever they come.
const TAKEN: [&str; 10] = [
    "core.filemode",
    "core.symlinks",
    "core.ignorecase",
    "core.autocrlf",
    "core.eol",
    "core.safecrlf",
    "core.sparsecheckout",
    "core.sparsecheckoutcone",
    "user.name",
    "user.email",
];

/// All settings in effect, in order; the last one of a name counts.
pub(crate) struct Settings(Vec<(String, String)>);

impl Settings {
    /// Reads a repository's.
    pub(crate) fn of(repo: &Repo) -> Result<Self, WorktreeError> {
        let out = repo.git.run(&["config", "--list", "-z"])?;
        let pairs = records(&out).filter_map(|record| {
            let text = std::str::from_utf8(record).ok()?;
            // A name alone is a switch that is on.
            Some(match text.split_once('\n') {
                Some((name, value)) => (name.to_owned(), value.to_owned()),
                None => (text.to_owned(), "true".to_owned()),
            })
        });
        Ok(Self(pairs.collect()))
    }

    fn last(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Values of `<section>.<anything>.<key>`: what is in the middle, and the value.
    fn sections<'a>(&'a self, section: &'a str, key: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.iter().filter_map(move |(name, value)| {
            let middle = name.strip_prefix(section)?.strip_prefix('.')?.strip_suffix(key)?.strip_suffix('.')?;
            Some((middle, value.as_str()))
        })
    }

    /// The guest's `.git/config`. `branch` is the branch with its upstream's remote and ref; `worktree` leads from a submodule's git directory
    /// to its files, and `attributes` from there to what the user has for all repositories; `modules` are those that nobody has
    /// initialised here.
    pub(crate) fn for_guest(
        &self,
        branch: Option<(&str, &str, &str)>,
        worktree: Option<&str>,
        attributes: Option<&str>,
        modules: &Modules,
    ) -> String {
        let mut out = Config::default();
        out.section("core", None);
        out.value("repositoryformatversion", "0");
        out.value("bare", "false");
        out.value("logallrefupdates", "true");
        // What a copy cannot keep is not compared, so that `git status` there reads no file.
        out.value("trustctime", "false");
        out.value("checkstat", "minimal");
        if let Some(worktree) = worktree {
            out.value("worktree", worktree);
        }
        if let Some(attributes) = attributes {
            out.value("attributesfile", attributes);
        }
        for name in TAKEN.iter().filter(|name| name.starts_with("core.")) {
            self.take(&mut out, name);
        }
        out.section("user", None);
        for name in TAKEN.iter().filter(|name| name.starts_with("user.")) {
            self.take(&mut out, name);
        }
        for (remote, url) in self.sections("remote", "url") {
            out.section("remote", Some(remote));
            out.value("url", &without_secrets(url));
            for (_, fetch) in self.sections("remote", "fetch").filter(|(name, _)| *name == remote) {
                out.value("fetch", fetch);
            }
        }
        if let Some((name, remote, merge)) = branch {
            out.section("branch", Some(name));
            out.value("remote", remote);
            out.value("merge", merge);
        }
        for (name, url) in self.sections("submodule", "url") {
            out.section("submodule", Some(name));
            out.value("active", "true");
            out.value("url", &without_secrets(url));
        }
        for Module { name, url } in modules.taken() {
            out.section("submodule", Some(name));
            out.value("active", "true");
            out.value("url", &without_secrets(url));
        }
        out.0
    }

    fn take(&self, out: &mut Config, name: &str) {
        if let (Some(value), Some((_, key))) = (self.last(name), name.split_once('.')) {
            out.value(key, value);
        }
    }
}

/// The text of a repository's `info/<name>`.
pub(crate) fn info(repo: &Repo, name: &str) -> Result<Vec<u8>, WorktreeError> {
    text(&repo.common.join("info").join(name))
}

/// What the user has for all repositories: the file that a setting names, else git's usual one.
pub(crate) fn usual(repo: &Repo, setting: &str, own: &str) -> Result<Vec<u8>, WorktreeError> {
    let named = repo.git.ask(&["config", "--type=path", "--get", setting])?.map(PathBuf::from);
    let default = || {
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
        let base = std::env::var_os("XDG_CONFIG_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from).or_else(home);
        base.map(|base| base.join("git").join(own))
    };
    named.or_else(default).map_or_else(|| Ok(Vec::new()), |path| text(&repo.top.join(path)))
}

/// A text that ends with a newline; an empty one where there is none. git does without what it cannot read, too.
fn text(path: &Path) -> Result<Vec<u8>, WorktreeError> {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    match fs::read(path) {
        Ok(mut text) => {
            if text.last().is_some_and(|byte| *byte != b'\n') {
                text.push(b'\n');
            }
            Ok(text)
        }
        Err(error) if matches!(error.kind(), NotFound | PermissionDenied | NotADirectory) => Ok(Vec::new()),
        Err(error) => Err(WorktreeError::read(path)(error)),
    }
}

/// A URL without user, password and query; of ssh the user stays, who is no secret and needed.
pub fn without_secrets(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let host = match authority.rsplit_once('@') {
        Some((user, host)) if scheme.ends_with("ssh") => {
            format!("{}@{host}", user.split(':').next().unwrap_or_default())
        }
        Some((_, host)) => host.to_owned(),
        None => authority.to_owned(),
    };
    format!("{scheme}://{host}{path}")
}

/// A text as git-config(1) reads it.
#[derive(Default)]
struct Config(String);

impl Config {
    fn section(&mut self, name: &str, sub: Option<&str>) {
        let sub = sub.map(|sub| format!(" \"{}\"", sub.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', " ")));
        // Writing to a text does not fail.
        _ = writeln!(self.0, "[{name}{}]", sub.unwrap_or_default());
    }

    fn value(&mut self, key: &str, value: &str) {
        let quoted = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").replace('\t', "\\t");
        _ = writeln!(self.0, "\t{key} = \"{quoted}\"");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lose_their_secrets_and_settings_are_quoted() {
        for (url, clean) in [
            ("https://user:pass@host/x.git?token=1", "https://host/x.git"),
            ("https://token@host:8443/x.git", "https://host:8443/x.git"),
            ("ssh://git:pw@host/x.git", "ssh://git@host/x.git"),
            ("git@host:x.git", "git@host:x.git"),
            ("/srv/x.git", "/srv/x.git"),
            ("https://host/a@b", "https://host/a@b"),
        ] {
            assert_eq!(without_secrets(url), clean);
        }
        let settings = Settings(vec![
            ("user.name".into(), "A \"B\" \\ C".into()),
            ("remote.o\"x.url".into(), "https://u:p@host/x".into()),
            ("core.sshcommand".into(), "evil".into()),
            ("filter.x.smudge".into(), "evil".into()),
            ("submodule.s.update".into(), "!evil".into()),
        ]);
        let text = settings.for_guest(Some(("main", "origin", "refs/heads/main")), None, None, &Modules::none(""));
        assert!(text.contains("name = \"A \\\"B\\\" \\\\ C\""), "{text}");
        assert!(text.contains("[remote \"o\\\"x\"]") && text.contains("\"https://host/x\""), "{text}");
        assert!(!text.contains("evil") && !text.contains("u:p"), "{text}");
    }
}
