//! The ssh server against OpenSSH's own clients, over a loopback port.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use crate::support::{BOUND, program, settings};
use guest_agent::{process::Cgroups, ssh::Server};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    process::Command,
};

/// A server, and a client's directory with a key.
struct Lab {
    directory: tempfile::TempDir,
    port: u16,
    user: String,
    server: Server,
}

impl Lab {
    /// Nothing when there is no OpenSSH here, or nobody to log in as.
    async fn new(trusted: bool) -> Option<Self> {
        Self::with_key(trusted, "ed25519").await
    }

    async fn with_key(trusted: bool, kind: &str) -> Option<Self> {
        let (Ok(user), true) = (whoami(), has("ssh") && has("ssh-keygen")) else {
            println!("skipped: OpenSSH's clients and a user of this machine are needed");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("key");
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", kind, "-N", "", "-f"]).arg(&key).status().await.unwrap();
        assert!(made.success());
        let public = std::fs::read_to_string(directory.path().join("key.pub")).unwrap();
        let server = Server::new(&settings(&[&public]), program(), Cgroups::none()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let lab = Self { directory, port, user, server: server.clone() };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                tokio::spawn(async move {
                    if trusted { server.serve_trusted(stream).await } else { server.serve_network(stream).await }
                });
            }
        });
        Some(lab)
    }

    /// Waits until so many are logged in.
    async fn logged_in(&self, count: u32) {
        let reached = async {
            while self.server.logged_in() != count {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(BOUND, reached).await.expect("so many log in or out");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn options(&self, command: &mut Command, port: &str, key: &Path) {
        let known = format!("UserKnownHostsFile={}", self.path("known").display());
        command.args(["-F", "none", "-o", &known, "-o", "StrictHostKeyChecking=accept-new", "-o", "BatchMode=yes"]);
        command
            .args(["-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", port, &self.port.to_string(), "-i"])
            .arg(key);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    }

    async fn ssh(&self, more: &[&str], input: &[u8]) -> (Vec<u8>, String, i32) {
        self.ssh_with(&self.path("key"), more, input).await
    }

    async fn ssh_with(&self, key: &Path, more: &[&str], input: &[u8]) -> (Vec<u8>, String, i32) {
        let mut command = Command::new("ssh");
        self.options(&mut command, "-p", key);
        command.arg(format!("{}@127.0.0.1", self.user)).args(more);
        run(command, input).await
    }

    async fn copy(&self, program: &str, arguments: &[&str], input: &[u8]) -> (Vec<u8>, String, i32) {
        let mut command = Command::new(program);
        self.options(&mut command, "-P", &self.path("key"));
        command.args(arguments);
        run(command, input).await
    }
}

async fn run(mut command: Command, input: &[u8]) -> (Vec<u8>, String, i32) {
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feed = async {
        // A client that ends early does not want the rest.
        stdin.write_all(input).await.unwrap_or_default();
        drop(stdin);
    };
    let (output, ()) = tokio::time::timeout(BOUND, async { tokio::join!(child.wait_with_output(), feed) })
        .await
        .expect("the client to end");
    let output = output.unwrap();
    (output.stdout, String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code().unwrap_or(-1))
}

fn has(program: &str) -> bool {
    std::env::var("PATH").unwrap_or_default().split(':').any(|directory| Path::new(directory).join(program).is_file())
}

fn whoami() -> Result<String, ()> {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).ok().flatten().ok_or(())?;
    Ok(user.name)
}

#[tokio::test]
async fn only_who_is_logged_in_counts_and_only_while_the_connection_is_open() {
    let Some(lab) = Lab::new(false).await else { return };
    let stranger = tokio::net::TcpStream::connect(("127.0.0.1", lab.port)).await.unwrap();
    let mut command = Command::new("ssh");
    lab.options(&mut command, "-p", &lab.path("key"));
    let mut client = command.arg(format!("{}@127.0.0.1", lab.user)).arg("cat").spawn().unwrap();
    lab.logged_in(1).await;
    drop(client.stdin.take());
    client.wait().await.unwrap();
    lab.logged_in(0).await;
    drop(stranger);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_its_streams_and_its_exit_status() {
    let Some(lab) = Lab::new(false).await else { return };
    let (out, err, code) = lab.ssh(&["echo $FROM_IMAGE; echo wrong >&2; exit 7"], b"").await;
    assert_eq!((String::from_utf8_lossy(&out).as_ref(), code), ("yes\n", 7), "{err}");
    assert!(err.contains("wrong"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lot_goes_in_and_comes_out_unharmed() {
    let Some(lab) = Lab::new(false).await else { return };
    let data: Vec<u8> = (0..9_000_000u32).map(|n| (n % 253) as u8).collect();
    let (out, err, code) = lab.ssh(&["cat"], &data).await;
    assert_eq!(code, 0, "{err}");
    assert!(out == data, "{} bytes came back of {}", out.len(), data.len());
    let (out, _, _) = lab.ssh(&["sleep 1; wc -c"], &data).await;
    assert_eq!(String::from_utf8_lossy(&out).trim(), "9000000");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_operators_key_logs_in_over_the_network() {
    let Some(lab) = Lab::new(false).await else { return };
    let other = lab.path("other");
    let made =
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&other).status().await.unwrap();
    assert!(made.success());
    let (_, err, code) = lab.ssh_with(&other, &["true"], b"").await;
    assert_eq!(code, 255);
    assert!(err.contains("Permission denied (publickey)"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_kinds_of_keys_log_in_too() {
    for kind in ["rsa", "ecdsa"] {
        let Some(lab) = Lab::with_key(false, kind).await else { return };
        let (_, err, code) = lab.ssh(&["true"], b"").await;
        assert_eq!(code, 0, "{kind}: {err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_channel_needs_no_key() {
    let Some(lab) = Lab::new(true).await else { return };
    let (out, err, code) = lab.ssh_with(Path::new("/dev/null"), &["echo in"], b"").await;
    assert_eq!((out.as_slice(), code), (&b"in\n"[..], 0), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_one() {
    let Some(lab) = Lab::new(false).await else { return };
    let (out, err, code) = lab.ssh(&["-tt", "test -t 0 && test -t 1 && echo a terminal: $TERM; exit 5"], b"").await;
    let out = String::from_utf8_lossy(&out);
    assert!(out.contains("a terminal: "), "{out} {err}");
    assert_eq!(code, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn sftp_and_scp_copy_both_ways() {
    let Some(lab) = Lab::new(false).await else { return };
    if !has("sftp") || !has("scp") {
        return println!("skipped: no sftp or scp here");
    }
    let data: Vec<u8> = (0..3_000_000u32).map(|n| (n % 241) as u8).collect();
    std::fs::write(lab.path("there"), &data).unwrap();
    let at = |name: &str| lab.path(name).display().to_string();
    let remote = |name: &str| format!("{}@127.0.0.1:{}", lab.user, at(name));
    let (_, err, code) = lab.copy("scp", &[&at("there"), &remote("copied")], b"").await;
    assert_eq!(code, 0, "{err}");
    let (_, err, code) = lab.copy("scp", &[&remote("copied"), &at("back")], b"").await;
    assert_eq!(code, 0, "{err}");
    assert!(std::fs::read(lab.path("back")).unwrap() == data);
    let script = format!(
        "mkdir {d}\nput {f} {d}/a\nrename {d}/a {d}/b\nln -s b {d}/l\nchmod 600 {d}/b\nls -l {d}\nrm {d}/l\nrm {d}/b\nrmdir {d}\n",
        d = at("made"),
        f = at("there")
    );
    let (out, err, code) = lab.copy("sftp", &["-b", "-", &format!("{}@127.0.0.1", lab.user)], script.as_bytes()).await;
    assert_eq!(code, 0, "{err}");
    let out = String::from_utf8_lossy(&out);
    assert!(out.contains("-rw-------") && out.contains("lrwxrwxrwx"), "{out}");
    assert!(!lab.path("made").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_forwarded_from_the_client() {
    let Some(lab) = Lab::new(false).await else { return };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = format!("localhost:{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut reader, mut writer) = stream.split();
        tokio::io::copy(&mut reader, &mut writer).await.unwrap();
    });
    let (out, err, code) = lab.ssh(&["-W", &target], b"through the tunnel").await;
    assert_eq!((String::from_utf8_lossy(&out).as_ref(), code), ("through the tunnel", 0), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unix_sockets_are_forwarded_from_the_client() {
    let Some(lab) = Lab::new(false).await else { return };
    let (here, there) = (lab.path("here.sock"), lab.path("there.sock"));
    let listener = tokio::net::UnixListener::bind(&there).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                // All of it, so that each direction's end has to arrive by itself.
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.unwrap();
                stream.write_all(&all).await.unwrap();
            });
        }
    });
    let mut command = Command::new("ssh");
    lab.options(&mut command, "-p", &lab.path("key"));
    let forwards = [format!("{}:{}", here.display(), there.display()), format!("{0}2:{0}", lab.path("none").display())];
    command.args(["-N", "-L", &forwards[0], "-L", &forwards[1], &format!("{}@127.0.0.1", lab.user)]);
    let _client = command.spawn().unwrap();
    let connect = async |path: &Path| {
        let connected = async {
            loop {
                if let Ok(stream) = tokio::net::UnixStream::connect(path).await {
                    return stream;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(BOUND, connected).await.expect("ssh listens")
    };
    let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n % 241) as u8).collect();
    for _ in 0..2 {
        let (mut reader, mut writer) = connect(&here).await.into_split();
        let copy = sent.clone();
        let write = tokio::spawn(async move {
            writer.write_all(&copy).await.unwrap();
            writer.shutdown().await.unwrap();
        });
        let mut back = Vec::new();
        tokio::time::timeout(BOUND, reader.read_to_end(&mut back)).await.unwrap().unwrap();
        assert!(back == sent, "{} bytes came back", back.len());
        write.await.unwrap();
    }
    // Where nobody listens the connection ends at once.
    let mut refused = connect(&lab.path("none2")).await;
    let ended = tokio::time::timeout(BOUND, refused.read(&mut [0; 1])).await.expect("it ends");
    assert!(matches!(ended, Ok(0) | Err(_)));
}
