//! A worker: a thread that is in the lab's namespace and has its netlink sockets open, so that a job there costs what the kernel takes
//! for it. It does one job after the other, follows when the namespace was made again, and ends with its handle.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    sync::{Mutex, PoisonError, mpsc},
};

use nix::sched::{CloneFlags, setns};

use super::{NetError, links::Links, namespace::Namespace, nft::Socket, system};

/// The netlink sockets of a namespace.
pub(super) struct Inside {
    /// Interfaces.
    pub(super) links: Links,
    /// Rules.
    pub(super) nft: Socket,
}

impl Inside {
    /// Those of the calling thread's namespace.
    fn open() -> Result<Self, NetError> {
        Ok(Self { links: Links::open()?, nft: Socket::open()? })
    }
}

type Job = Box<dyn FnOnce(Result<&mut Inside, NetError>) + Send>;

/// The worker's handle.
#[derive(Debug)]
pub(super) struct Worker {
    namespace: Namespace,
    /// Held while a job is handed over, never while it is done.
    thread: Mutex<Option<Thread>>,
}

#[derive(Debug)]
struct Thread {
    jobs: mpsc::Sender<Job>,
    ended: std::thread::JoinHandle<()>,
}

impl Worker {
    /// A worker in that namespace; its thread starts with its first job.
    pub(super) fn new(namespace: &Namespace) -> Self {
        Self { namespace: namespace.clone(), thread: Mutex::default() }
    }

    /// Does a job and waits for it. Blocking.
    ///
    /// # Errors
    /// The job's, or the namespace cannot be entered.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Inside) -> Result<T, NetError> + Send + 'static,
    ) -> Result<T, NetError> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.submit(Box::new(move |inside| {
            // Whoever does not wait any more does not miss it.
            drop(answer.send(inside.and_then(work)));
        }))?;
        answered.recv().unwrap_or_else(|_| Err(failed()))
    }

    /// Has a job done after those that wait already, without waiting for it.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn submit(&self, mut job: Job) -> Result<(), NetError> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = &*thread {
            match thread.jobs.send(job) {
                Ok(()) => return Ok(()),
                // A job that panicked took the thread with it.
                Err(mpsc::SendError(returned)) => job = returned,
            }
        }
        let (jobs, queue) = mpsc::channel();
        let namespace = self.namespace.clone();
        let started =
            std::thread::Builder::new().name("lab-network".to_owned()).spawn(move || serve(&namespace, &queue));
        let ended = started.map_err(system("a network thread cannot be started"))?;
        // It has just been started and waits.
        drop(jobs.send(job));
        *thread = Some(Thread { jobs, ended });
        Ok(())
    }

    /// Ends the thread after the jobs that wait, as it holds the namespace. Blocking.
    pub(super) fn leave(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Thread { jobs, ended }) = thread {
            drop(jobs);
            // One that panicked has told its caller.
            drop(ended.join());
        }
    }
}

/// Does the jobs.
fn serve(namespace: &Namespace, queue: &mpsc::Receiver<Job>) {
    let mut entered: Option<((u64, u64), Inside)> = None;
    for job in queue {
        match follow(namespace, &mut entered) {
            Ok(inside) => job(Ok(inside)),
            Err(error) => job(Err(error)),
        }
    }
}

/// The sockets of the namespace that has the name now. Its inode is not given again while this thread is in it.
fn follow<'a>(
    namespace: &Namespace,
    entered: &'a mut Option<((u64, u64), Inside)>,
) -> Result<&'a mut Inside, NetError> {
    let what = || format!("the network namespace {} cannot be entered", namespace.name());
    let metadata = fs::metadata(namespace.path()).map_err(system(what()))?;
    let identity = (metadata.dev(), metadata.ino());
    let inside = match entered.take() {
        Some((known, inside)) if known == identity => inside,
        _ => {
            let file = namespace.open().map_err(system(what()))?;
            setns(&file, CloneFlags::CLONE_NEWNET).map_err(system(what()))?;
            Inside::open()?
        }
    };
    Ok(&mut entered.insert((identity, inside)).1)
}

/// Does a job in the calling thread's own namespace, in a thread of its own, as the caller may be within a runtime. Blocking.
pub(super) fn here<T: Send>(work: impl FnOnce(&mut Inside) -> Result<T, NetError> + Send) -> Result<T, NetError> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| work(&mut Inside::open()?));
        thread.join().unwrap_or_else(|_| Err(failed()))
    })
}

fn failed() -> NetError {
    NetError::Unfit("the network thread failed unexpectedly".to_owned())
}
