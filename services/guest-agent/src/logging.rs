//! The log: a few lines on the console. Each line opens the console anew (an init's getty hangs it up now and
//! then) and never waits for it, so that a stopped terminal stops nobody here.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// The longest line, in bytes.
const LINE_MAX: usize = 2048;

/// Starts the log. Again is harmless.
pub fn start() {
    let own = match kernel_parameter("warren.log").as_deref() {
        Some("debug") => LevelFilter::DEBUG,
        Some("trace") => LevelFilter::TRACE,
        _ => LevelFilter::INFO,
    };
    let targets = Targets::new().with_target("guest_agent", own).with_default(LevelFilter::ERROR);
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_timer(tracing_subscriber::fmt::time::uptime())
        .with_writer(|| Console);
    if tracing_subscriber::registry().with(lines).with(targets).try_init().is_err() {
        tracing::debug!("the log was started before");
    }
}

/// The value of a kernel command line parameter; empty for one without a value.
pub fn kernel_parameter(name: &str) -> Option<String> {
    let line = std::fs::read_to_string("/proc/cmdline").ok()?;
    line.split_whitespace().find_map(|word| match word.split_once('=') {
        Some((known, value)) if known == name => Some(value.to_owned()),
        None if word == name => Some(String::new()),
        _ => None,
    })
}

struct Console;

impl Write for Console {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
        let mut console = OpenOptions::new().write(true).custom_flags(flags).open("/dev/console")?;
        let mut text = Vec::with_capacity(line.len().min(LINE_MAX) + 16);
        text.extend_from_slice(b"guest-agent: ");
        text.extend_from_slice(&line[..line.len().min(LINE_MAX)]);
        if !text.ends_with(b"\n") {
            text.push(b'\n');
        }
        // A line that does not go out now is dropped: the log is bounded by what the console takes.
        console.write(&text).map(|_| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
