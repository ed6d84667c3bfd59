//! A host-agent whose guests are tasks: the first word of a command says how its process behaves.

use std::sync::{Arc, Mutex};

use bus::{Bus, ByteStream, Service};
use bytes::{Bytes, BytesMut};
use contract::{
    ApiError, HostId,
    agent::{GuestJobs, GuestOpen, OpenRequest},
    direct::Opened,
    frame::{Exit, Frame},
    job::{JobAsk, Jobs},
    workspace::{Command, SessionKind},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
};

use super::fake_transfers::Transfers;

/// What was seen of the service.
#[derive(Debug, Default)]
struct Seen {
    opened: Vec<OpenRequest>,
    signals: Vec<u8>,
    resets: Vec<String>,
    asks: Vec<JobAsk>,
}

/// A guest with one job, of the name asked for.
fn jobs(seen: &Mutex<Seen>, ask: JobAsk) -> Result<Jobs, ApiError> {
    seen.lock().unwrap().asks.push(ask.clone());
    let name = match ask {
        JobAsk::List {} => "build".parse().unwrap(),
        JobAsk::Start(command) => command.job.clone().unwrap(),
        JobAsk::Signal { job, .. } if job.as_str() == "none" => return Err(ApiError::not_found("no such job")),
        JobAsk::Signal { job, .. } => job,
    };
    let job = json!({ "name": name, "command": "make", "user": "root", "state": "running", "kept": true, "tty": false,
        "attached": 0, "age_ms": 1, "output_bytes": 0, "dropped_bytes": 0, "of_a_newer_guest": true });
    Ok(Jobs { jobs: vec![serde_json::from_value(job).unwrap()] })
}

pub struct FakeAgent {
    seen: Arc<Mutex<Seen>>,
    /// Lets a process that runs `hold` end.
    pub release: Arc<Notify>,
    /// Its part of workspaces.
    pub transfers: Transfers,
    _service: Service,
}

impl FakeAgent {
    /// Serves one host's guests.
    pub async fn start(bus: &Bus, host: &str) -> Self {
        let host: HostId = host.parse().unwrap();
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let release = Arc::new(Notify::new());
        let service = bus.service(&format!("host-agent-{host}"), "0.1.0", "a fake").await.unwrap();
        let guest = Guest { bus: bus.clone(), seen: seen.clone(), release: release.clone() };
        service
            .serve_agent::<GuestOpen, _>(&host, move |_, request| {
                let guest = guest.clone();
                async move { guest.open(request).await }
            })
            .await
            .unwrap();
        let transfers = Transfers::default();
        transfers.serve(&service, bus, &host).await;
        let asked = seen.clone();
        service
            .serve_agent::<GuestJobs, _>(&host, move |_, request| {
                let asked = asked.clone();
                async move { jobs(&asked, request.ask) }
            })
            .await
            .unwrap();
        service.ready().await.unwrap();
        Self { seen, release, transfers, _service: service }
    }

    pub fn opened(&self) -> Vec<OpenRequest> {
        self.seen.lock().unwrap().opened.clone()
    }

    pub fn signals(&self) -> Vec<u8> {
        self.seen.lock().unwrap().signals.clone()
    }

    pub fn asks(&self) -> Vec<JobAsk> {
        self.seen.lock().unwrap().asks.clone()
    }

    /// The reasons of the streams that the service reset.
    pub fn resets(&self) -> Vec<String> {
        self.seen.lock().unwrap().resets.clone()
    }
}

#[derive(Clone)]
struct Guest {
    bus: Bus,
    seen: Arc<Mutex<Seen>>,
    release: Arc<Notify>,
}

impl Guest {
    async fn open(self, request: OpenRequest) -> Result<Opened, ApiError> {
        self.seen.lock().unwrap().opened.push(request.clone());
        if let SessionKind::Exec(command) = &request.kind {
            if command.argv[0] == "refused" {
                return Err(ApiError::invalid_argument("no such user").hint("name a user of the image"));
            }
            if command.argv[0] == "silent" {
                std::future::pending::<()>().await;
            }
        }
        let stream = ByteStream::accept(&self.bus, request.session).await?;
        tokio::spawn(async move {
            match request.kind {
                SessionKind::Exec(command) => {
                    Process { guest: self, stream, buffer: BytesMut::new() }.run(&command).await
                }
                SessionKind::Ssh {}
                | SessionKind::Attach(_)
                | SessionKind::Console {}
                | SessionKind::Tcp(_)
                | SessionKind::Pack(_)
                | SessionKind::Unpack(_)
                | SessionKind::Look(_) => echo(stream).await,
                SessionKind::Logs { .. } => log(stream).await,
            }
        });
        Ok(Opened::default())
    }
}

/// Sends back what it gets, in upper case.
async fn echo(mut stream: ByteStream) {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    stream.write_all(&all.to_ascii_uppercase()).await.unwrap();
    stream.shutdown().await.unwrap();
}

async fn log(mut stream: ByteStream) {
    stream.write_all(b"Linux version 6.1\n").await.unwrap();
    stream.shutdown().await.unwrap();
}

struct Process {
    guest: Guest,
    stream: ByteStream,
    buffer: BytesMut,
}

impl Process {
    async fn run(mut self, command: &Command) {
        let argument = |n: usize| command.argv.get(n).map(String::as_str).unwrap_or_default();
        match argument(0) {
            "cat" => {
                let stdin = self.stdin().await;
                self.say(Frame::Stdout(stdin)).await;
                self.say(Frame::Stderr(Bytes::from_static(b"done\n"))).await;
                self.exit(argument(1).parse().unwrap_or(0), None).await;
            }
            "missing" => self.exit(127, Some("no program `missing` in PATH")).await,
            // `flood <stream> <bytes> <byte>`
            "flood" => {
                let data = Bytes::from(vec![argument(3).parse().unwrap(); argument(2).parse().unwrap()]);
                let frame = if argument(1) == "stdout" { Frame::Stdout(data) } else { Frame::Stderr(data) };
                self.say(frame).await;
                self.exit(0, None).await;
            }
            "sleep" => {
                self.say(Frame::Stdout(Bytes::from_static(b"so far\n"))).await;
                self.until_killed().await;
            }
            "deaf" => {
                // Reads nothing: the service's input backs up until the stream's window is full.
                self.guest.release.notified().await;
                self.until_killed().await;
            }
            "hold" => {
                self.say(Frame::Stdout(Bytes::from_static(b"held\n"))).await;
                self.guest.release.notified().await;
                self.exit(0, None).await;
            }
            "vanish" => {
                self.say(Frame::Stdout(Bytes::from_static(b"half\n"))).await;
                self.stream.reset("the VM stopped").await;
            }
            "garbage" => {
                self.stream.write_all(&[1, 0xff, 0xff, 0xff, 0xff]).await.unwrap();
                self.until_killed().await;
            }
            other => panic!("no program {other}"),
        }
    }

    async fn say(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes);
        self.stream.write_all(&bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    async fn exit(mut self, code: i32, message: Option<&str>) {
        self.say(Frame::Exit(Exit { code, message: message.map(str::to_owned) })).await;
        self.stream.shutdown().await.unwrap();
        self.stream.closed().await;
    }

    /// The next frame, or why there is none.
    async fn hear(&mut self) -> Result<Frame, String> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.buffer).unwrap() {
                return Ok(frame);
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => return Err("end of stream".to_owned()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    async fn stdin(&mut self) -> Bytes {
        let mut all = BytesMut::new();
        loop {
            match self.hear().await {
                Ok(Frame::Stdin(data)) if data.is_empty() => return all.freeze(),
                Ok(Frame::Stdin(data)) => all.extend_from_slice(&data),
                other => panic!("{other:?}"),
            }
        }
    }

    /// As a process that does nothing: a signal ends it, and so does a reset of its stream.
    async fn until_killed(mut self) {
        loop {
            match self.hear().await {
                Ok(Frame::Signal(number)) => {
                    self.guest.seen.lock().unwrap().signals.push(number);
                    return self.exit(128 + i32::from(number), None).await;
                }
                Ok(_) => {}
                Err(reason) => return self.guest.seen.lock().unwrap().resets.push(reason),
            }
        }
    }
}
