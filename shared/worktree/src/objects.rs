//! **Commits** that were made in a VM, on their way into the user's repository as a reference of it. Their objects are taken from a repository
//! made for them, whose every other file is ours, as git takes them from a stranger: named by what they hold, checked, and whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    path::Path,
};

use contract::worktree::Node;

use crate::{
    changes::{Export, Taken},
    error::WorktreeError,
    fast_import::{self, Content, Making, Put},
    git::{Bounds, FRUGAL, Git, records},
    packs::is_id,
    repo::{self, Indexed, Repo},
    snapshot::{Base, References, files_of, is_below},
};

/// The most bytes of memory that git may take for what came out of a VM: enough for the indices of the largest repositories.
const MEMORY_MAX: u64 = 4 << 30;

/// What was brought in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// `refs/warren/<vm>/<n>`
    pub reference: String,
    /// Where it leads.
    pub commit: String,
    /// How many commits were made in the VM.
    pub commits: u64,
    /// What was not committed there is one commit more.
    pub uncommitted: bool,
    /// Changes of submodules, which no commit of this repository holds.
    pub left_out: usize,
}

/// Brings the commits of an export in, with what was not committed as one more on top; nothing where there is neither.
///
/// # Errors
/// The objects are damaged or not all there, there is no repository in the VM, or git does not work.
pub fn import_commits(
    repo: &Repo,
    references: &References,
    base: &Base,
    export: &Export<'_>,
    taken: &Taken,
) -> Result<Option<Imported>, WorktreeError> {
    let Some(head) = export.changes.head.as_deref() else {
        return Err(WorktreeError::Unsupported(
            "there is no repository with a commit in the VM's workspace".to_owned(),
        ));
    };
    if !is_id(head) {
        return Err(WorktreeError::Hostile("its HEAD is no commit id".to_owned()));
    }
    let moved = base.head.as_deref() != Some(head);
    let reference = references.next(&repo.git)?;
    let committed =
        if moved { bring_in(repo, export.quarantine, head, &reference)? } else { files_of(&repo.git, head)? };
    let (top, left_out) = uncommitted(repo, base, export, taken, &committed, &reference)?;
    if !moved && top.is_none() {
        return Ok(None);
    }
    let known = base.head.iter().map(|known| format!("^{known}"));
    let count: Vec<String> = ["rev-list", "--count", head].map(str::to_owned).into_iter().chain(known).collect();
    let commits = repo.git.text(&count)?.trim().parse().unwrap_or(0);
    let commit = top.clone().unwrap_or_else(|| head.to_owned());
    Ok(Some(Imported { reference, commit, commits, uncommitted: top.is_some(), left_out }))
}

/// Fetches a commit whose objects are in the quarantine or in the user's repository; its files.
fn bring_in(
    repo: &Repo,
    quarantine: &Path,
    head: &str,
    reference: &str,
) -> Result<BTreeMap<Vec<u8>, Indexed>, WorktreeError> {
    let scratch = tempfile::tempdir_in(quarantine).map_err(WorktreeError::write(quarantine))?;
    let dir = scratch.path();
    let bounds = Bounds { memory: Some(MEMORY_MAX), file: None };
    let git = Git::at(dir).bounded(bounds);
    git.run(&["init", "--quiet", "--bare", "--template=", "--object-format=sha1", "."])?;
    // A fetch starts another git there, which has no settings of the one that started it.
    for (name, value) in FRUGAL.iter().filter_map(|setting| setting.split_once('=')) {
        git.run(&["config", name, value])?;
    }
    let own = repo.common.join("objects");
    let alternates = dir.join("objects/info/alternates");
    let text = [own.as_os_str().as_encoded_bytes(), b"\n"].concat();
    if own.as_os_str().as_encoded_bytes().contains(&b'\n') {
        return Err(WorktreeError::Unsupported(format!("{} has a newline in its path", own.display())));
    }
    fs::create_dir_all(dir.join("objects/info"))
        .and_then(|()| fs::write(&alternates, text))
        .map_err(WorktreeError::write(&alternates))?;
    let shallow = repo.common.join("shallow");
    if shallow.exists() {
        fs::copy(&shallow, dir.join("shallow")).map_err(WorktreeError::read(&shallow))?;
    }
    let bytes = move_objects(&git, &quarantine.join("git/objects"), &dir.join("objects"))?;
    tracing::debug!(bytes, "objects came out of the VM");
    let refused = |error| match error {
        WorktreeError::Git { said, .. } | WorktreeError::TooMuch(said) => {
            WorktreeError::Hostile(format!("its commits cannot be taken: {said}"))
        }
        other => other,
    };
    git.run(&["update-ref", "refs/heads/guest", head]).map_err(refused)?;
    // Before anything is in the user's repository: a tree of a few objects may be without an end.
    let committed = files_of(&git, head).map_err(refused)?;
    let from = dir.as_os_str();
    let refspec = format!("refs/heads/guest:{reference}");
    let args =
        ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--no-auto-maintenance"];
    let args: Vec<&std::ffi::OsStr> = args.iter().map(|arg| (*arg).as_ref()).chain([from, refspec.as_ref()]).collect();
    let strict = ["fetch.fsckObjects=true", "protocol.allow=never", "protocol.file.allow=always", "fetch.prune=false"];
    let git = strict.iter().fold(repo.git.clone().bounded(bounds), |git, setting| git.setting(*setting));
    git.run(&args).map_err(refused)?;
    Ok(committed)
}

/// Moves loose objects, and unpacks packs by what they hold; their bytes. What an index from the VM says is not used.
fn move_objects(git: &Git, from: &Path, to: &Path) -> Result<u64, WorktreeError> {
    let mut bytes = 0;
    let mut packs = Vec::new();
    for directory in list(from)? {
        for path in list(&directory)? {
            bytes += fs::symlink_metadata(&path).map_err(WorktreeError::read(&path))?.len();
            let (Some(fan), Some(name)) = (directory.file_name(), path.file_name()) else { continue };
            if fan == "pack" {
                if path.extension().is_some_and(|ending| ending == "pack") {
                    packs.push(path);
                }
            } else if fan.len() == 2 && is_id(&format!("{}{}", fan.to_string_lossy(), name.to_string_lossy())) {
                let target = to.join(fan);
                fs::create_dir_all(&target)
                    .and_then(|()| fs::rename(&path, target.join(name)))
                    .map_err(WorktreeError::write(&target))?;
            }
        }
    }
    for pack in packs {
        let mut file = File::open(&pack).map_err(WorktreeError::read(&pack))?;
        let (_, written) = git
            .stream(&["index-pack", "--stdin", "--fix-thin"], move |to| io::copy(&mut file, to))
            .map_err(|error| match error {
                WorktreeError::Git { said, .. } => {
                    WorktreeError::Hostile(format!("a pack of its objects is damaged: {said}"))
                }
                other => other,
            })?;
        written.map_err(WorktreeError::read(&pack))?;
    }
    Ok(bytes)
}

fn list(dir: &Path) -> Result<Vec<std::path::PathBuf>, WorktreeError> {
    match fs::read_dir(dir) {
        Ok(entries) => {
            entries.map(|entry| entry.map(|it| it.path())).collect::<io::Result<_>>().map_err(WorktreeError::read(dir))
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(error) => Err(WorktreeError::read(dir)(error)),
    }
}

/// Makes a commit of what is not committed in the VM: of all paths that git may show there as changed, what lies there now. Gives it, if there
/// is something, and how many paths are in submodules.
fn uncommitted(
    repo: &Repo,
    base: &Base,
    export: &Export<'_>,
    taken: &Taken,
    committed: &BTreeMap<Vec<u8>, Indexed>,
    reference: &str,
) -> Result<(Option<String>, usize), WorktreeError> {
    let head = export.changes.head.clone().unwrap_or_default();
    let modules = committed.values().filter(|it| it.mode == 0o160_000).map(|it| &it.path[..]).collect();
    let now = files_of(&repo.git, &taken.commit)?;
    let mut paths: BTreeSet<Vec<u8>> = BTreeSet::new();
    let told =
        export.changes.changes.iter().filter(|it| {
            !matches!((&it.before, &it.after), (Some(Node::Directory { .. }), Some(Node::Directory { .. })))
        });
    paths.extend(told.map(|change| change.path.0.clone()));
    if let Some(known) = &base.head {
        // What the user had not committed, and what was committed in the VM.
        paths.extend(differing(&repo.git, known, &base.dirty)?);
        paths.extend(differing(&repo.git, known, &head)?);
    } else {
        paths.extend(repo::tree(&repo.git, &base.commit)?.into_iter().map(|it| it.path));
        paths.extend(committed.keys().cloned());
    }
    let before = paths.len();
    paths.retain(|path| !is_below(path, &modules));
    let left_out = before - paths.len();
    // What git did not show here it does not show there: ignored files that were sent, and what a sparse checkout leaves out, also of commits
    // that came to be there.
    let shown = files_of(&repo.git, &base.dirty)?;
    let is_ignored = |path: &[u8]| taken.before.contains_key(path) && !shown.contains_key(path);
    let sparse = shown.iter().any(|(path, it)| it.mode != 0o160_000 && !taken.before.contains_key(path));
    let (mut deletes, mut puts) = (Vec::new(), Vec::new());
    for path in paths {
        match (committed.get(&path).filter(|it| it.mode != 0o160_000), now.get(&path).filter(|it| it.mode != 0o160_000))
        {
            (Some(_), None) if sparse && !taken.before.contains_key(&path) => {}
            (Some(_), None) => deletes.push(path),
            (None, Some(_)) if is_ignored(&path) => {}
            (known, Some(file)) if known.is_none_or(|known| known.mode != file.mode || known.id != file.id) => {
                puts.push(Put { path, mode: file.mode, content: Content::Object(file.id.clone()) });
            }
            _ => {}
        }
    }
    if deletes.is_empty() && puts.is_empty() {
        return Ok((None, left_out));
    }
    let message = "Uncommitted changes in the VM\n";
    let making = Making { parent: Some(head), message, time: crate::changes::now(), deletes, puts };
    Ok((fast_import::import(&repo.git, reference, vec![making])?.pop(), left_out))
}

fn differing(git: &Git, from: &str, until: &str) -> Result<Vec<Vec<u8>>, WorktreeError> {
    let out = git.run(&["diff-tree", "-r", "-z", "--name-only", "--no-renames", "--end-of-options", from, until])?;
    Ok(records(&out).map(<[u8]>::to_vec).collect())
}
