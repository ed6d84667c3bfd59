//! The **bar** of a transfer: its phase and its bytes, on standard error.

use std::{
    io::IsTerminal,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tree::Progress;

use crate::output::{self, Format};

/// Shows how far a transfer is: live on a terminal, a line a phase otherwise, nothing in JSON.
#[derive(Clone, Debug)]
pub struct Bar {
    live: Option<ProgressBar>,
    plain: bool,
    last: Arc<Mutex<String>>,
}

impl Bar {
    /// An empty one.
    pub fn new(format: Format) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let live = terminal.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { live, plain: !terminal && format == Format::Table, last: Arc::default() }
    }

    /// One that shows nothing.
    pub fn hidden() -> Self {
        Self { live: None, plain: false, last: Arc::default() }
    }

    /// A phase without a measure.
    pub fn phase(&self, phase: &str) {
        self.show(phase, 0, 0);
    }

    /// How far a transfer is.
    pub fn progress(&self, progress: Progress) {
        self.show(progress.phase, progress.done, progress.total);
    }

    fn show(&self, phase: &str, done: u64, total: u64) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let new = *last != phase;
        if new {
            phase.clone_into(&mut last);
        }
        if let Some(bar) = &self.live {
            if new {
                let template = match total {
                    0 => "{spinner} {msg} ({elapsed})",
                    _ => "{spinner} {msg} {wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}",
                };
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style);
                }
                bar.set_message(phase.to_owned());
            }
            bar.set_length(total);
            bar.set_position(done);
        } else if self.plain && new && !phase.is_empty() {
            output::note(&format!("phase {phase}"));
        }
    }

    /// Takes it away.
    pub fn finish(&self) {
        if let Some(bar) = &self.live {
            bar.finish_and_clear();
        }
    }
}
