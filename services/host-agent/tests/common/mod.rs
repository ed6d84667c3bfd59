//! Network namespaces of a test's own, so that nothing it does touches the machine's network.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    fs::File,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    process::Command,
    sync::Arc,
    time::Duration,
};

use nix::sched::{CloneFlags, setns, unshare};

/// Longer than a connection on one machine takes, short enough to wait for those that must fail.
const CONNECT: Duration = Duration::from_millis(800);

/// A network namespace without a name; it goes with the last handle of it.
#[derive(Clone)]
pub struct Ns(Arc<File>);

impl Ns {
    pub fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let ns = Self(Arc::new(made.join().unwrap()));
        ns.sh("ip link set lo up");
        ns
    }

    pub fn named(name: &str) -> Self {
        Self(Arc::new(File::open(format!("/run/netns/{name}")).unwrap()))
    }

    /// Runs something in a thread that is in the namespace.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let file = self.0.clone();
        let thread = std::thread::spawn(move || {
            setns(&*file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().expect("work in a namespace succeeds")
    }

    /// Runs a shell command there; its output.
    pub fn sh(&self, command: &str) -> String {
        let command = command.to_owned();
        self.run(move || {
            let output = Command::new("sh").args(["-ec", &command]).output().unwrap();
            assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    /// A path by which ip(8) finds it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Joins it to another by a veth pair.
    pub fn link(&self, own: &str, other: &Self, theirs: &str) {
        self.sh(&format!(
            "ip link add {own} type veth peer name {theirs} netns {}; ip link set {own} up",
            other.path()
        ));
        other.sh(&format!("ip link set {theirs} up"));
    }

    /// Answers connections on a port of every address with who connected, until the test ends.
    pub fn listen(&self, port: u16) {
        self.run(move || {
            let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    use std::io::Write;
                    let Ok(mut stream) = stream else { continue };
                    let peer = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
                    drop(stream.write_all(peer.as_bytes()));
                }
            });
        });
    }

    /// Sends back what it gets, on a port of every address, until the test ends.
    pub fn listen_and_echo(&self, port: u16) {
        self.run(move || {
            let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    std::thread::spawn(move || drop(std::io::copy(&mut &stream, &mut &stream)));
                }
            });
        });
    }

    /// Connects; whom the other side saw, or nothing when nobody answered.
    pub fn ask(&self, address: &str) -> Option<String> {
        let address: SocketAddr = address.parse().unwrap();
        self.run(move || {
            use std::io::Read;
            let mut stream = TcpStream::connect_timeout(&address, CONNECT).ok()?;
            stream.set_read_timeout(Some(CONNECT)).unwrap();
            let mut seen = String::new();
            stream.read_to_string(&mut seen).ok()?;
            Some(seen)
        })
    }
}

/// Why network tests cannot run here, if so.
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("network tests need root".to_owned());
    }
    let nft = Command::new("nft").arg("--version").output();
    nft.is_err().then(|| "nft is not installed".to_owned())
}
