//! The host's side of a channel, and an agent without a VM.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use bytes::BytesMut;
use contract::{
    config_drive::Settings,
    frame::{Exit, Frame},
    guest::{GuestFacts, MAGIC, Reply, Request},
    workspace::Command,
};
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use guest_agent::{
    agent::{Shared, channel::Channel, mux},
    boot::Init,
    jobs::Jobs,
    process::Cgroups,
    ssh,
    workspace::Workspaces,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::{mpsc, oneshot, watch},
};
use tokio_util::compat::TokioAsyncReadCompatExt;

/// The longest anything here may take.
pub const BOUND: Duration = Duration::from_secs(20);

/// A host key made for these tests only.
const HOST_KEY: &str = include_str!("host_key");

/// Settings of a VM whose operator has these keys.
pub fn settings(keys: &[&str]) -> Settings {
    Settings {
        vm_id: "test".into(),
        name: "web".parse().unwrap(),
        domain: "warren".into(),
        network: None,
        ssh_keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        ssh_host_key: HOST_KEY.into(),
        image: contract::image::ImageConfig { env: vec!["FROM_IMAGE=yes".into()], ..Default::default() },
        user_data: None,
        mounts: Vec::new(),
    }
}

/// guest-agent's own program, for its sftp server.
pub fn program() -> Arc<OwnedFd> {
    Arc::new(std::fs::File::open(env!("CARGO_BIN_EXE_guest-agent")).unwrap().into())
}

/// What an agent's tasks share.
pub fn shared() -> Arc<Shared> {
    shared_with(tree::StateDir("/nonexistent".into()))
}

/// The same, whose workspaces are remembered there.
pub fn shared_with(state: tree::StateDir) -> Arc<Shared> {
    let settings = settings(&[]);
    let ssh = ssh::Server::new(&settings, program(), Cgroups::none()).unwrap();
    Arc::new(Shared {
        settings,
        init: Init::GuestAgent,
        program: program(),
        ssh: Some(ssh),
        jobs: Jobs::new(None, Cgroups::none()),
        workspaces: Workspaces::open(state),
        lanes: Arc::new(tokio::sync::Semaphore::new(guest_agent::agent::LANES_MAX)),
        facts: watch::Sender::new(None),
    })
}

/// Says that the agent is ready.
pub fn make_ready(shared: &Shared) {
    shared.facts.send_replace(Some(GuestFacts { kernel: "test".into(), ..GuestFacts::default() }));
}

/// Starts an agent's side of a pipe; the other end is the host's.
pub fn agent(shared: &Arc<Shared>) -> DuplexStream {
    let (host, guest) = tokio::io::duplex(256 * 1024);
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let mut channel = Channel::new(guest);
        while mux::serve(&mut channel, &shared).await.is_ok() {}
    });
    host
}

/// A preamble.
pub fn preamble(nonce: u8) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend([nonce; 16]);
    bytes.extend(MAGIC.iter().rev());
    bytes
}

/// Sends a preamble and waits for its echo, dropping what comes before.
pub async fn shake_hands(pipe: &mut DuplexStream, nonce: u8) {
    let preamble = preamble(nonce);
    pipe.write_all(&preamble).await.unwrap();
    let mut seen = Vec::new();
    tokio::time::timeout(BOUND, async {
        while !seen.ends_with(&preamble) {
            seen.push(pipe.read_u8().await.unwrap());
        }
    })
    .await
    .expect("the echo of the preamble");
}

/// A host connected to an agent. Dropped, it drops the pipe.
pub struct Host {
    open: mpsc::Sender<oneshot::Sender<yamux::Stream>>,
}

impl Host {
    /// Shakes hands and speaks yamux from then on.
    pub async fn connect(mut pipe: DuplexStream) -> Self {
        shake_hands(&mut pipe, 1).await;
        let mut connection = yamux::Connection::new(pipe.compat(), yamux::Config::default(), yamux::Mode::Client);
        let (open, mut wanted) = mpsc::channel::<oneshot::Sender<yamux::Stream>>(1);
        tokio::spawn(async move {
            let mut asked: Option<oneshot::Sender<yamux::Stream>> = None;
            std::future::poll_fn(|context| {
                loop {
                    if asked.is_none() {
                        match wanted.poll_recv(context) {
                            std::task::Poll::Ready(None) => return std::task::Poll::Ready(()),
                            std::task::Poll::Ready(some) => asked = some,
                            std::task::Poll::Pending => {}
                        }
                    }
                    if asked.is_some()
                        && let std::task::Poll::Ready(stream) = connection.poll_new_outbound(context)
                    {
                        let Ok(stream) = stream else { return std::task::Poll::Ready(()) };
                        asked.take().map(|asked| asked.send(stream));
                        continue;
                    }
                    match connection.poll_next_inbound(context) {
                        std::task::Poll::Ready(Some(Ok(_))) => {}
                        std::task::Poll::Ready(_) => return std::task::Poll::Ready(()),
                        std::task::Poll::Pending => return std::task::Poll::Pending,
                    }
                }
            })
            .await;
        });
        Self { open }
    }

    /// Opens a stream and asks.
    pub async fn ask(&self, request: &Request) -> (yamux::Stream, Reply) {
        let message = serde_json::to_vec(request).unwrap();
        self.ask_raw(message.len(), &message).await
    }

    /// Opens a stream and sends these bytes as a message that says it has that length.
    pub async fn ask_raw(&self, length: usize, message: &[u8]) -> (yamux::Stream, Reply) {
        let (give, take) = oneshot::channel();
        self.open.send(give).await.unwrap();
        let mut stream = take.await.unwrap();
        stream.write_all(&(length as u32).to_be_bytes()).await.unwrap();
        stream.write_all(message).await.unwrap();
        let reply = tokio::time::timeout(BOUND, async {
            let mut length = [0; 4];
            stream.read_exact(&mut length).await.unwrap();
            let mut reply = vec![0; u32::from_be_bytes(length) as usize];
            stream.read_exact(&mut reply).await.unwrap();
            serde_json::from_slice(&reply).unwrap()
        });
        let reply = reply.await.expect("a reply");
        (stream, reply)
    }

    /// Runs a command that must be accepted.
    pub async fn exec(&self, command: Command) -> Exec {
        let (stream, reply) = self.ask(&Request::Exec(command)).await;
        assert_eq!(reply, Reply::Ok);
        Exec { stream, buffer: BytesMut::new() }
    }
}

/// A running command.
pub struct Exec {
    pub stream: yamux::Stream,
    buffer: BytesMut,
}

impl Exec {
    /// Over a stream that was accepted.
    pub fn over(stream: yamux::Stream) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// Sends a frame.
    pub async fn send(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes);
        self.stream.write_all(&bytes).await.unwrap();
    }

    /// The next frame.
    pub async fn next(&mut self) -> Frame {
        tokio::time::timeout(BOUND, async {
            loop {
                if let Some(frame) = Frame::decode(&mut self.buffer).unwrap() {
                    return frame;
                }
                let mut bytes = vec![0; 16 * 1024];
                let length = self.stream.read(&mut bytes).await.unwrap();
                assert!(length > 0, "the stream ended without an exit");
                self.buffer.extend_from_slice(&bytes[..length]);
            }
        })
        .await
        .expect("a frame")
    }

    /// All output up to the exit.
    pub async fn finish(&mut self) -> (Vec<u8>, Vec<u8>, Exit) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            match self.next().await {
                Frame::Stdout(bytes) => out.extend_from_slice(&bytes),
                Frame::Stderr(bytes) => err.extend_from_slice(&bytes),
                Frame::Exit(exit) => return (out, err, exit),
                other => panic!("unexpected {other:?}"),
            }
        }
    }
}

/// A shell command line.
pub fn shell(line: &str) -> Command {
    Command { argv: vec!["sh".into(), "-c".into(), line.into()], ..Command::default() }
}
