//! What one end sends: its user's bytes within the peer's credit, and credit for the peer.

use std::{future::pending, io};

use contract::direct::{CREDIT, FIN, RECORD_MAX};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf},
    sync::oneshot,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    carry::{End, LAST_WORDS, cut},
    credit::Credit,
};
use crate::stream::{SharedEnding, with_ending};

/// The user that leaves before all is said: with a reason, or by dropping the stream.
pub(super) struct Leaving {
    pub(super) reset: Option<oneshot::Receiver<String>>,
    pub(super) dropped: CancellationToken,
    pub(super) ending: SharedEnding,
    reason: Option<String>,
}

impl Leaving {
    pub(super) fn new(reset: oneshot::Receiver<String>, dropped: CancellationToken, ending: SharedEnding) -> Self {
        Self { reset: Some(reset), dropped, ending, reason: None }
    }

    /// Waits for it. May be dropped and called again.
    async fn reason(&mut self) -> String {
        if let Some(reason) = &self.reason {
            return reason.clone();
        }
        let reset = async {
            match &mut self.reset {
                Some(reset) => reset.await,
                None => pending().await,
            }
        };
        let reason = tokio::select! {
            Ok(reason) = reset => reason,
            () = self.dropped.cancelled() => {
                // What was said before a shutdown must still go out.
                if with_ending(&self.ending, |ending| ending.shut) {
                    self.reset = None;
                    return pending().await;
                }
                "closed".to_owned()
            }
        };
        self.reset = None;
        self.reason = Some(reason.clone());
        reason
    }
}

/// Sends what the user writes; after its end it waits for the peer's, unless the user leaves before.
pub(super) async fn send<W: AsyncWrite + Unpin>(
    mut reader: ReadHalf<DuplexStream>,
    to_peer: &mut W,
    credit: &Credit,
    leaving: &mut Leaving,
    said_all: &CancellationToken,
) -> End {
    let dropped = leaving.dropped.clone();
    let mut buffer = vec![0; 4 + RECORD_MAX];
    let mut open = true;
    loop {
        let sendable = credit.sendable().min(RECORD_MAX);
        tokio::select! {
            biased;
            bytes = credit.due() => {
                let mut record = CREDIT.to_be_bytes().to_vec();
                record.extend_from_slice(&bytes.to_be_bytes());
                if let Err(end) = say(to_peer, &record, leaving).await {
                    return end;
                }
            }
            count = reader.read(&mut buffer[4..4 + sendable]), if open && sendable > 0 => {
                let count = count.unwrap_or(0);
                let shut = with_ending(&leaving.ending, |ending| ending.shut);
                if count == 0 && dropped.is_cancelled() && !shut {
                    return own(leaving.reason().await);
                }
                open = count > 0;
                credit.spend(count);
                let length = if open { u32::try_from(count).unwrap_or(FIN) } else { FIN };
                buffer[..4].copy_from_slice(&length.to_be_bytes());
                if let Err(end) = say(to_peer, &buffer[..4 + count], leaving).await {
                    return end;
                }
            }
            given = credit.given(), if open && sendable == 0 => if !given {
                return cut(&leaving.ending, &io::ErrorKind::UnexpectedEof.into());
            },
            reason = leaving.reason() => return own(reason),
            () = said_all.cancelled(), if !open => return End::Whole,
            // What was said before a shutdown has gone out; the rest of the peer's words nobody hears.
            () = dropped.cancelled(), if !open => return own("closed".to_owned()),
        }
    }
}

fn own(reason: String) -> End {
    End::Broken { reason, by_peer: false }
}

/// Writes a record. A user that leaves meanwhile does not wait for a network that takes nothing.
async fn say<W: AsyncWrite + Unpin>(to_peer: &mut W, record: &[u8], leaving: &mut Leaving) -> Result<(), End> {
    let ending = leaving.ending.clone();
    let sending = async {
        to_peer.write_all(record).await?;
        to_peer.flush().await
    };
    tokio::pin!(sending);
    let sent = tokio::select! {
        biased;
        sent = &mut sending => sent,
        reason = leaving.reason() => match timeout(LAST_WORDS, &mut sending).await {
            Ok(sent) => sent,
            // Half of the record is out: nothing can be said behind it.
            Err(_) => return Err(End::Broken { reason, by_peer: true }),
        },
    };
    sent.map_err(|error| cut(&ending, &error))
}
