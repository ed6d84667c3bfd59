//! Jobs: all commands that run for the host, and those that have ended and are remembered ([`contract::job`]).

mod attach;
mod entry;
mod log;
mod record;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use contract::{
    ApiError,
    job::{FINISHED_FOR, FINISHED_MAX, Job as View, JobAsk, JobName, KEPT_OUTPUT, RUNNING_MAX, TIMEOUT_MAX_MS},
    workspace::Command,
};
use tokio::{io::AsyncWriteExt, sync::mpsc};

pub use attach::{send, serve};
use entry::About;
pub use entry::{Attachment, Entry, Next};
use record::Records;

use crate::{
    exec::END_OF_TRANSMISSION,
    process::{Cgroups, Input, Job, Launch, LaunchError},
};

/// The bytes of output that wait for whoever runs a command that is not kept.
const PLAIN_OUTPUT: usize = 128 * 1024;
/// How many frames of input may wait for the process, each of at most 64 KiB.
const INPUT_QUEUE: usize = 2;
/// How many characters of a command are shown. 192 of them fit into a message to the host.
const SHOWN: usize = 200;

/// All jobs of this guest, the youngest last.
#[derive(Debug)]
pub struct Jobs {
    entries: Mutex<Vec<Arc<Entry>>>,
    records: Records,
    cgroups: Cgroups,
}

/// Why a command did not become a job.
#[derive(Debug)]
pub enum Refused {
    /// The request is wrong, or there is no room.
    Request(ApiError),
    /// Its process cannot be started.
    Launch(LaunchError),
}

impl Jobs {
    /// Without any; what an earlier agent left in `records` is ended, and what was kept of it listed as lost.
    pub fn new(records: Option<PathBuf>, cgroups: Cgroups) -> Arc<Self> {
        let (records, orphans) = Records::open(records);
        let lost = orphans.into_iter().filter(|about| about.kept).map(|about| Arc::new(Entry::lost(about)));
        let jobs = Arc::new(Self { entries: Mutex::new(lost.collect()), records, cgroups });
        for entry in jobs.entries().iter() {
            jobs.forget_later(entry);
        }
        jobs
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many kept ones run.
    pub fn running(&self) -> usize {
        self.entries().iter().filter(|entry| entry.about.kept && entry.runs()).count()
    }

    /// Finds one.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn find(&self, name: &JobName) -> Result<Arc<Entry>, ApiError> {
        self.entries().iter().find(|entry| entry.about.name == *name).cloned().ok_or_else(|| {
            ApiError::not_found(format!("the VM has no job {name}")).hint("`warren exec ls VM` lists its jobs")
        })
    }

    /// Answers what the host asks of jobs.
    ///
    /// # Errors
    /// The request is wrong, or the job is not there.
    pub fn answer(self: &Arc<Self>, ask: JobAsk, image: &[String]) -> Result<Vec<View>, ApiError> {
        match ask {
            JobAsk::List {} => Ok(self.entries().iter().map(|entry| entry.view()).collect()),
            JobAsk::Start(command) => match self.start(&Command { detach: true, ..*command }, image) {
                Ok(entry) => Ok(vec![entry.view()]),
                Err(Refused::Request(error)) => Err(error),
                Err(Refused::Launch(error)) => Err(ApiError::failed_precondition(crate::boot::chain(&error))),
            },
            JobAsk::Signal { job, number } => {
                let entry = self.find(&job)?;
                match entry.control().filter(|_| entry.runs()) {
                    Some(control) => control.signal_all(i32::from(number)),
                    None => return Err(ApiError::failed_precondition(format!("the job {job} does not run any more"))),
                }
                Ok(vec![entry.view()])
            }
        }
    }

    /// Starts a command. Nobody is attached to it yet.
    ///
    /// # Errors
    /// It is refused, or its process cannot be started.
    pub fn start(self: &Arc<Self>, command: &Command, image: &[String]) -> Result<Arc<Entry>, Refused> {
        let kept = command.detach || command.job.is_some();
        let name = self.name(command, kept).map_err(Refused::Request)?;
        let launch = crate::exec::prepare(command, image).map_err(Refused::Request)?.map_err(Refused::Launch)?;
        let about = About {
            name,
            command: shown(&command.argv),
            user: launch.account.name.clone(),
            kept,
            tty: command.tty.is_some(),
            timeout: command.timeout_ms.map(Duration::from_millis),
        };
        let mut job = spawn(&launch, command, &self.cgroups).map_err(Refused::Launch)?;
        self.records.put(&about, &job);
        let input = job.take_input().filter(|_| !command.detach || command.open_stdin);
        let input = input.map(|input| feed(input, command.tty.is_some()));
        let capacity = if kept { KEPT_OUTPUT } else { PLAIN_OUTPUT };
        let entry = Arc::new(Entry::running(about, &job, input, capacity));
        let mut entries = self.entries();
        // One that ended and had this name goes now that another has it, not when a start of that name fails.
        entries.retain(|other| other.about.name != entry.about.name);
        entries.push(Arc::clone(&entry));
        drop(entries);
        let (jobs, driven) = (Arc::clone(self), Arc::clone(&entry));
        tokio::spawn(async move {
            driven.drive(job).await;
            jobs.ended(&driven);
        });
        Ok(entry)
    }

    /// The name of a command that may be started. Nothing is awaited between this and its entry, so the name stays free.
    fn name(&self, command: &Command, kept: bool) -> Result<JobName, ApiError> {
        if command.timeout_ms.is_some_and(|limit| !(1..=TIMEOUT_MAX_MS).contains(&limit)) {
            return Err(ApiError::invalid_argument(format!("`timeout_ms` is not within 1 to {TIMEOUT_MAX_MS}")));
        }
        if command.open_stdin && !command.detach {
            return Err(ApiError::invalid_argument("`open_stdin` is for a command that is detached"));
        }
        if kept && self.running() >= RUNNING_MAX {
            return Err(ApiError::resource_exhausted(format!("the guest already runs {RUNNING_MAX} kept jobs"))
                .hint("`warren exec ls VM` lists them; wait for one or kill it"));
        }
        let entries = self.entries();
        let Some(name) = &command.job else {
            let free = |name: &JobName| entries.iter().all(|entry| entry.about.name != *name);
            return Ok(std::iter::repeat_with(JobName::mint).find(free).unwrap_or_else(JobName::mint));
        };
        if entries.iter().any(|entry| entry.about.name == *name && entry.runs()) {
            return Err(ApiError::already_exists(format!("a job {name} runs in the VM"))
                .hint(format!("attach to it with `warren exec attach VM {name}`, or choose another name")));
        }
        Ok(name.clone())
    }

    fn ended(self: &Arc<Self>, entry: &Arc<Entry>) {
        self.records.remove(&entry.about.name);
        let mut entries = self.entries();
        if !entry.about.kept {
            entries.retain(|other| !Arc::ptr_eq(other, entry));
            return;
        }
        let over = entries.iter().filter(|entry| !entry.runs()).count().saturating_sub(FINISHED_MAX);
        for _ in 0..over {
            let first = entries.iter().enumerate().filter(|(_, entry)| !entry.runs());
            // The one that ended first; it is the one whose end is longest ago.
            if let Some((at, _)) = first.max_by_key(|(_, entry)| entry.view().ended_ms) {
                entries.remove(at);
            }
        }
        drop(entries);
        self.forget_later(entry);
    }

    fn forget_later(self: &Arc<Self>, entry: &Arc<Entry>) {
        let (jobs, entry): (Weak<Self>, Weak<Entry>) = (Arc::downgrade(self), Arc::downgrade(entry));
        tokio::spawn(async move {
            tokio::time::sleep(FINISHED_FOR).await;
            if let (Some(jobs), Some(entry)) = (jobs.upgrade(), entry.upgrade()) {
                jobs.entries().retain(|other| !Arc::ptr_eq(other, &entry));
            }
        });
    }
}

fn spawn(launch: &Launch, command: &Command, cgroups: &Cgroups) -> Result<Job, LaunchError> {
    match command.tty {
        Some(size) => Job::start_in_terminal(launch, cgroups, size, |_| {}),
        None => Job::start(launch, cgroups),
    }
}

/// A task that writes queued input to the process, until nobody has any more.
fn feed(mut input: Input, terminal: bool) -> mpsc::Sender<Bytes> {
    let (queue, mut queued) = mpsc::channel::<Bytes>(INPUT_QUEUE);
    tokio::spawn(async move {
        let mut open = true;
        while let Some(bytes) = queued.recv().await {
            // A process that does not read any more gets nothing more, and loses nothing it wants.
            open = open && input.write_all(&bytes).await.is_ok() && input.flush().await.is_ok();
        }
        if open && terminal {
            input.write_all(END_OF_TRANSMISSION).await.unwrap_or_default();
        }
    });
    queue
}

/// A command as a line, with what would take more than it shows left out.
fn shown(argv: &[String]) -> String {
    let line = argv.join(" ");
    let mut text: String = line.chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.len() < line.len() {
        text.push('…');
    }
    text
}
