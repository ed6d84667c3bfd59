//! Stories of trees that the service fetches itself: commits of git repositories, and archives of an object store.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::Arc,
    time::Duration,
};

use bus::{Bus, BusConfig};
use contract::{
    ApiError, ErrorCode,
    worktree::{History, Node, Source},
};
use testkit::Nats;
use workspace_service::served::{CACHE_BYTES, Fetched, ServedConfig, Sources, TURNS};

struct Lab {
    _nats: Nats,
    bus: Bus,
    dir: tempfile::TempDir,
    config: ServedConfig,
}

impl Lab {
    async fn start() -> Self {
        let nats = Nats::start().await;
        let bus = Bus::connect(&BusConfig::new(nats.url(), "test")).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let config = ServedConfig {
            cache: dir.path().join("cache"),
            cache_bytes: CACHE_BYTES,
            allow_file: true,
            hosts: None,
            credentials: None,
        };
        Self { _nats: nats, bus, dir, config }
    }

    async fn fetch(&self, source: Source) -> Result<Fetched, ApiError> {
        Sources::new(self.config.clone()).fetch(&self.bus, &source).await
    }

    async fn git(&self, reference: Option<&str>, history: History) -> Result<Fetched, ApiError> {
        let url = format!("file://{}", self.dir.path().join("repo").display());
        self.fetch(Source::Git { url, reference: reference.map(str::to_owned), history }).await
    }

    async fn put(&self, name: &str, bytes: Vec<u8>) {
        let jetstream = self.bus.jetstream();
        let config = async_nats::jetstream::object_store::Config { bucket: "files".into(), ..Default::default() };
        let store = jetstream.create_object_store(config).await.unwrap();
        store.put(name, &mut std::io::Cursor::new(bytes)).await.unwrap();
    }

    fn left(&self) -> usize {
        fs::read_dir(self.config.cache.join("scratch")).map_or(0, Iterator::count)
    }
}

fn git(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(dir)
        .args(["-c", "user.name=Ann", "-c", "user.email=ann@example.org"])
        .args(args)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The files outside of `.git`, with their contents.
fn files(fetched: &Fetched) -> Vec<(String, String)> {
    let entries = fetched.tree.entries().iter().filter(|entry| matches!(entry.node, Node::File { .. }));
    let entries = entries.filter(|entry| !entry.path.0.starts_with(b".git/"));
    let read = |from: &Option<std::path::PathBuf>| fs::read_to_string(from.as_ref().unwrap()).unwrap();
    entries.map(|entry| (entry.path.to_string(), read(&entry.from))).collect()
}

fn pair(name: &str, content: &str) -> (String, String) {
    (name.to_owned(), content.to_owned())
}

#[tokio::test]
async fn a_commit_is_fetched_once_and_what_is_new_the_next_time() {
    let lab = Lab::start().await;
    let repo = lab.dir.path().join("repo");
    fs::create_dir(&repo).unwrap();
    git(&repo, &["init", "-q", "-b", "main"]);
    fs::write(repo.join("app.py"), "one").unwrap();
    git(&repo, &["add", "."]);
    git(&repo, &["commit", "-qm", "one"]);
    git(&repo, &["tag", "v1"]);
    let first = git(&repo, &["rev-parse", "HEAD"]);

    let fetched = lab.git(None, History::Full).await.unwrap();
    assert_eq!(files(&fetched), [pair("app.py", "one")]);
    let about = &fetched.about;
    assert_eq!((about.head.as_deref(), about.branch.as_deref()), (Some(first.as_str()), Some("main")));
    assert_eq!((about.upstream.as_deref(), about.history), (Some("origin/main"), Some(History::Full)));
    assert!(about.origin.starts_with("file:///"));
    assert!(fetched.tree.entries().iter().any(|entry| entry.path.0 == b".git/HEAD"));

    fs::write(repo.join("app.py"), "two").unwrap();
    git(&repo, &["commit", "-qam", "two"]);
    let (newer, tagged, bare) = tokio::join!(
        lab.git(Some("main"), History::Full),
        lab.git(Some("v1"), History::Full),
        lab.git(Some(&first), History::None),
    );
    assert_eq!(files(&newer.unwrap()), [pair("app.py", "two")]);
    assert_eq!(files(&tagged.unwrap()), [pair("app.py", "one")]);
    let bare = bare.unwrap();
    assert_eq!(bare.tree.entries().len(), 1, "no repository was asked for");
    drop((fetched, bare));
    assert_eq!(lab.left(), 0);

    let error = lab.git(Some("nope"), History::Full).await.err().unwrap();
    assert!(error.code == ErrorCode::NotFound && error.message.contains("nope"), "{error:?}");
}

#[tokio::test]
async fn directories_of_the_services_machine_are_served_only_where_its_operator_says_so() {
    let mut lab = Lab::start().await;
    lab.config.allow_file = false;
    let error = lab.git(None, History::Full).await.err().unwrap();
    assert!(error.message.contains("not allowed"), "{error:?}");
    lab.config.allow_file = true;
    let error = lab.git(None, History::Full).await.err().unwrap();
    assert!(error.message.contains("git"), "{error:?}");
}

/// A server that takes connections and says nothing, and its URL.
fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/x", listener.local_addr().unwrap());
    (listener, url)
}

/// Waits until somebody connects.
async fn connected(listener: &TcpListener) -> TcpStream {
    let listener = listener.try_clone().unwrap();
    let (stream, _) = tokio::task::spawn_blocking(move || listener.accept().unwrap()).await.unwrap();
    stream
}

#[tokio::test]
async fn fetches_that_nobody_waits_for_and_many_of_one_repository_keep_nobody_waiting() {
    let lab = Lab::start().await;
    let repo = lab.dir.path().join("repo");
    fs::create_dir(&repo).unwrap();
    git(&repo, &["init", "-q", "-b", "main"]);
    git(&repo, &["commit", "-q", "--allow-empty", "-m", "one"]);
    fs::write(repo.join("app.py"), "one").unwrap();
    git(&repo, &["add", "."]);
    git(&repo, &["commit", "-qm", "two"]);
    let sources = Arc::new(Sources::new(lab.config.clone()));
    let source = |url: &str| Source::Git { url: url.to_owned(), reference: None, history: History::Full };
    let ask = |url: &str| {
        let (sources, bus, source) = (sources.clone(), lab.bus.clone(), source(url));
        tokio::spawn(async move { sources.fetch(&bus, &source).await.map(drop) })
    };
    let good = format!("file://{}", repo.display());

    // Many want one that does not answer: they have one turn.
    let (listener, url) = silent();
    let many: Vec<_> = (0..2 * TURNS).map(|_| ask(&url)).collect();
    let _held = connected(&listener).await;
    ask(&good).await.unwrap().unwrap();

    // All turns are taken by others that do not answer, until nobody waits for those.
    let silents: Vec<_> = (0..TURNS - 1).map(|_| silent()).collect();
    let others: Vec<_> = silents.iter().map(|(_, url)| ask(url)).collect();
    let mut streams = Vec::new();
    for (listener, _) in &silents {
        streams.push(connected(listener).await);
    }
    let waits = ask(&good);
    tokio::task::yield_now().await;
    assert!(!waits.is_finished());
    many.iter().chain(&others).for_each(tokio::task::JoinHandle::abort);
    waits.await.unwrap().unwrap();
    // The connections are closed, since those who held them are gone.
    for mut stream in streams {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let ended = tokio::task::spawn_blocking(move || stream.read_to_end(&mut Vec::new()));
        let timeout = |kind| matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut);
        assert!(!ended.await.unwrap().is_err_and(|error| timeout(error.kind())), "git goes on");
    }
}

#[tokio::test]
async fn a_host_that_its_operator_does_not_list_is_refused() {
    let mut lab = Lab::start().await;
    lab.config.hosts = Some("git.example, *.forge.example".parse().unwrap());
    let (listener, url) = silent();
    let source = Source::Git { url, reference: None, history: History::Full };
    let error = lab.fetch(source).await.err().unwrap();
    assert_eq!(error.code, ErrorCode::PermissionDenied);
    assert!(error.hint.unwrap().contains("WARREN_GIT_HOSTS"));
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "nobody asked it");
}

/// A tar archive of one file and a link.
fn archive() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o755);
    builder.append_data(&mut header, "bin/hello", &b"hello"[..]).unwrap();
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    builder.append_link(&mut link, "hi", "bin/hello").unwrap();
    builder.into_inner().unwrap()
}

#[tokio::test]
async fn an_archive_comes_out_of_an_object_store_plain_or_compressed() {
    let lab = Lab::start().await;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&archive()).unwrap();
    let zstd = zstd::encode_all(&archive()[..], 1).unwrap();
    for (name, bytes) in [("app.tar", archive()), ("a b/app.tgz", gzip.finish().unwrap()), ("app.zst", zstd)] {
        lab.put(name, bytes).await;
        let fetched = lab.fetch(Source::Object(format!("files/{name}"))).await.unwrap();
        assert_eq!(files(&fetched), [pair("bin/hello", "hello")], "{name}");
        assert_eq!(
            (fetched.tree.entries().len(), fetched.about.origin.as_str()),
            (3, &*format!("object files/{name}"))
        );
        assert_eq!(lab.left(), 1);
        drop(fetched);
        assert_eq!(lab.left(), 0);
    }
    let mut cut = archive();
    cut.truncate(600);
    let mut escape = archive();
    // The first name of the first header.
    escape[..9].copy_from_slice(b"../../etc");
    for (name, bytes) in [("noise", vec![7; 3000]), ("cut", cut), ("empty", Vec::new()), ("escape", escape)] {
        lab.put(name, bytes).await;
        let error = lab.fetch(Source::Object(format!("files/{name}"))).await.err().unwrap();
        assert!(error.code == ErrorCode::InvalidArgument && error.hint.is_some(), "{name}: {error:?}");
    }
    for name in ["files/none", "none/app.tar"] {
        let error = lab.fetch(Source::Object(name.into())).await.err().unwrap();
        assert!(error.code == ErrorCode::NotFound && error.message.contains(name), "{error:?}");
    }
    assert_eq!(lab.left(), 0);
}
