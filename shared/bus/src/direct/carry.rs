//! The task between one end's pipe and a connection.

use std::{io, sync::Arc, time::Duration};

use contract::{
    direct::{CREDIT, FIN, RECORD_MAX, RESET},
    stream::REASON_MAX,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf},
    sync::oneshot,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    credit::Credit,
    send::{Leaving, send},
};
use crate::stream::{SharedEnding, with_ending};

/// How long a peer that takes no more may hold up the last words to it.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(3);

/// How one direction ended.
pub(super) enum End {
    /// All was said.
    Whole,
    /// It broke: why, and whether the peer said so itself or cannot be told.
    Broken { reason: String, by_peer: bool },
}

/// Carries both directions until they have ended or the connection broke; `finished` is dropped then.
pub(crate) async fn carry(
    connection: impl AsyncRead + AsyncWrite + Unpin,
    pipe: DuplexStream,
    credit: Arc<Credit>,
    ending: SharedEnding,
    dropped: CancellationToken,
    reset: oneshot::Receiver<String>,
    finished: DropGuard,
) {
    let mut leaving = Leaving::new(reset, dropped, ending.clone());
    let (from_peer, mut to_peer) = tokio::io::split(connection);
    let (reader, writer) = tokio::io::split(pipe);
    let said_all = CancellationToken::new();
    let broken = {
        let inward = receive(from_peer, writer, &credit, &ending, &said_all);
        let outward = send(reader, &mut to_peer, &credit, &mut leaving, &said_all);
        tokio::pin!(inward, outward);
        let (mut inward_done, mut outward_done) = (false, false);
        loop {
            let end = tokio::select! {
                end = &mut inward, if !inward_done => { inward_done = true; end }
                end = &mut outward, if !outward_done => { outward_done = true; end }
            };
            match end {
                End::Broken { reason, by_peer } => break Some((reason, by_peer)),
                // `send` has ended only once the peer has, too; a peer may keep the connection open until we close it.
                End::Whole if outward_done => break None,
                End::Whole => {}
            }
        }
    };
    let last = async {
        if let Some((reason, by_peer)) = broken {
            with_ending(&ending, |ending| {
                ending.broken.get_or_insert(reason.clone());
            });
            if !by_peer {
                say_reset(&mut to_peer, &reason).await?;
            }
        }
        to_peer.shutdown().await
    };
    if !matches!(tokio::time::timeout(LAST_WORDS, last).await, Ok(Ok(()))) {
        tracing::trace!("the peer did not take the last words");
    }
    drop(finished);
}

/// A peer that had said all and left is no failure of what it said.
pub(super) fn cut(ending: &SharedEnding, error: &io::Error) -> End {
    let reason = with_ending(ending, |ending| ending.unwanted.clone());
    let reason = reason.unwrap_or_else(|| format!("the direct connection was cut: {error}"));
    End::Broken { reason, by_peer: true }
}

/// Gives the user what the peer sends. The pipe to the user has room for a window, so this always goes on reading.
async fn receive<R: AsyncRead + Unpin>(
    mut from_peer: ReadHalf<R>,
    mut writer: WriteHalf<DuplexStream>,
    credit: &Credit,
    ending: &SharedEnding,
    said_all: &CancellationToken,
) -> End {
    let mut buffer = vec![0; RECORD_MAX];
    let by_peer = |reason: String| End::Broken { reason, by_peer: true };
    let mut whole = false;
    loop {
        let length = match from_peer.read_u32().await {
            Ok(length) => length,
            // After its end a peer may close; what we still say is for `send` to find out.
            Err(_) if whole => {
                credit.end();
                return End::Whole;
            }
            Err(error) => return by_peer(format!("the direct connection was cut: {error}")),
        };
        match (length, usize::try_from(length).unwrap_or(usize::MAX)) {
            (FIN, _) if !whole => {
                whole = true;
                if let Err(error) = writer.shutdown().await {
                    tracing::trace!(%error, "the reader is gone already");
                }
                said_all.cancel();
            }
            (RESET, _) => {
                let reason = read_reason(&mut from_peer).await;
                if whole {
                    with_ending(ending, |ending| ending.unwanted = Some(reason));
                    credit.end();
                    return End::Whole;
                }
                return by_peer(reason);
            }
            (CREDIT, _) => match from_peer.read_u32().await {
                Ok(bytes) if credit.give(bytes) => {}
                Ok(_) => return malformed(),
                // The next read says the same.
                Err(_) => {}
            },
            (_, count) if count <= RECORD_MAX && !whole && credit.admit(count) => {
                if let Err(error) = from_peer.read_exact(&mut buffer[..count]).await {
                    return by_peer(format!("the direct connection was cut: {error}"));
                }
                if writer.write_all(&buffer[..count]).await.is_err() {
                    // The user's end is gone; `send` decides what becomes of the rest.
                    return std::future::pending().await;
                }
            }
            _ => return malformed(),
        }
    }
}

fn malformed() -> End {
    End::Broken { reason: "the peer sent a malformed record".to_owned(), by_peer: false }
}

async fn read_reason(from_peer: &mut (impl AsyncRead + Unpin)) -> String {
    let mut reason = vec![0; REASON_MAX];
    let read = async {
        let length = usize::from(from_peer.read_u16().await?).min(REASON_MAX);
        from_peer.read_exact(&mut reason[..length]).await?;
        Ok::<_, io::Error>(length)
    };
    match read.await {
        Ok(length) => String::from_utf8_lossy(&reason[..length]).into_owned(),
        Err(_) => "closed".to_owned(),
    }
}

async fn say_reset(to_peer: &mut (impl AsyncWrite + Unpin), reason: &str) -> io::Result<()> {
    let end = (0..=reason.len().min(REASON_MAX)).rev().find(|&at| reason.is_char_boundary(at)).unwrap_or(0);
    let mut bytes = RESET.to_be_bytes().to_vec();
    bytes.extend_from_slice(&u16::try_from(end).unwrap_or(0).to_be_bytes());
    bytes.extend_from_slice(&reason.as_bytes()[..end]);
    to_peer.write_all(&bytes).await?;
    to_peer.flush().await
}
