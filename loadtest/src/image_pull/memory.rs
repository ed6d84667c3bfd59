//! The **peak** of a process's memory that is no file's. The kernel keeps a peak of all resident memory only (`VmHWM`), so this is looked at
//! again and again meanwhile.

use std::{
    sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context;

use crate::process;

/// How often it is looked. A hundredth of a second is much for a pull of seconds, and costs nothing that could be seen in its time.
const EVERY: Duration = Duration::from_millis(10);

/// Looks at a process until it is asked.
pub struct Watch {
    stop: SyncSender<()>,
    looking: JoinHandle<anyhow::Result<f64>>,
}

impl Watch {
    /// Begins to look.
    pub fn begin(pid: u32) -> Self {
        let (stop, stopped) = sync_channel(0);
        let looking = std::thread::spawn(move || {
            let mut peak = process::anonymous_mib(pid)?;
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                peak = peak.max(process::anonymous_mib(pid)?);
            }
            Ok(peak)
        });
        Self { stop, looking }
    }

    /// The most that was seen, in MiB.
    ///
    /// # Errors
    /// The process ended meanwhile.
    pub fn end(self) -> anyhow::Result<f64> {
        drop(self.stop);
        self.looking.join().ok().context("the thread that looks at memory failed")?
    }
}
