//! Stories of repositories elsewhere: their submodules, the hosts they may be on, and a fetch that nobody waits for any more.

mod common;

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use common::{Story, files, git, init, status, write};
use contract::{ApiError, ErrorCode, worktree::History};
use worktree::{Checkout, Remote, Stop, WorktreeError};

/// Longer than anything here takes on a busy machine.
const BOUND: Duration = Duration::from_secs(60);

fn remote(story: &Story, url: &str) -> Remote {
    Remote {
        cache: story.options.cache.clone(),
        url: url.to_owned(),
        allow_file: true,
        hosts: None,
        credentials: None,
        stop: Stop::default(),
    }
}

fn at(history: History) -> Checkout {
    Checkout { reference: None, history }
}

/// A repository of one file.
fn repository(story: &Story, name: &str) -> PathBuf {
    let dir = story.dir.path().join(name);
    fs::create_dir_all(&dir).unwrap();
    init(&dir);
    write(&dir, "file", &format!("of {name}\n"));
    git(&dir, &["add", "-A"]);
    git(&dir, &["commit", "-qm", name]);
    dir
}

fn add_submodule(dir: &Path, url: &str, name: &str, path: &str) {
    git(dir, &["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "--name", name, "--", url, path]);
}

/// `app` with `libs/lib`, which has `deep` within it; by relative URLs.
fn nested(story: &Story) -> PathBuf {
    let (app, lib) = (repository(story, "app"), repository(story, "lib"));
    repository(story, "deep");
    git(&lib, &["remote", "add", "origin", &format!("file://{}", lib.display())]);
    add_submodule(&lib, "../deep", "deep", "within/deep");
    git(&lib, &["commit", "-qm", "deep"]);
    git(&app, &["remote", "add", "origin", &format!("file://{}", app.display())]);
    add_submodule(&app, "../lib", "a lib", "libs/lib");
    git(&app, &["commit", "-qm", "lib"]);
    app
}

#[test]
fn submodules_come_along_as_git_itself_would_clone_them() {
    let story = Story::new();
    let app = nested(&story);
    let url = format!("file://{}", app.display());
    let clone = story.dir.path().join("clone");
    let args = ["-c", "protocol.file.allow=always", "clone", "-q", "--recurse-submodules", &url];
    git(story.dir.path(), &[&args[..], &[clone.to_str().unwrap()]].concat());
    for (history, name) in [(History::Full, "full"), (History::Depth(1), "shallow")] {
        let captured = remote(&story, &url).capture(&at(history)).unwrap();
        assert_eq!(captured.warnings, Vec::<String>::new());
        let guest = story.place(&captured, name);
        assert_eq!(files(&guest), files(&clone));
        assert_eq!(status(&guest), status(&clone), "{name}");
        let deep = guest.join("libs/lib/within/deep");
        assert_eq!(git(&deep, &["status", "--porcelain"]), "");
        assert_eq!(
            git(&deep, &["rev-parse", "HEAD"]),
            git(&clone.join("libs/lib/within/deep"), &["rev-parse", "HEAD"])
        );
        git(&deep, &["fsck"]);
        let listed = git(&guest, &["submodule", "status", "--recursive"]);
        assert!(listed.lines().all(|line| !line.trim_start().starts_with(['-', '+', 'U'])), "{listed}");
        assert_eq!(
            git(&guest, &["config", "submodule.a lib.url"]),
            format!("file://{}", story.dir.path().join("lib").display())
        );
        // Work in one shows, as it does anywhere.
        write(&deep, "file", "changed\n");
        assert_ne!(status(&guest), status(&clone));
    }
    let plain = remote(&story, &url).capture(&at(History::None)).unwrap();
    assert!(plain.tree.get(b"libs/lib/within/deep/file").is_some() && plain.tree.get(b"libs/lib/.git").is_none());
    // What is here is not asked for again.
    fs::rename(story.dir.path().join("deep"), story.dir.path().join("gone")).unwrap();
    remote(&story, &url).capture(&at(History::Full)).unwrap();
}

#[test]
fn a_submodule_that_may_not_be_taken_is_empty_and_one_that_cannot_be_is_an_error() {
    let story = Story::new();
    let app = nested(&story);
    let url = format!("file://{}", app.display());
    let set = |key: &str, value: &str| {
        git(&app, &["config", "-f", ".gitmodules", key, value]);
        git(&app, &["commit", "-qam", key]);
    };
    for (key, value, why) in [
        ("submodule.a lib.url", "https://127.0.0.1:1/lib", "no host that repositories may be fetched from"),
        ("submodule.a lib.url", "ext::true", "no scheme"),
        ("submodule.a lib.url", "https://ann:hunter2@git.example/lib", "credentials"),
        ("submodule.a lib.url", "../../../../../../../../../../../../lib", "leads out of"),
        ("submodule.a lib.update", "none", "update = none"),
    ] {
        set(key, value);
        let remote = Remote { hosts: Some("git.example".parse().unwrap()), ..remote(&story, &url) };
        let captured = remote.capture(&at(History::Full)).unwrap();
        let warnings = captured.warnings.join("\n");
        assert!(warnings.contains("libs/lib is empty") && warnings.contains(why), "{value}: {warnings}");
        assert!(!warnings.contains("hunter2"), "{warnings}");
        assert!(captured.tree.get(b"libs/lib").is_some() && captured.tree.get(b"libs/lib/file").is_none());
    }
    git(&app, &["config", "-f", ".gitmodules", "--unset", "submodule.a lib.update"]);
    set("submodule.a lib.url", "../no-such");
    let error = ApiError::from(remote(&story, &url).capture(&at(History::Full)).unwrap_err());
    assert!(error.message.starts_with("submodule libs/lib: "), "{error:?}");
    git(&app, &["rm", "-q", "--cached", ".gitmodules"]);
    git(&app, &["commit", "-qm", "nothing is said of it"]);
    let captured = remote(&story, &url).capture(&at(History::Full)).unwrap();
    assert!(captured.warnings[0].contains("says nothing of it"), "{:?}", captured.warnings);
}

#[test]
fn repositories_that_are_submodules_of_each_other_end() {
    let story = Story::new();
    let (one, two) = (repository(&story, "one"), repository(&story, "two"));
    let url = |dir: &Path| format!("file://{}", dir.display());
    let link = |dir: &Path, other: &Path| {
        write(dir, ".gitmodules", &format!("[submodule \"m\"]\n\tpath = m\n\turl = {}\n", url(other)));
        let id = git(other, &["rev-parse", "HEAD"]);
        git(dir, &["add", ".gitmodules"]);
        git(dir, &["update-index", "--add", "--cacheinfo", &format!("160000,{id},m")]);
        git(dir, &["commit", "-qm", "another"]);
    };
    // No commit can name one that names it, but each has many.
    for _ in 0..12 {
        link(&one, &two);
        link(&two, &one);
    }
    let error = remote(&story, &url(&two)).capture(&at(History::Depth(1))).unwrap_err();
    assert!(
        matches!(&error, WorktreeError::Submodule { source, .. } if matches!(**source, WorktreeError::TooMuch(_))),
        "{error}"
    );
}

/// A server that answers every request with a text.
fn answering(text: String) -> (u16, mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, (asked, questions)) = (listener.local_addr().unwrap().port(), mpsc::channel());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream: TcpStream = stream.unwrap();
            let mut request = [0; 4096];
            let read = stream.read(&mut request);
            if asked.send(()).is_err() || read.is_err() {
                return;
            }
            // Whoever asked may have gone.
            drop(stream.write_all(text.as_bytes()));
        }
    });
    (port, questions)
}

#[test]
fn a_host_that_is_listed_leads_to_no_other() {
    let story = Story::new();
    let (secret, reached) =
        answering("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".into());
    let location = format!("http://127.0.0.1:{secret}/x/info/refs?service=git-upload-pack");
    let (listed, asked) = answering(format!(
        "HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    ));
    let listing =
        |url: &str| Remote { hosts: Some(format!("127.0.0.1:{listed}").parse().unwrap()), ..remote(&story, url) };
    let error = listing(&format!("http://127.0.0.1:{secret}/x")).capture(&at(History::Full)).unwrap_err();
    let error = ApiError::from(error);
    assert!(error.code == ErrorCode::PermissionDenied && error.message.contains("no host that"), "{error:?}");
    let error = listing(&format!("http://127.0.0.1:{listed}/x")).capture(&at(History::Full)).unwrap_err();
    assert!(matches!(error, WorktreeError::Git { .. }), "{error}");
    asked.recv_timeout(BOUND).unwrap();
    assert!(reached.try_recv().is_err(), "the other host was asked: {error}");
    // Where none is listed, a repository that has moved is found.
    drop(remote(&story, &format!("http://127.0.0.1:{listed}/x")).capture(&at(History::Full)).unwrap_err());
    reached.recv_timeout(BOUND).unwrap();
}

/// Whether a process has a word among its arguments.
fn runs(word: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|it| fs::read(it.path().join("cmdline")).ok())
        .any(|line| String::from_utf8_lossy(&line).contains(word))
}

#[test]
fn a_fetch_that_nobody_waits_for_ends_at_once_with_all_it_started() {
    let story = Story::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let word = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
    let silent = remote(&story, &format!("http://{word}/x"));
    let stop = silent.stop.clone();
    let fetching = thread::spawn(move || silent.capture(&at(History::Full)).unwrap_err());
    // Connected, and waiting for an answer that never comes.
    let _connection = listener.accept().unwrap();
    assert!(runs(&word));
    drop(stop.on_drop());
    let (done, ended) = mpsc::channel();
    thread::spawn(move || done.send(fetching.join()));
    let error = ended.recv_timeout(BOUND).unwrap().unwrap();
    assert!(matches!(error, WorktreeError::Stopped), "{error}");
    let began = Instant::now();
    while runs(&word) {
        assert!(began.elapsed() < BOUND, "git goes on");
        thread::yield_now();
    }
    // Nothing begins any more.
    let late = Remote { stop, ..remote(&story, &format!("http://{word}/x")) };
    assert!(matches!(late.capture(&at(History::Full)), Err(WorktreeError::Stopped)));
}
