//! VMs without processors: vm-lifecycle's verbs, and guests that understand scripts of a few words.
//!
//! A script's lines: `say WORDS`, `spill BYTES`, `wait` (until released), `die` (its VM ends), `exit CODE`; all else is passed over.

use std::{
    collections::BTreeMap,
    io::Read,
    sync::{Arc, Mutex},
    time::Duration,
};

use bus::{Bus, ByteStream, Service};
use bytes::{Bytes, BytesMut};
use contract::{
    ApiError, ErrorCode, HostId, ImageId, MebiBytes, OperationId, VmId, VmName,
    agent::{GuestJobs, GuestOpen, OpenRequest},
    direct::Opened,
    feature::Features,
    frame::{Exit, Frame},
    job::{Job, JobAsk, JobState, Jobs},
    operation::{Operation, VmResult},
    vm::{self, CreateRequest, LifecycleRequest, Vm, VmState},
    workspace::{Command, SessionKind},
};
use serde_json::{Value, json};
use store::Store;
use time::OffsetDateTime;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
};

use crate::fake_host::FakeRegistry;

/// What a guest's job has done.
#[derive(Clone, Debug, Default)]
struct FakeJob {
    output: Vec<u8>,
    exit: Option<Exit>,
}

/// One VM.
#[derive(Clone, Debug)]
struct FakeVm {
    name: VmName,
    image: String,
    state: VmState,
    files: BTreeMap<String, Vec<u8>>,
    job: Option<FakeJob>,
}

#[derive(Default)]
struct State {
    vms: BTreeMap<VmId, FakeVm>,
    /// What was asked for, in order.
    created: Vec<CreateRequest>,
    started: Vec<Command>,
    /// Files that were in a VM when its script began, without the script.
    files: Vec<BTreeMap<String, Vec<u8>>>,
    released: bool,
    creates_held: bool,
    /// How long the next request for a VM is on its way.
    late: Option<Duration>,
    /// Requests for VMs that came, and that were looked at.
    asked: (usize, usize),
    /// The host of the VMs answers nobody.
    silent: bool,
}

struct Inner {
    store: Store,
    host: HostId,
    state: Mutex<State>,
    changed: Notify,
}

/// The VMs of a lab.
pub struct FakeVms {
    inner: Arc<Inner>,
    _services: [Service; 2],
}

impl FakeVms {
    pub async fn start(bus: &Bus, database_url: &str, host: &HostId, registry: &FakeRegistry) -> Self {
        let store = Store::connect(database_url, store::StoreConfig::default()).await.unwrap();
        let inner = Arc::new(Inner { store, host: host.clone(), state: Mutex::default(), changed: Notify::new() });
        let vms = bus.service("vm-lifecycle", "0.1.0", "a fake").await.unwrap();
        let lab = inner.clone();
        let create = vms.serve::<vm::Create, _>(move |context, request| {
            let lab = lab.clone();
            async move { lab.create(context.request_key, request).await }
        });
        create.await.unwrap();
        let lab = inner.clone();
        registry.also(Box::new(move |vm| lab.get(vm)));
        let lab = inner.clone();
        let stop = vms.serve::<vm::Stop, _>(move |context, request| {
            let lab = lab.clone();
            async move { lab.stop(context.request_key, request).await }
        });
        stop.await.unwrap();
        let lab = inner.clone();
        let delete = vms.serve::<vm::Delete, _>(move |context, request| {
            let lab = lab.clone();
            async move { lab.delete(context.request_key, request).await }
        });
        delete.await.unwrap();
        vms.ready().await.unwrap();
        let agent = bus.service("host-agent", "0.1.0", "a fake").await.unwrap();
        let lab = inner.clone();
        let jobs = agent.serve_agent::<GuestJobs, _>(host, move |_, request| {
            let lab = lab.clone();
            async move { lab.jobs(request.vm, request.ask) }
        });
        jobs.await.unwrap();
        let (lab, wire) = (inner.clone(), bus.clone());
        let open = agent.serve_agent::<GuestOpen, _>(host, move |_, request| {
            let (lab, wire) = (lab.clone(), wire.clone());
            async move { lab.open(&wire, request).await }
        });
        open.await.unwrap();
        agent.ready().await.unwrap();
        Self { inner, _services: [vms, agent] }
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.inner.state.lock().unwrap());
        self.inner.changed.notify_waiters();
        changed
    }

    /// Lets scripts that wait go on.
    pub fn release(&self) {
        self.change(|state| state.released = true);
    }

    /// Has scripts wait again.
    pub fn hold(&self) {
        self.change(|state| state.released = false);
    }

    /// From now on a create is accepted and nobody works on it.
    pub fn hold_creates(&self) {
        self.change(|state| state.creates_held = true);
    }

    /// The next request for a VM is on its way for so long.
    pub fn delay_a_create(&self, time: Duration) {
        self.change(|state| state.late = Some(time));
    }

    /// Requests for VMs that came, and that were looked at.
    pub fn asked(&self) -> (usize, usize) {
        self.change(|state| state.asked)
    }

    /// From now on their host answers nobody, or does again.
    pub fn set_silent(&self, silent: bool) {
        self.change(|state| state.silent = silent);
    }

    /// The VMs there are.
    pub fn names(&self) -> Vec<String> {
        self.change(|state| state.vms.values().map(|vm| vm.name.to_string()).collect())
    }

    /// What was asked for.
    pub fn created(&self) -> Vec<CreateRequest> {
        self.change(|state| state.created.clone())
    }

    /// The scripts that were begun.
    pub fn started(&self) -> Vec<Command> {
        self.change(|state| state.started.clone())
    }

    /// The files that each of them found.
    pub fn files(&self) -> Vec<BTreeMap<String, Vec<u8>>> {
        self.change(|state| state.files.clone())
    }
}

impl Inner {
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.state.lock().unwrap());
        self.changed.notify_waiters();
        changed
    }

    /// An operation that has ended well, or that nobody works on; a repeat finds the first.
    async fn operation(
        &self,
        kind: &str,
        key: Option<String>,
        vm: VmId,
        name: &VmName,
        held: bool,
    ) -> (Operation, bool) {
        let client = self.store.client().await.unwrap();
        let result = json!(VmResult::of(vm, name.clone()));
        let insert = "insert into operations.operation \
                (id, kind, resource, state, request, result, request_key, deadline_at, finished_at) \
             values ($1, $2, $3, $4, '{}', $5, $6, now() + interval '1 hour', $7) \
             on conflict (kind, request_key) where request_key is not null do nothing";
        let (state, ended) = if held { ("queued", None) } else { ("succeeded", Some(OffsetDateTime::now_utc())) };
        let id = OperationId::new();
        let result = (!held).then_some(result);
        let resource = vm.resource();
        let new = client.execute(insert, &[&id.0, &kind, &resource, &state, &result, &key, &ended]).await.unwrap() == 1;
        let look = "select id from operations.operation where kind = $1 and (id = $2 or request_key = $3)";
        let id = OperationId(client.query_one(look, &[&kind, &id.0, &key]).await.unwrap().get(0));
        drop(client);
        (operations::get(&self.store, id).await.unwrap(), new)
    }

    async fn create(&self, key: Option<String>, request: CreateRequest) -> Result<Operation, ApiError> {
        let late = self.change(|state| {
            state.asked.0 += 1;
            state.late.take()
        });
        tokio::time::sleep(late.unwrap_or_default()).await;
        let created = self.created(key, request).await;
        self.change(|state| state.asked.1 += 1);
        Ok(created)
    }

    async fn created(&self, key: Option<String>, request: CreateRequest) -> Operation {
        let (id, held) = (VmId::new(), self.state.lock().unwrap().creates_held);
        let (operation, new) = self.operation("vm.create", key, id, &request.name, held).await;
        if new {
            self.change(|state| {
                let (name, image) = (request.name.clone(), request.image.clone());
                state.created.push(request);
                if !held {
                    let files = BTreeMap::new();
                    state.vms.insert(id, FakeVm { name, image, state: VmState::Running, files, job: None });
                }
            });
        }
        operation
    }

    fn find(&self, vm: &str) -> Result<(VmId, FakeVm), ApiError> {
        let state = self.state.lock().unwrap();
        let found = state.vms.iter().find(|(id, known)| id.to_string() == vm || known.name.as_str() == vm);
        found.map(|(id, vm)| (*id, vm.clone())).ok_or_else(|| ApiError::not_found(format!("there is no VM {vm}")))
    }

    fn get(&self, vm: &str) -> Option<Vm> {
        let (id, vm) = self.find(vm).ok()?;
        Some(Vm {
            id,
            name: vm.name,
            state: vm.state,
            host: self.host.clone(),
            host_down: false,
            image: ImageId::new(),
            image_name: vm.image,
            image_digest: None,
            booted: None,
            cpus: 1,
            memory: MebiBytes(256),
            disk: MebiBytes(2048),
            address: [10, 77, 0, 2].into(),
            mac: "02:57:0a:4d:00:02".into(),
            fqdn: "x.warren".into(),
            ssh_host_key: None,
            ssh_port: None,
            lab: None,
            labels: contract::Labels::new(),
            restart: vm::RestartPolicy::No,
            restarts: 0,
            restart_at: None,
            expires_at: None,
            idle_limit: None,
            active_at: None,
            deletion_protection: false,
            features: Features::default(),
            operation: None,
            queued: Vec::new(),
            reason: (vm.state == VmState::Failed).then(|| "its kernel panicked".to_owned()),
            created_at: OffsetDateTime::UNIX_EPOCH,
            ready_at: None,
        })
    }

    async fn stop(&self, key: Option<String>, request: LifecycleRequest) -> Result<Operation, ApiError> {
        let (id, vm) = self.find(&request.vm)?;
        self.change(|state| state.vms.get_mut(&id).unwrap().state = VmState::Stopped);
        Ok(self.operation("vm.stop", key, id, &vm.name, false).await.0)
    }

    async fn delete(&self, key: Option<String>, request: LifecycleRequest) -> Result<Operation, ApiError> {
        let (id, vm) = self.find(&request.vm)?;
        self.change(|state| state.vms.remove(&id));
        Ok(self.operation("vm.delete", key, id, &vm.name, false).await.0)
    }

    fn jobs(self: &Arc<Self>, vm: VmId, ask: JobAsk) -> Result<Jobs, ApiError> {
        if let JobAsk::Start(command) = ask {
            self.begin(vm, *command)?;
        }
        let state = self.state.lock().unwrap();
        let vm = running(&state, vm)?;
        let job = vm.job.as_ref().map(|job| Job {
            name: "build".parse().unwrap(),
            command: String::new(),
            user: "root".into(),
            state: if job.exit.is_some() { JobState::Ended } else { JobState::Running },
            exit_code: job.exit.as_ref().map(|exit| exit.code),
            message: None,
            kept: true,
            tty: false,
            attached: 0,
            age_ms: 0,
            ended_ms: None,
            output_bytes: job.output.len() as u64,
            dropped_bytes: 0,
        });
        Ok(Jobs { jobs: job.into_iter().collect() })
    }

    fn begin(self: &Arc<Self>, id: VmId, command: Command) -> Result<(), ApiError> {
        let script = self.change(|state| {
            let vm = running(state, id)?.clone();
            if vm.job.is_some() {
                return Err(ApiError::already_exists("a job build runs in the VM"));
            }
            let path = command.argv.last().unwrap().trim_start_matches('/').to_owned();
            let mut files = vm.files.clone();
            let script = files.remove(&path).ok_or_else(|| ApiError::not_found("no script"))?;
            state.started.push(command);
            state.files.push(files);
            state.vms.get_mut(&id).unwrap().job = Some(FakeJob::default());
            Ok(String::from_utf8(script).unwrap())
        })?;
        let lab = self.clone();
        tokio::spawn(async move { lab.interpret(id, &script).await });
        Ok(())
    }

    /// Runs a script.
    async fn interpret(&self, id: VmId, script: &str) {
        let say = |bytes: &[u8]| {
            self.change(|state| {
                if let Some(job) = state.vms.get_mut(&id).and_then(|vm| vm.job.as_mut()) {
                    job.output.extend_from_slice(bytes);
                }
            });
        };
        let mut code = 0;
        for line in script.lines() {
            match line.split_once(' ').unwrap_or((line, "")) {
                ("say", words) => say(format!("{words}\n").as_bytes()),
                ("spill", bytes) => {
                    let lines = (0..bytes.parse::<usize>().unwrap() / 64).map(|n| format!("{n:063}\n"));
                    say(lines.collect::<String>().as_bytes());
                }
                ("wait", _) => loop {
                    let changed = self.changed.notified();
                    if self.state.lock().unwrap().released {
                        break;
                    }
                    changed.await;
                },
                ("die", _) => {
                    self.change(|state| state.vms.get_mut(&id).unwrap().state = VmState::Failed);
                    return;
                }
                ("exit", number) => {
                    code = number.parse().unwrap();
                    break;
                }
                _ => {}
            }
        }
        self.change(|state| {
            if let Some(job) = state.vms.get_mut(&id).and_then(|vm| vm.job.as_mut()) {
                job.exit = Some(Exit { code, message: None });
            }
        });
    }

    async fn open(self: &Arc<Self>, bus: &Bus, request: OpenRequest) -> Result<Opened, ApiError> {
        running(&self.state.lock().unwrap(), request.vm)?;
        let stream = ByteStream::accept(bus, request.session).await?;
        let (lab, vm) = (self.clone(), request.vm);
        match request.kind {
            SessionKind::Unpack(_) => tokio::spawn(async move { lab.unpack(stream, vm).await }),
            SessionKind::Attach(_) => tokio::spawn(async move { lab.attach(stream, vm).await }),
            SessionKind::Exec(_) => tokio::spawn(async move { finish(stream, Exit { code: 0, message: None }).await }),
            other => return Err(ApiError::new(ErrorCode::Internal, format!("the fake guest knows no {other:?}"))),
        };
        Ok(Opened::default())
    }

    async fn unpack(&self, mut stream: ByteStream, vm: VmId) {
        let (mut buffer, mut archive) = (BytesMut::new(), Vec::new());
        loop {
            match Frame::decode(&mut buffer).unwrap() {
                Some(Frame::Stdin(bytes)) if bytes.is_empty() => break,
                Some(Frame::Stdin(bytes)) => archive.extend_from_slice(&bytes),
                Some(other) => panic!("{other:?}"),
                None => match stream.read_buf(&mut buffer).await {
                    // Cut off: nothing is unpacked.
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                },
            }
        }
        let unpacked = || -> std::io::Result<BTreeMap<String, Vec<u8>>> {
            let mut files = BTreeMap::new();
            for entry in tar::Archive::new(&archive[..]).entries()? {
                let mut entry = entry?;
                let path = entry.path()?.display().to_string();
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                if entry.header().entry_type().is_file() {
                    files.insert(path, bytes);
                }
            }
            Ok(files)
        };
        let exit = match unpacked() {
            Ok(files) => {
                self.change(|state| state.vms.get_mut(&vm).unwrap().files.extend(files));
                Exit { code: 0, message: None }
            }
            Err(error) => Exit { code: 1, message: Some(error.to_string()) },
        };
        finish(stream, exit).await;
    }

    /// Sends what a job prints as it comes, and how it ended.
    async fn attach(&self, mut stream: ByteStream, id: VmId) {
        let mut sent = 0;
        loop {
            let changed = self.changed.notified();
            let (bytes, exit) = {
                let state = self.state.lock().unwrap();
                let Some(vm) = state.vms.get(&id).filter(|vm| vm.state == VmState::Running && !state.silent) else {
                    break;
                };
                let job = vm.job.clone().unwrap_or_default();
                (Bytes::copy_from_slice(&job.output[sent..]), job.exit)
            };
            sent += bytes.len();
            let mut frames = BytesMut::new();
            if !bytes.is_empty() {
                Frame::Stdout(bytes).encode(&mut frames);
                if stream.write_all(&frames).await.is_err() {
                    return;
                }
                stream.flush().await.unwrap_or_default();
                continue;
            }
            if let Some(exit) = exit {
                return finish(stream, exit).await;
            }
            drop(tokio::time::timeout(Duration::from_millis(200), changed).await);
        }
        stream.reset("vm stopped").await;
    }
}

fn running(state: &State, vm: VmId) -> Result<&FakeVm, ApiError> {
    if state.silent {
        return Err(ApiError::unavailable("the fake host is silent"));
    }
    let vm = state.vms.get(&vm).ok_or_else(|| ApiError::not_found("there is no such VM here"))?;
    if vm.state != VmState::Running {
        return Err(ApiError::failed_precondition("the VM does not run"));
    }
    Ok(vm)
}

async fn finish(mut stream: ByteStream, exit: Exit) {
    let mut frame = BytesMut::new();
    Frame::Exit(exit).encode(&mut frame);
    if stream.write_all(&frame).await.is_ok() {
        stream.shutdown().await.unwrap_or_default();
        stream.closed().await;
    }
}

/// A tar archive of these files.
pub fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

/// It, as a request has it.
pub fn inline(files: &[(&str, &str)]) -> Value {
    use base64::{Engine, prelude::BASE64_STANDARD};
    json!({ "inline": BASE64_STANDARD.encode(archive(files)) })
}
