//! The **log** of a build as its steps write it: whole lines where that does not make a reader wait.

use std::time::{Duration, Instant};

use contract::OperationId;
use operations::{Context, StepError};

use super::{BuildOrder, step::StepOrder};
use crate::{
    db::{
        build_cache::Hit,
        build_log::{Part, Text, log_append, log_output_end, log_tail},
    },
    kinds::publish::claim_lost,
};

/// How long output waits for more before it is written: a person sees it at once, the database is written to a few times a second.
pub const FLUSH: Duration = Duration::from_millis(250);
/// How long a line waits for its end.
const LINE_PATIENCE: Duration = Duration::from_secs(1);
/// How much is written at once, in bytes.
const PIECE: usize = 32 * 1024;
/// How many of the last lines an error tells, and bytes at the most.
const TAIL_LINES: usize = 20;
const TAIL_BYTES: usize = 4096;

/// The log of one step.
pub struct Log {
    part: Part,
    /// What was not written yet.
    pending: Vec<u8>,
    /// Its offset in what the script printed.
    at: u64,
    since: Option<Instant>,
}

impl Log {
    /// Of a step, from 0; nothing was read of its output yet.
    pub fn new(build: OperationId, step: usize) -> Self {
        let step = i32::try_from(step).unwrap_or(i32::MAX);
        Self { part: Part { build, step }, pending: Vec::new(), at: 0, since: None }
    }

    /// Goes on where an earlier worker ended; how much of the script's output is written.
    ///
    /// # Errors
    /// The database could not.
    pub async fn resume(&mut self, cx: &Context) -> Result<u64, StepError> {
        let client = cx.store().client().await?;
        self.at = log_output_end(&client, self.part).await?;
        self.pending.clear();
        self.since = None;
        Ok(self.at)
    }

    /// Says something of Warren's own, once a step.
    ///
    /// # Errors
    /// The claim is lost, or the database could not.
    pub async fn note(&self, cx: &Context, text: &str) -> Result<(), StepError> {
        append(cx, self.part, Text::Note(text)).await
    }

    /// Takes output that begins at that offset. What was written before is passed over; what is missing is said.
    ///
    /// # Errors
    /// The claim is lost, or the database could not.
    pub async fn output(&mut self, cx: &Context, at: u64, bytes: &[u8]) -> Result<(), StepError> {
        let end = self.at + self.pending.len() as u64;
        if at > end {
            self.flush(cx, true).await?;
            self.note(cx, &format!("[{} bytes of output are lost]\n", at - end)).await?;
            self.at = at;
        }
        let known = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(bytes.len());
        if known == bytes.len() {
            return Ok(());
        }
        self.pending.extend_from_slice(&bytes[known..]);
        self.since.get_or_insert_with(Instant::now);
        while self.pending.len() >= PIECE {
            self.flush(cx, false).await?;
        }
        Ok(())
    }

    /// How long until something has to be written; nothing when nothing waits.
    pub fn due(&self) -> Option<Duration> {
        let patience = if self.pending.contains(&b'\n') { FLUSH } else { LINE_PATIENCE };
        self.since.map(|since| patience.saturating_sub(since.elapsed()))
    }

    /// Writes what waits: up to the end of the last line; where there is none, what has waited long enough for it, and with `all`
    /// everything.
    ///
    /// # Errors
    /// The claim is lost, or the database could not.
    pub async fn flush(&mut self, cx: &Context, all: bool) -> Result<(), StepError> {
        let patient = self.pending.len() < PIECE && self.since.is_none_or(|since| since.elapsed() < LINE_PATIENCE);
        loop {
            let piece = &self.pending[..self.pending.len().min(PIECE)];
            let end = match piece.iter().rposition(|&byte| byte == b'\n') {
                _ if all && piece.len() == self.pending.len() => piece.len(),
                Some(line) => line + 1,
                None if patient && !all => 0,
                None => whole_characters(piece),
            };
            if end == 0 {
                return Ok(());
            }
            append(cx, self.part, Text::Output(self.at, &self.pending[..end])).await?;
            self.pending.drain(..end);
            self.at += end as u64;
            // A line that has begun waits for its end from now on.
            self.since = (!self.pending.is_empty()).then(Instant::now);
            if !all {
                return Ok(());
            }
        }
    }

    /// The last lines of what the script printed.
    ///
    /// # Errors
    /// The database could not.
    pub async fn tail(&self, cx: &Context) -> Result<Vec<String>, StepError> {
        let client = cx.store().client().await?;
        let bytes = log_tail(&client, self.part, TAIL_BYTES).await?;
        Ok(last_lines(&bytes))
    }
}

async fn append(cx: &Context, part: Part, text: Text<'_>) -> Result<(), StepError> {
    let mut client = cx.store().client().await?;
    match log_append(&mut client, cx.fence(), part, text).await? {
        true => Ok(()),
        false => Err(StepError::retry(claim_lost())),
    }
}

fn last_lines(bytes: &[u8]) -> Vec<String> {
    let start = bytes.len().saturating_sub(TAIL_BYTES);
    let text = String::from_utf8_lossy(&bytes[start..]);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|&line| line.to_owned()).collect()
}

/// Up to where the bytes hold whole characters; all of them where they are no text.
fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => error.valid_up_to(),
        _ => bytes.len(),
    }
}

fn heading(number: usize, of: usize, title: &str) -> String {
    let title = if title.is_empty() { "script" } else { title };
    format!("[{}/{of}] {title}", number + 1)
}

/// What the log says of a step whose result was known.
pub fn cached(order: &BuildOrder, step: usize, hit: &Hit) -> String {
    let heading = heading(step, order.build.steps.len(), &order.build.steps[step].title);
    format!("{heading}: nothing changed, so it is {}\n", hit.digest)
}

/// What it says before a step's script runs.
pub fn begins(order: &StepOrder, vm: &impl std::fmt::Display) -> String {
    let heading = heading(order.number, order.of, &order.step.title);
    format!("{heading}: in VM {vm}, from {}\n", order.base.digest)
}

/// What it says when a step's image is there.
pub fn gave(order: &StepOrder, digest: &str) -> String {
    format!("{}: gave {digest}\n", heading(order.number, order.of, &order.step.title))
}

/// What it says when a step has failed.
pub fn failed(order: &StepOrder, why: &str) -> String {
    format!("{}: {why}\n", heading(order.number, order.of, &order.step.title))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_not_cut() {
        assert_eq!(whole_characters("aé".as_bytes()), 3);
        assert_eq!(whole_characters(&"aé".as_bytes()[..2]), 1);
        assert_eq!(whole_characters(b"a\xff"), 2);
        assert_eq!(whole_characters(b"\xc3"), 1);
    }

    #[test]
    fn the_last_lines_are_few_and_short() {
        let text: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let lines = last_lines(text.as_bytes());
        assert_eq!((lines.len(), lines[19].as_str()), (TAIL_LINES, "line 99"));
        assert!(last_lines(&vec![b'x'; 3 * TAIL_BYTES])[0].len() <= TAIL_BYTES);
        assert!(last_lines(b"").is_empty());
    }
}
