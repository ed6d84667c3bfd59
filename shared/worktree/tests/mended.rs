//! Stories of captures, caches and applies that were not as they should be, and of which the next one makes the best.

mod common;

use std::{
    fs::{self, File},
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use common::{Story, away::Away, files, git, status, write};
use contract::{FileName, worktree::History};
use worktree::{Checkout, Export, Remote, apply};

fn remote(story: &Story) -> Remote {
    Remote {
        cache: story.options.cache.clone(),
        url: format!("file://{}", story.repo.display()),
        allow_file: true,
        hosts: None,
        credentials: None,
        stop: worktree::Stop::default(),
    }
}

fn wanted(name: Option<&str>) -> Checkout {
    Checkout { reference: name.map(str::to_owned), history: History::Full }
}

#[test]
fn a_remote_may_rename_branches_move_tags_and_have_no_branch_checked_out() {
    let story = Story::new();
    story.write("file", "one\n");
    story.commit("one");
    story.git(&["branch", "a"]);
    story.git(&["tag", "v1"]);
    remote(&story).capture(&wanted(Some("a"))).unwrap();
    story.git(&["branch", "-m", "a", "a/b"]);
    story.write("file", "two\n");
    story.commit("two");
    story.git(&["tag", "-f", "v1"]);
    let renamed = remote(&story).capture(&wanted(Some("a/b"))).unwrap();
    assert_eq!(renamed.about.upstream.as_deref(), Some("origin/a/b"));
    let moved = story.place(&remote(&story).capture(&wanted(None)).unwrap(), "moved");
    assert_eq!(git(&moved, &["rev-parse", "v1"]), story.git(&["rev-parse", "HEAD"]));
    story.git(&["checkout", "-q", "--detach", "HEAD~1"]);
    let detached = remote(&story).capture(&wanted(None)).unwrap();
    assert_eq!((detached.about.head, detached.about.branch), (Some(story.git(&["rev-parse", "HEAD"])), None));
    // All that is kept of it is in its own directory, which goes as one, and is nobody else's.
    let cache = &story.options.cache;
    assert!(!cache.join("packs").exists());
    let own = fs::read_dir(cache.join("remotes")).unwrap().next().unwrap().unwrap().path();
    for private in [cache, &own, &own.join("packs")] {
        assert_eq!(fs::metadata(private).unwrap().permissions().mode() & 0o777, 0o700, "{}", private.display());
    }
}

#[test]
fn what_git_shows_as_changed_it_shows_in_the_copy_whatever_the_times_say() {
    let story = Story::new();
    let date = |path: &Path| {
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(1_600_000_000)).unwrap();
    };
    story.write("file", "aaaa\n");
    date(&story.repo.join("file"));
    story.commit("one");
    story.write("other", "bbbb\n");
    date(&story.repo.join("other"));
    fs::rename(story.repo.join("other"), story.repo.join("file")).unwrap();
    assert!(status(&story.repo).contains(" file"));
    let guest = story.place(&story.capture(), "guest");
    assert_eq!(status(&guest), status(&story.repo));
}

#[test]
fn the_repositorys_attributes_count_more_than_the_users_own() {
    let story = Story::new();
    let own = story.dir.path().join("attributes");
    fs::write(&own, "*.x which=user\n*.y which=user\n").unwrap();
    story.git(&["config", "core.attributesFile", own.to_str().unwrap()]);
    story.write(".gitattributes", "*.x which=repository\n");
    story.commit("one");
    let guest = story.place(&story.capture(), "guest");
    let which = |dir: &Path| git(dir, &["check-attr", "which", "f.x", "f.y"]);
    assert_eq!(which(&story.repo), "f.x: which: repository\nf.y: which: user");
    assert_eq!(which(&guest), which(&story.repo));
}

#[test]
fn a_damaged_pack_of_the_cache_is_made_anew() {
    let story = Story::new();
    story.write("file", "one\n");
    story.commit("one");
    let captured = story.capture();
    let pack = captured.tree.entries().iter().find(|it| it.path.to_string().ends_with(".pack")).unwrap();
    let from = pack.from.clone().unwrap();
    fs::set_permissions(&from, fs::Permissions::from_mode(0o600)).unwrap();
    let mut bytes = fs::read(&from).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&from, bytes).unwrap();
    captured.distrust(&FileName(b"file".to_vec()));
    captured.distrust(&pack.path);
    git(&story.place(&story.capture(), "guest"), &["fsck"]);
}

#[test]
fn an_apply_that_was_cut_off_is_finished_by_the_next() {
    let story = Story::new();
    for name in ["aa", "file", "was-file", "into-directory", "directory/in"] {
        story.write(name, name);
    }
    symlink("aa", story.repo.join("was-link")).unwrap();
    story.commit("one");
    let mut away = Away::new(story);
    let guest = away.guest.clone();
    write(&guest, "aa", "changed\n");
    for name in ["was-file", "was-link", "into-directory", "directory/in"] {
        fs::remove_file(guest.join(name)).unwrap();
    }
    fs::remove_dir(guest.join("directory")).unwrap();
    symlink("file", guest.join("was-file")).unwrap();
    write(&guest, "was-link", "a file\n");
    write(&guest, "into-directory/in", "in\n");
    write(&guest, "directory", "a file\n");
    let (changes, quarantine, taken) = away.taken();
    let export = Export { changes: &changes, quarantine: &quarantine };
    // The first file that is written cannot be: all that goes first has gone.
    let (first, aside) = (quarantine.join("tree/aa"), quarantine.join("aside"));
    fs::rename(&first, &aside).unwrap();
    apply(&away.story.repo, &away.git, &export, &taken).unwrap_err();
    assert!(!away.story.repo.join("into-directory").exists());
    assert!(away.story.repo.join("was-file").is_file() && away.story.repo.join("was-link").is_symlink());
    fs::rename(&aside, &first).unwrap();
    apply(&away.story.repo, &away.git, &export, &taken).unwrap();
    assert_eq!(files(&away.story.repo), files(&guest));
}
