//! A workspace's **repository**, as far as it says whether commits were made in the VM: read without git, which the image need not have.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
};

use serde::{Deserialize, Serialize};

use crate::{
    files::{Root, Stat, join},
    row::{Kind, Row},
};

/// The most bytes of HEAD or of one branch's file.
const REF_MAX: u64 = 4096;
/// The most bytes of `packed-refs`.
const PACKED_MAX: u64 = 16 << 20;
/// The most bytes of HEAD's log, which has a line for each commit and each move of HEAD.
const LOG_MAX: u64 = 4 << 20;
/// How many things are told of that an export does not take along.
const ELSEWHERE_MAX: usize = 16;
/// The digits of a commit's id that are shown.
const SHORT: usize = 12;
/// How many branches are looked at.
const BRANCHES_MAX: usize = 10_000;
/// How many repositories within a repository are looked at.
const MODULES_MAX: usize = 10_000;
/// How deep the names of branches, and of submodules, may be.
const DEPTH_MAX: usize = 16;
/// What is left in `.git` in the middle of a merge, a rebase and their like.
pub(crate) const UNDER_WAY: [&[u8]; 7] =
    [b"MERGE_HEAD", b"CHERRY_PICK_HEAD", b"REVERT_HEAD", b"BISECT_LOG", b"rebase-merge", b"rebase-apply", b"sequencer"];

/// Where it stands; all empty where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Repository {
    /// The commit HEAD leads to.
    pub head: Option<String>,
    /// The branch HEAD is on.
    pub branch: Option<String>,
    /// All branches and the stash.
    pub branches: BTreeMap<String, String>,
    /// Commits made on no branch that HEAD was moved away from.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub left: BTreeSet<String>,
    /// Those within it, by where they are: submodules', and others that came with the tree.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub modules: BTreeMap<String, Repository>,
}

/// One line of HEAD's log.
struct Move<'a> {
    from: &'a str,
    to: &'a str,
    message: &'a str,
}

impl<'a> Move<'a> {
    /// Reads it: `<from> <to> <name> <email> <time> <zone>\t<message>` (git's refs/files-backend.c).
    fn parse(line: &'a str) -> Option<Self> {
        let (start, message) = line.split_once('\t')?;
        let mut words = start.split(' ');
        let (from, to) = (words.next()?, words.next()?);
        (is_id(from) && is_id(to)).then_some(Self { from, to, message })
    }

    /// Whether it made a commit on top of where HEAD was.
    fn made_one(&self) -> bool {
        ["commit:", "commit (initial)", "commit (merge)", "cherry-pick:", "revert:", "am:"]
            .iter()
            .any(|word| self.message.starts_with(word))
    }
}

/// What HEAD was moved away from while it was on no branch, where it was a commit made here that nothing leads to now. Without git
/// nobody can tell what a commit's parents are; its log can, for those that were made by a plain commit, which is what a user who was
/// on no branch would miss. What a rebase or an amending commit put in another one's place is not missed.
fn left_in<'a>(log: &'a str, tips: impl Iterator<Item = &'a String>) -> BTreeSet<String> {
    let moves: Vec<Move<'_>> = log.lines().filter_map(Move::parse).collect();
    let parents: BTreeMap<&str, &str> =
        moves.iter().filter(|one| one.made_one()).map(|one| (one.to, one.from)).collect();
    let mut reached: BTreeSet<&str> = BTreeSet::new();
    let merged = moves.iter().filter(|one| one.message.starts_with("merge ")).filter_map(|one| {
        let name = one.message["merge ".len()..].split(':').next()?;
        parents.keys().copied().find(|id| name.len() >= 7 && id.starts_with(name))
    });
    for tip in tips.map(String::as_str).chain(merged) {
        let mut place = Some(tip);
        while let Some(id) = place.filter(|id| reached.insert(id)) {
            place = parents.get(id).copied();
        }
    }
    let moved_away = moves.iter().filter(|one| {
        let from = one.message.strip_prefix("checkout: moving from ").and_then(|rest| rest.split(' ').next());
        from.is_some_and(is_id)
    });
    let lost = moved_away.map(|one| one.from).filter(|id| parents.contains_key(id) && !reached.contains(id));
    lost.take(BRANCHES_MAX).map(str::to_owned).collect()
}

impl Repository {
    /// Looks at the one of a workspace, and at those within it: what is below `.git/modules`, and what is one by the rows.
    pub(crate) fn look(root: &Root, rows: &[Row]) -> Self {
        let mut places = known(rows);
        modules(root, b".git/modules", 0, &mut places);
        let within = places.into_iter().map(|place| (crate::wire::text(&place), Self::at(root, &place)));
        // Those that went away have no commits.
        let modules = within.filter(|(_, repository)| *repository != Self::default()).collect();
        Self { modules, ..Self::at(root, b".git") }
    }

    fn at(root: &Root, git: &[u8]) -> Self {
        let mut branches = BTreeMap::new();
        if let Some(text) = read(root, &join(git, b"packed-refs"), PACKED_MAX) {
            for line in text.lines().filter(|line| !line.starts_with(['#', '^'])) {
                if let Some((id, name)) = line.split_once(' ') {
                    add(&mut branches, name, id);
                }
            }
        }
        loose(root, git, "refs/heads", 0, &mut branches);
        if let Some(id) = read(root, &join(git, b"refs/stash"), REF_MAX) {
            add(&mut branches, "refs/stash", &id);
        }
        let text = read(root, &join(git, b"HEAD"), REF_MAX).unwrap_or_default();
        let mut repository = match text.trim_end().strip_prefix("ref: ") {
            Some(name) => Self {
                head: branches.get(name).cloned(),
                branch: name.strip_prefix("refs/heads/").map(str::to_owned),
                branches,
                ..Self::default()
            },
            None => Self { head: Some(text.trim().to_owned()).filter(|id| is_id(id)), branches, ..Self::default() },
        };
        if let Some(log) = read(root, &join(git, b"logs/HEAD"), LOG_MAX) {
            repository.left = left_in(&log, repository.branches.values().chain(&repository.head));
        }
        repository
    }

    /// What commits of a later state this one does not have: a branch, HEAD or stash that leads elsewhere now. Branches that went
    /// away have none.
    pub(crate) fn moved(&self, now: &Self) -> Option<String> {
        if now.head.is_some() && now.head != self.head {
            return Some(match &now.branch {
                Some(branch) => format!("commits on {branch}"),
                None => "commits at HEAD".to_owned(),
            });
        }
        self.moved_elsewhere(now)
    }

    /// The same without what leads to HEAD: what an export with commits does not take along.
    pub(crate) fn moved_elsewhere(&self, now: &Self) -> Option<String> {
        self.elsewhere(now).into_iter().next()
    }

    /// All of it: branches, the stash, commits that no branch leads to, repositories within; at most [`ELSEWHERE_MAX`].
    pub(crate) fn elsewhere(&self, now: &Self) -> Vec<String> {
        let heads = [&self.head, &now.head];
        let known = |id: &String| {
            self.branches.values().any(|known| known == id) || heads.iter().any(|head| **head == Some(id.clone()))
        };
        let branches =
            now.branches.iter().filter(|(_, id)| !known(id)).map(|(name, _)| match name.strip_prefix("refs/heads/") {
                Some(branch) => format!("commits on {branch}, which is not checked out (push it from the VM)"),
                None => "a stash (git stash list)".to_owned(),
            });
        let left = now.left.iter().filter(|id| !known(id) && !self.left.contains(*id)).map(|id| {
            let id = &id[..SHORT];
            format!("commits that no branch leads to, up to {id} (git branch NAME {id} keeps them)")
        });
        let within = now.modules.iter().filter_map(|(place, now)| match self.modules.get(place) {
            Some(before) => before.moved(now).map(|what| format!("{what} in {place}")),
            None => Some(format!("the repository {place}, which was made in the VM")),
        });
        branches.chain(left).chain(within).take(ELSEWHERE_MAX).collect()
    }

    /// What is known once HEAD's commits have been taken out of a later state.
    pub(crate) fn with_head_of(&self, now: &Self) -> Self {
        let mut known = Self { head: now.head.clone(), branch: now.branch.clone(), ..self.clone() };
        if let (Some(branch), Some(id)) = (&now.branch, &now.head) {
            known.branches.insert(format!("refs/heads/{branch}"), id.clone());
        }
        known
    }
}

/// The repositories within a workspace that came with it.
fn known(rows: &[Row]) -> BTreeSet<Vec<u8>> {
    let find = |path: &[u8]| rows.binary_search_by(|row| row.path[..].cmp(path)).ok();
    let is_directory = |index: usize| matches!(rows[index].kind, Kind::Directory { .. });
    let heads = rows.iter().filter_map(|row| row.path.strip_suffix(b"/HEAD").filter(|_| row.is_git()));
    let places = heads.filter(|place| *place != b".git" && find(&join(place, b"objects")).is_some_and(is_directory));
    places.take(MODULES_MAX).map(<[u8]>::to_vec).collect()
}

/// Those of submodules, whose names may have slashes, and of theirs.
fn modules(root: &Root, place: &[u8], depth: usize, found: &mut BTreeSet<Vec<u8>>) {
    if depth > DEPTH_MAX || root.stat(place).is_ok_and(|stat| stat.is_none()) {
        return;
    }
    for (name, directory) in root.list(place).unwrap_or_default() {
        if !directory || found.len() >= MODULES_MAX {
            continue;
        }
        let inside = join(place, &name);
        if root.stat(&join(&inside, b"HEAD")).is_ok_and(|stat| stat.as_ref().is_some_and(Stat::is_file)) {
            modules(root, &join(&inside, b"modules"), depth + 1, found);
            found.insert(inside);
        } else {
            modules(root, &inside, depth + 1, found);
        }
    }
}

/// Whether something is in the middle in a repository, as after a merge with conflicts.
pub(crate) fn is_under_way(root: &Root) -> bool {
    UNDER_WAY.iter().any(|name| root.stat(&join(b".git", name)).is_ok_and(|stat| stat.is_some()))
}

/// Whether it is a commit's id: SHA-1 or SHA-256.
pub(crate) fn is_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn read(root: &Root, path: &[u8], most: u64) -> Option<String> {
    let mut bytes = Vec::new();
    root.file(path).ok()?.take(most).read_to_end(&mut bytes).ok()?;
    String::from_utf8(bytes).ok()
}

fn add(branches: &mut BTreeMap<String, String>, name: &str, id: &str) {
    let wanted = name.starts_with("refs/heads/") || name == "refs/stash";
    if wanted && is_id(id.trim()) && branches.len() < BRANCHES_MAX {
        branches.insert(name.to_owned(), id.trim().to_owned());
    }
}

/// Branches that are files of their own, which count before packed ones.
fn loose(root: &Root, git: &[u8], place: &str, depth: usize, branches: &mut BTreeMap<String, String>) {
    for (name, directory) in root.list(&join(git, place.as_bytes())).unwrap_or_default() {
        let Ok(name) = String::from_utf8(name) else { continue };
        let path = format!("{place}/{name}");
        if directory && depth < DEPTH_MAX {
            loose(root, git, &path, depth + 1, branches);
        } else if let Some(id) = read(root, &join(git, path.as_bytes()), REF_MAX) {
            add(branches, &path, &id);
        }
    }
}

/// The files of a repository's objects: loose ones and packs, with well-formed names.
pub(crate) fn object_files(root: &Root) -> std::io::Result<Vec<Vec<u8>>> {
    let objects = b".git/objects";
    if root.stat(objects)?.is_none_or(|stat| !stat.is_dir()) {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for (name, directory) in root.list(objects)? {
        if !directory || !(name == b"pack" || is_hex(&name, 2)) {
            continue;
        }
        let place = join(objects, &name);
        for (file, _) in root.list(&place)? {
            let path = join(&place, &file);
            if is_object_file(&path[b".git/".len()..]) {
                files.push(path);
            }
        }
    }
    Ok(files)
}

/// Whether a path below `.git` is one of an object or a pack.
pub(crate) fn is_object_file(path: &[u8]) -> bool {
    let Some(path) = path.strip_prefix(b"objects/") else { return false };
    if let Some(pack) = path.strip_prefix(b"pack/pack-") {
        let Some(dot) = pack.iter().position(|byte| *byte == b'.') else { return false };
        let (id, kind) = pack.split_at(dot);
        return (is_hex(id, 40) || is_hex(id, 64)) && (kind == b".pack" || kind == b".idx");
    }
    path.len() > 3 && is_hex(&path[..2], 2) && path[2] == b'/' && (is_hex(&path[3..], 38) || is_hex(&path[3..], 62))
}

fn is_hex(text: &[u8], length: usize) -> bool {
    text.len() == length && text.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn head_branches_and_stash_are_found_packed_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let git = dir.path().join(".git");
        let root = Root::open(&dir.path().canonicalize().unwrap()).unwrap();
        assert_eq!(Repository::look(&root, &[]), Repository::default());
        let id = |digit: char| digit.to_string().repeat(40);
        fs::create_dir_all(git.join("refs/heads/feature")).unwrap();
        fs::write(git.join("HEAD"), "ref: refs/heads/main\n").unwrap();
        let packed = format!("# pack-refs\n{} refs/heads/main\n{} refs/heads/old\n^{}\n", id('a'), id('b'), id('c'));
        fs::write(git.join("packed-refs"), packed).unwrap();
        let base = Repository::look(&root, &[]);
        assert_eq!((base.head.clone(), base.branch.as_deref(), base.branches.len()), (Some(id('a')), Some("main"), 2));
        fs::write(git.join("refs/heads/feature/x"), id('a')).unwrap();
        assert_eq!(base.moved(&Repository::look(&root, &[])), None);
        fs::write(git.join("refs/heads/feature/x"), id('d')).unwrap();
        assert!(base.moved(&Repository::look(&root, &[])).unwrap().contains("feature/x"));
        fs::write(git.join("refs/heads/main"), format!("{}\n", id('e'))).unwrap();
        assert_eq!(base.moved(&Repository::look(&root, &[])).unwrap(), "commits on main");
        fs::write(git.join("HEAD"), id('f')).unwrap();
        assert_eq!(Repository::look(&root, &[]).head, Some(id('f')));
    }

    #[test]
    fn commits_that_head_moved_away_from_are_found_in_its_log() {
        let id = |digit: char| digit.to_string().repeat(40);
        let line = |from: char, to: char, message: &str| {
            format!("{} {} Ann <ann@example.org> 1700000000 +0000\t{message}\n", id(from), id(to))
        };
        let away = format!("checkout: moving from {} to main", id('c'));
        let log = [
            line('a', 'a', &format!("checkout: moving from main to {}", id('a'))),
            line('a', 'b', "commit: One"),
            line('b', 'c', "commit: Two"),
            line('c', 'a', &away),
        ]
        .concat();
        let left = |log: &str, tips: &[char]| left_in(log, tips.iter().map(|tip| id(*tip)).collect::<Vec<_>>().iter());
        assert_eq!(left(&log, &['a']), BTreeSet::from([id('c')]));
        // A branch was made of it, then one more commit on that.
        assert!(left(&(log.clone() + &line('c', 'd', "commit: Three")), &['a', 'd']).is_empty());
        assert!(
            left(&(log.clone() + &line('a', 'e', "merge ccccccc: Merge made by the 'ort' strategy.")), &['e'])
                .is_empty()
        );
        // Looking at an old commit, and what was amended, is no loss.
        assert!(left(&line('a', 'b', &format!("checkout: moving from {} to main", id('a'))), &['b']).is_empty());
        assert!(left(&(line('a', 'b', "commit: One") + &line('b', 'c', "commit (amend): One")), &['c']).is_empty());
        assert!(left("nonsense\n\t\n", &[]).is_empty());
    }

    #[test]
    fn only_objects_and_packs_are_object_files() {
        let (loose, pack) = (format!("objects/ab/{}", "c".repeat(38)), format!("objects/pack/pack-{}", "d".repeat(40)));
        assert!(is_object_file(loose.as_bytes()));
        assert!(is_object_file(format!("{pack}.pack").as_bytes()) && is_object_file(format!("{pack}.idx").as_bytes()));
        for bad in [
            "objects/info/alternates",
            "objects/pack/../../hooks/x",
            "hooks/pre-commit",
            "config",
            "objects/ab/cd",
            "objects/pack/pack-1.pack",
            "objects/",
        ] {
            assert!(!is_object_file(bad.as_bytes()), "{bad}");
        }
        assert!(!is_object_file(format!("{pack}.sh").as_bytes()));
    }
}
