//! The **submodules** of a commit, as its `.gitmodules` (gitmodules(5)) has them: where each is, and whether it may be taken from there.

use std::collections::BTreeMap;

use crate::{
    error::WorktreeError,
    git::records,
    repo::{Repo, as_path},
};

/// The most bytes of a `.gitmodules`.
const FILE_MAX: u64 = 1 << 20;
/// The longest name or URL, in bytes.
const WORD_MAX: usize = 1024;

/// One that may be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// Its name, which is that of its git directory below `modules`.
    pub name: String,
    /// Where it is, with what it was relative to.
    pub url: String,
}

/// Those of one commit, by path.
#[derive(Debug)]
pub(crate) struct Modules {
    taken: BTreeMap<Vec<u8>, Module>,
    refused: BTreeMap<Vec<u8>, String>,
    /// Why one that is in neither is not taken.
    otherwise: &'static str,
}

impl Modules {
    /// None are taken.
    pub(crate) fn none(why: &'static str) -> Self {
        Self { taken: BTreeMap::new(), refused: BTreeMap::new(), otherwise: why }
    }

    /// Of a commit in a repository that is at `url`; `check` tells what is wrong with a URL.
    ///
    /// # Errors
    /// Git does not work.
    pub(crate) fn of(
        repo: &Repo,
        commit: &str,
        url: &str,
        check: impl Fn(&str) -> Result<(), WorktreeError>,
    ) -> Result<Self, WorktreeError> {
        let mut all = Self::none(".gitmodules says nothing of it");
        let listed = repo.git.run(&["ls-tree", "-z", "--full-tree", "--end-of-options", commit, ".gitmodules"])?;
        // `<mode> blob <id>\t.gitmodules`; a link is none.
        let line = records(&listed).next().map(String::from_utf8_lossy).unwrap_or_default();
        let [mode, "blob", id] = line.split(['\t', ' ']).take(3).collect::<Vec<_>>()[..] else { return Ok(all) };
        let size = repo.git.text(&["cat-file", "-s", id])?.parse().unwrap_or(u64::MAX);
        if !mode.starts_with("100") || size > FILE_MAX {
            all.otherwise = ".gitmodules is no file, or too long";
            return Ok(all);
        }
        let Ok(settings) = repo.git.run(&["config", "--blob", id, "--no-includes", "--list", "-z"]) else {
            all.otherwise = ".gitmodules cannot be read";
            return Ok(all);
        };
        for (name, said) in parse(&settings) {
            let Some(path) = said.path else { continue };
            match decide(&name, said.url, said.update, url, &check) {
                Ok(url) => all.taken.insert(path, Module { name, url }).map(drop).unwrap_or_default(),
                Err(why) => all.refused.insert(path, why).map(drop).unwrap_or_default(),
            }
        }
        all.refuse_nested();
        Ok(all)
    }

    /// One that is taken, or why it is not.
    pub(crate) fn at(&self, path: &[u8]) -> Result<&Module, &str> {
        self.taken.get(path).ok_or_else(|| self.refused.get(path).map_or(self.otherwise, String::as_str))
    }

    /// Those that are taken.
    pub(crate) fn taken(&self) -> impl Iterator<Item = &Module> {
        self.taken.values()
    }

    /// One's git directory must not lie in another's, where it would pass for a part of it.
    fn refuse_nested(&mut self) {
        let mut names: Vec<String> = self.taken.values().map(|module| module.name.clone()).collect();
        names.sort_unstable();
        let outer = |name: &str| {
            let slashes = name.match_indices('/').map(|(place, _)| &name[..place]);
            slashes.into_iter().any(|front| names.binary_search_by(|other| other.as_str().cmp(front)).is_ok())
        };
        let twice = |name: &str| names.iter().filter(|other| *other == name).count() > 1;
        let nested = self.taken.iter().filter(|(_, module)| outer(&module.name) || twice(&module.name));
        for path in nested.map(|(path, _)| path.clone()).collect::<Vec<_>>() {
            self.taken.remove(&path);
            self.refused.insert(path, "its name lies within another submodule's".to_owned());
        }
    }
}

#[derive(Debug, Default)]
struct Said {
    path: Option<Vec<u8>>,
    url: Option<String>,
    update: Option<String>,
}

fn parse(settings: &[u8]) -> BTreeMap<String, Said> {
    let mut all = BTreeMap::<String, Said>::new();
    for record in records(settings) {
        let Some(newline) = record.iter().position(|byte| *byte == b'\n') else { continue };
        let (key, value) = (String::from_utf8_lossy(&record[..newline]), &record[newline + 1..]);
        let Some((name, what)) = key.strip_prefix("submodule.").and_then(|rest| rest.rsplit_once('.')) else {
            continue;
        };
        let said = all.entry(name.to_owned()).or_default();
        let text = || String::from_utf8(value.to_vec()).ok();
        match what {
            "path" => said.path = Some(value.strip_suffix(b"/").unwrap_or(value).to_vec()),
            "url" => said.url = text(),
            "update" => said.update = text(),
            _ => {}
        }
    }
    all
}

/// Where it is taken from, or why it is not.
fn decide(
    name: &str,
    url: Option<String>,
    update: Option<String>,
    base: &str,
    check: impl Fn(&str) -> Result<(), WorktreeError>,
) -> Result<String, String> {
    if !is_name(name) {
        return Err(format!("{name:?} is no name of a submodule"));
    }
    if update.as_deref() == Some("none") {
        return Err(".gitmodules says `update = none`".to_owned());
    }
    let url = url.filter(|url| !url.is_empty() && url.len() <= WORD_MAX).ok_or(".gitmodules has no URL of it")?;
    let url = resolve(base, &url).ok_or_else(|| format!("its URL {url:?} leads out of {base}"))?;
    check(&url).map_err(|error| error.to_string())?;
    Ok(url)
}

/// A path below `modules` that stays there (git's own rule for names, CVE-2018-11235) and no option.
fn is_name(name: &str) -> bool {
    name.len() <= WORD_MAX
        && !name.contains(char::is_control)
        && !name.starts_with('-')
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// A URL, as git resolves one that begins with `./` or `../` beside the repository it stands in (git-submodule(1), `add`).
fn resolve(base: &str, url: &str) -> Option<String> {
    if !url.starts_with("./") && !url.starts_with("../") {
        return Some(url.to_owned());
    }
    let (mut base, mut rest, mut parted) = (base.trim_end_matches('/'), url, '/');
    loop {
        if let Some(below) = rest.strip_prefix("../") {
            rest = below;
            let cut = base.rfind('/').or_else(|| {
                parted = ':';
                base.rfind(':')
            })?;
            base = &base[..cut];
        } else if let Some(below) = rest.strip_prefix("./") {
            rest = below;
        } else {
            return Some(format!("{base}{parted}{}", rest.trim_end_matches('/')));
        }
    }
}

/// A path, for people.
pub(crate) fn shown(path: &[u8]) -> String {
    as_path(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_urls_are_resolved_as_git_does() {
        for (base, url, wanted) in [
            ("https://h/team/app.git", "../lib.git", "https://h/team/lib.git"),
            ("https://h/team/app.git/", "../../other/lib", "https://h/other/lib"),
            ("https://h/team/app", "./lib", "https://h/team/app/lib"),
            ("https://h/team/app", ".././lib/", "https://h/team/lib"),
            ("git@h:app.git", "../lib.git", "git@h:lib.git"),
            ("file:///srv/app", "../lib", "file:///srv/lib"),
            ("https://h/app", "https://g/lib", "https://g/lib"),
        ] {
            assert_eq!(resolve(base, url).as_deref(), Some(wanted), "{base} {url}");
        }
        assert_eq!(resolve("app", "../../../x"), None);
    }

    #[test]
    fn names_that_lead_elsewhere_are_none() {
        for name in ["../x", "a/../b", "/a", "a//b", ".", "-x", "a\nb", ""] {
            assert!(!is_name(name), "{name:?}");
        }
        assert!(is_name("libs/one.two"));
        let module = |name: &str| Module { name: name.into(), url: String::new() };
        let mut all = Modules::none("");
        for (path, name) in [("x", "a"), ("y", "a/hooks/b"), ("z", "ab")] {
            all.taken.insert(path.into(), module(name));
        }
        all.refuse_nested();
        assert_eq!(all.taken().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["a", "ab"]);
        assert!(all.at(b"y").is_err());
    }
}
