//! A tool whose **output is read while it runs**: it ends with its reader, and the reader comes to an end only if the tool did well.

use std::{
    io::{self, Read},
    os::unix::process::ExitStatusExt,
    process::{ChildStdout, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use archive::program;
use contract::ApiError;
use tokio_util::sync::CancellationToken;

/// What it writes. An error holds the [`ApiError`] of why it is not whole.
pub(in crate::image) struct Stream {
    /// What it makes an archive of, and its program.
    names: (&'static str, &'static str),
    output: ChildStdout,
    allowed: u64,
    read: u64,
    stop: Arc<AtomicBool>,
    running: Option<Running>,
    ended: Result<(), ApiError>,
}

struct Running {
    watch: JoinHandle<Result<ExitStatus, ApiError>>,
    said: JoinHandle<String>,
}

impl Stream {
    /// Starts it. The thread must live until this is dropped: the tool dies with it.
    ///
    /// # Errors
    /// Those of [`Command::spawn`].
    pub(in crate::image) fn start(
        names: (&'static str, &'static str),
        command: &mut Command,
        allowed: u64,
        cancel: &CancellationToken,
    ) -> io::Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (Some(output), Some(errors)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(io::Error::other("a pipe is missing"));
        };
        let (stop, cancel) = (Arc::new(AtomicBool::new(false)), cancel.clone());
        let stopped = stop.clone();
        let watch = std::thread::spawn(move || {
            super::wait(names.1, &mut child, || stopped.load(Ordering::Acquire) || cancel.is_cancelled())
        });
        let said = std::thread::spawn(move || program::complaint(errors));
        Ok(Self { names, output, allowed, read: 0, stop, running: Some(Running { watch, said }), ended: Ok(()) })
    }

    /// How it ended, told as often as asked.
    fn end(&mut self) -> Result<(), ApiError> {
        if let Some(Running { watch, said }) = self.running.take() {
            let died = |_| ApiError::internal(format!("the thread that looked after {} failed", self.names.1));
            let said = said.join().map_err(died);
            let status = watch.join().map_err(died).flatten();
            self.ended = status.and_then(|status| self.judged(status, &said?));
        }
        self.ended.clone()
    }

    fn judged(&self, status: ExitStatus, said: &str) -> Result<(), ApiError> {
        let (what, program) = self.names;
        let why = match (status.signal(), said) {
            _ if status.success() => return Ok(()),
            (Some(signal), _) => format!("{program} was ended by signal {signal}"),
            (None, "") => format!("{program}: {status}"),
            (None, said) => format!("{program}: {said}"),
        };
        Err(ApiError::invalid_argument(format!("the {what} cannot be read: {why}"))
            .hint("it is damaged, or holds what no archive does, as sockets"))
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.read > self.allowed {
            let (what, allowed) = (self.names.0, self.allowed);
            let error =
                ApiError::invalid_argument(format!("the {what} unpacks to too much: more than {allowed} bytes"));
            return Err(io::Error::other(error.hint("the host takes more with WARREN_IMAGE_BYTES")));
        }
        match self.output.read(buffer)? {
            0 => self.end().map(|()| 0).map_err(io::Error::other),
            count => {
                self.read += count as u64;
                Ok(count)
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let ended = self.end();
        tracing::trace!(?ended, program = self.names.1, "a tool is gone");
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use contract::ErrorCode;

    use super::*;

    fn read(script: &str, allowed: u64, cancel: &CancellationToken) -> Result<Vec<u8>, ApiError> {
        let mut command = Command::new("sh");
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let stream = Stream::start(("test", "sh"), command.args(["-c", script]), allowed, cancel);
        let (mut stream, mut output) = (stream.unwrap(), Vec::new());
        match stream.read_to_end(&mut output) {
            Ok(_) => Ok(output),
            Err(error) => {
                let told = error.downcast::<ApiError>().unwrap();
                // Not an end now.
                assert!(stream.read(&mut [0]).is_err());
                Err(told)
            }
        }
    }

    #[test]
    fn an_output_is_whole_only_if_the_tool_says_so() {
        let cancel = CancellationToken::new();
        assert_eq!(read("printf abc", 3, &cancel).unwrap(), b"abc");
        let error = read("printf abc; echo no such luck >&2; exit 1", 3, &cancel).unwrap_err();
        assert!(error.code == ErrorCode::InvalidArgument && error.message.contains("no such luck"), "{error}");
        let error = read("kill -SEGV $$", 3, &cancel).unwrap_err();
        assert!(error.message.contains("signal 11"), "{error}");
    }

    #[test]
    fn a_tool_ends_with_its_reader_its_limit_and_its_staging() {
        let (cancel, began) = (CancellationToken::new(), Instant::now());
        let error = read("cat /dev/zero", 1 << 20, &cancel).unwrap_err();
        assert!(error.message.contains("1048576"), "{error}");
        let ended = std::thread::scope(|scope| {
            let reading = scope.spawn(|| read("sleep 1000", 1, &cancel));
            cancel.cancel();
            reading.join().unwrap()
        });
        assert_eq!(ended.unwrap_err().code, ErrorCode::Cancelled);
        assert!(began.elapsed() < Duration::from_secs(60));
    }
}
