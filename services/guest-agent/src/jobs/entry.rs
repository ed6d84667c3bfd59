//! One job: its process driven by a task, its output in a [`Log`], and who is attached to it.

use std::{
    process::ExitStatus,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use contract::{
    frame::Exit,
    job::{self, JobName, JobState, TERM_GRACE, TIMED_OUT},
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep},
};

use super::log::{Log, Piece};
use crate::process::{Control, Job, Output};

/// How long after SIGKILL a command whose time is up may take to go, and what it printed to be read.
const KILL_LINGER: Duration = Duration::from_secs(2);

/// What an entry is from its start on.
#[derive(Debug)]
pub struct About {
    /// Its name.
    pub name: JobName,
    /// The command as a line.
    pub command: String,
    /// Whose process it is.
    pub user: String,
    /// Whether it goes on without anybody attached.
    pub kept: bool,
    /// Whether it has a terminal.
    pub tty: bool,
    /// How long it may run.
    pub timeout: Option<Duration>,
}

/// One job.
#[derive(Debug)]
pub struct Entry {
    /// What it is.
    pub about: About,
    started: Instant,
    /// Absent where the job was found after an agent's death.
    control: Option<Control>,
    input: Mutex<Option<mpsc::Sender<Bytes>>>,
    state: Mutex<State>,
    changed: watch::Sender<()>,
    abandoned: Notify,
    /// Its time is up: no reader is waited for any more.
    late: AtomicBool,
    /// And it ran then, so it is ended.
    overran: AtomicBool,
}

#[derive(Debug)]
struct State {
    log: Log,
    ended: Option<(Exit, Instant)>,
    holder: Option<Holder>,
    attached: u32,
}

/// Whoever may write, and whose reading the job waits for.
#[derive(Debug)]
struct Holder {
    id: u64,
    taken: u64,
}

impl Entry {
    /// A job whose process was just started, to be driven by [`Entry::drive`].
    pub fn running(about: About, job: &Job, input: Option<mpsc::Sender<Bytes>>, capacity: usize) -> Self {
        Self::new(about, Some(job.control()), input, capacity)
    }

    /// A job that an earlier agent took with it.
    pub fn lost(about: About) -> Self {
        let entry = Self::new(about, None, None, 0);
        let message = "guest-agent was ended, and the command with it".to_owned();
        entry.state().ended = Some((Exit { code: 128 + libc::SIGTERM, message: Some(message) }, Instant::now()));
        entry
    }

    fn new(about: About, control: Option<Control>, input: Option<mpsc::Sender<Bytes>>, capacity: usize) -> Self {
        let state = State { log: Log::new(capacity), ended: None, holder: None, attached: 0 };
        Self {
            about,
            started: Instant::now(),
            control,
            input: Mutex::new(input),
            state: Mutex::new(state),
            changed: watch::Sender::new(()),
            abandoned: Notify::new(),
            late: AtomicBool::new(false),
            overran: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its process runs.
    pub fn runs(&self) -> bool {
        self.state().ended.is_none()
    }

    /// What is told of it.
    pub fn view(&self) -> job::Job {
        let state = self.state();
        let ended = state.ended.as_ref();
        job::Job {
            name: self.about.name.clone(),
            command: self.about.command.clone(),
            user: self.about.user.clone(),
            state: match (ended, &self.control) {
                (None, _) => JobState::Running,
                (Some(_), Some(_)) => JobState::Ended,
                (Some(_), None) => JobState::Lost,
            },
            exit_code: ended.filter(|_| self.control.is_some()).map(|(exit, _)| exit.code),
            message: ended.and_then(|(exit, _)| exit.message.clone()),
            kept: self.about.kept,
            tty: self.about.tty,
            attached: state.attached,
            age_ms: milliseconds(self.started),
            ended_ms: ended.map(|(_, at)| milliseconds(*at)),
            output_bytes: state.log.end(),
            dropped_bytes: state.log.start(),
        }
    }

    /// Carries the process to its end, whoever is attached.
    pub async fn drive(&self, mut job: Job) {
        let exit = tokio::select! {
            status = self.collect(&mut job) => self.exit(status),
            () = self.abandoned.notified() => {
                job.hang_up().await;
                Exit { code: 128 + libc::SIGHUP, message: Some("whoever ran it has gone".to_owned()) }
            }
            () = self.time_out() => self.overrun(),
        };
        self.close_input();
        self.state().ended = Some((exit, Instant::now()));
        self.changed.send_replace(());
    }

    fn exit(&self, status: ExitStatus) -> Exit {
        if self.overran.load(Ordering::Relaxed) {
            return self.overrun();
        }
        Exit { code: crate::exec::exit_code(status), message: None }
    }

    fn overrun(&self) -> Exit {
        let limit = self.about.timeout.unwrap_or_default();
        let message = format!("the command did not end within {limit:?} and was terminated");
        Exit { code: TIMED_OUT, message: Some(message) }
    }

    async fn collect(&self, job: &mut Job) -> ExitStatus {
        while let Some(output) = job.next_output().await {
            self.room(&output).await;
            self.state().log.push(output);
            self.changed.send_replace(());
        }
        job.status().await
    }

    /// Waits while output that the holder has not taken yet would be dropped.
    async fn room(&self, output: &Output) {
        let (Output::Stdout(bytes) | Output::Stderr(bytes)) = output;
        let mut changes = self.changed.subscribe();
        loop {
            {
                let state = self.state();
                let drops = state.log.start_after(bytes.len());
                let waits = state.holder.as_ref().is_some_and(|holder| holder.taken < drops);
                if !waits || self.late.load(Ordering::Relaxed) {
                    return;
                }
            }
            // The sender is a field of `self`, so it cannot be gone.
            drop(changes.changed().await);
        }
    }

    /// Ends the command when its time is up, and returns when it had its time to go, whether it went or not. For one that has ended by
    /// itself, only what it left behind still prints: no reader is waited for any more, and the job decides how long that goes on.
    async fn time_out(&self) {
        if let (Some(limit), Some(control)) = (self.about.timeout, &self.control) {
            sleep(limit).await;
            let overran = control.leads();
            self.overran.store(overran, Ordering::Relaxed);
            self.late.store(true, Ordering::Relaxed);
            self.changed.send_replace(());
            if overran {
                control.signal_all(libc::SIGTERM);
                sleep(TERM_GRACE).await;
                control.signal_all(libc::SIGKILL);
                return sleep(KILL_LINGER).await;
            }
        }
        std::future::pending().await
    }

    /// Whether that attachment is the one that may write.
    pub fn is_held_by(&self, attachment: u64) -> bool {
        self.state().holder.as_ref().is_some_and(|holder| holder.id == attachment)
    }

    /// Where to send input, while it is open.
    pub fn input(&self) -> Option<mpsc::Sender<Bytes>> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends its input.
    pub fn close_input(&self) {
        self.input.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Its signals and terminal.
    pub fn control(&self) -> Option<&Control> {
        self.control.as_ref()
    }
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// What is next for somebody attached.
#[derive(Debug)]
pub enum Next {
    /// Output.
    Piece(Piece),
    /// The end of the process.
    Exit(Exit),
    /// Nothing more, although it goes on.
    Left(&'static str),
}

/// Somebody who reads a job's output, and may write to it. Dropped, it lets go; of a job that is not kept that is the end.
#[derive(Debug)]
pub struct Attachment {
    entry: Arc<Entry>,
    id: u64,
    position: u64,
    writes: bool,
    follow: bool,
    /// It started the job, and unless it is kept ends it too.
    owner: bool,
}

impl Attachment {
    /// Attaches to a job from that many bytes before its end on (all that is kept where left out).
    pub fn new(entry: &Arc<Entry>, writes: bool, follow: bool, tail: Option<u64>, owner: bool) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let id = IDS.fetch_add(1, Ordering::Relaxed);
        let mut state = entry.state();
        let position = tail.map_or(0, |tail| state.log.end().saturating_sub(tail).max(state.log.start()));
        state.attached += 1;
        if writes {
            state.holder = Some(Holder { id, taken: position });
        }
        drop(state);
        entry.changed.send_replace(());
        Self { entry: Arc::clone(entry), id, position, writes, follow, owner }
    }

    /// The job.
    pub fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// What [`Entry::is_held_by`] knows it by, if it came to write.
    pub fn writer(&self) -> Option<u64> {
        self.writes.then_some(self.id)
    }

    /// Waits for what is next. May be dropped at any time without losing anything.
    pub async fn next(&mut self) -> Next {
        let mut changes = self.entry.changed.subscribe();
        loop {
            if let Some(next) = self.look() {
                return next;
            }
            // The sender is a field of the entry this holds.
            drop(changes.changed().await);
        }
    }

    fn look(&mut self) -> Option<Next> {
        let mut state = self.entry.state();
        if self.writes && state.holder.as_ref().is_none_or(|holder| holder.id != self.id) {
            return Some(Next::Left("another client has attached to the job"));
        }
        if let Some(piece) = state.log.read(self.position) {
            self.position += piece.missed + piece.bytes.len() as u64;
            if let Some(holder) = state.holder.as_mut().filter(|holder| holder.id == self.id) {
                holder.taken = self.position;
                drop(state);
                self.entry.changed.send_replace(());
            }
            return Some(Next::Piece(piece));
        }
        if let Some((exit, _)) = &state.ended {
            return Some(Next::Exit(exit.clone()));
        }
        (!self.follow).then_some(Next::Left("the job goes on"))
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let mut state = self.entry.state();
        state.attached -= 1;
        if state.holder.as_ref().is_some_and(|holder| holder.id == self.id) {
            state.holder = None;
        }
        drop(state);
        if self.owner && !self.entry.about.kept {
            self.entry.abandoned.notify_one();
        }
        self.entry.changed.send_replace(());
    }
}
