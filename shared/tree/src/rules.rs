//! git's **ignore rules** of a workspace: `.git/info/exclude` and each directory's `.gitignore`, read when they are first asked for.

use std::{collections::HashMap, io::Read, rc::Rc};

use gix_ignore::glob::{Pattern, pattern::Case, wildmatch::Mode};

use crate::files::{Root, join, split};

/// The most bytes of one file of rules that are read.
const FILE_MAX: u64 = 1 << 20;

/// The rules of one tree.
pub(crate) struct Rules<'a> {
    root: &'a Root,
    known: HashMap<Vec<u8>, Rc<[Pattern]>>,
    exclude: Rc<[Pattern]>,
}

impl<'a> Rules<'a> {
    pub(crate) fn new(root: &'a Root) -> Self {
        Self { root, known: HashMap::new(), exclude: read(root, b".git/info/exclude") }
    }

    /// Whether a path is ignored, when no directory it is in is: the nearest file of rules that says anything of it decides, in
    /// each the last line.
    pub(crate) fn ignores(&mut self, path: &[u8], directory: bool) -> bool {
        let (mut place, _) = split(path);
        loop {
            let patterns = self.of(place);
            let below = if place.is_empty() { path } else { &path[place.len() + 1..] };
            if let Some(ignored) = verdict(&patterns, below, directory) {
                return ignored;
            }
            if place.is_empty() {
                return verdict(&self.exclude, path, directory).unwrap_or(false);
            }
            place = split(place).0;
        }
    }

    fn of(&mut self, directory: &[u8]) -> Rc<[Pattern]> {
        if let Some(patterns) = self.known.get(directory) {
            return patterns.clone();
        }
        let patterns = read(self.root, &join(directory, b".gitignore"));
        self.known.insert(directory.to_vec(), patterns.clone());
        patterns
    }
}

/// A file's rules; what is not there or cannot be read has none.
fn read(root: &Root, path: &[u8]) -> Rc<[Pattern]> {
    let mut text = Vec::new();
    match root.file(path).and_then(|file| file.take(FILE_MAX).read_to_end(&mut text)) {
        Ok(_) => gix_ignore::parse(&text, false).map(|(pattern, ..)| pattern).collect(),
        Err(_) => Rc::default(),
    }
}

fn verdict(patterns: &[Pattern], path: &[u8], directory: bool) -> Option<bool> {
    let name = path.iter().rposition(|byte| *byte == b'/').map(|slash| slash + 1);
    let matches = |pattern: &&Pattern| {
        let mode = Mode::NO_MATCH_SLASH_LITERAL;
        pattern.matches_repo_relative_path(path.into(), name, Some(directory), Case::Sensitive, mode)
    };
    patterns.iter().rev().find(matches).map(|pattern| !pattern.is_negative())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_nearest_rules_decide_as_in_git() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(".git/info")).unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join(".git/info/exclude"), "secret\n").unwrap();
        fs::write(dir.path().join(".gitignore"), "# note\n*.o\n/target/\n!keep.o\na/**/deep\n").unwrap();
        fs::write(dir.path().join("a/.gitignore"), "!b.o\nlocal\n").unwrap();
        let root = Root::open(&dir.path().canonicalize().unwrap()).unwrap();
        let mut rules = Rules::new(&root);
        for (path, directory, ignored) in [
            ("x.o", false, true),
            ("keep.o", false, false),
            ("a/x.o", false, true),
            ("a/b.o", false, false),
            ("a/b/b.o", false, false),
            ("a/local", true, true),
            ("local", true, false),
            ("target", true, true),
            ("target", false, false),
            ("a/target", true, false),
            ("a/b/deep", false, true),
            ("a/b/secret", false, true),
            ("a/b/plain", false, false),
        ] {
            assert_eq!(rules.ignores(path.as_bytes(), directory), ignored, "{path}");
        }
    }
}
