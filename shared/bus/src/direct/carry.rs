//! The task between one end's pipe and a connection.

use std::{io, time::Duration};

use contract::{
    direct::{FIN, RECORD_MAX, RESET},
    stream::REASON_MAX,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf},
    sync::oneshot,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::stream::{SharedEnding, with_ending};

/// How long a peer that takes no more may hold up the last words to it.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// How one direction ended.
enum End {
    /// All was said.
    Whole,
    /// It broke: why, and whether the peer said so itself.
    Broken { reason: String, by_peer: bool },
}

/// Carries both directions until they have ended or the connection broke; `finished` is dropped then.
pub(crate) async fn carry(
    connection: impl AsyncRead + AsyncWrite + Unpin,
    pipe: DuplexStream,
    ending: SharedEnding,
    dropped: CancellationToken,
    reset: oneshot::Receiver<String>,
    finished: DropGuard,
) {
    let (from_peer, mut to_peer) = tokio::io::split(connection);
    let (reader, writer) = tokio::io::split(pipe);
    let said_all = CancellationToken::new();
    let broken = {
        let inward = receive(from_peer, writer, &ending, &said_all);
        let outward = send(reader, &mut to_peer, &ending, &dropped, reset, &said_all);
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

/// Sends what the user writes; after its end it waits for the peer's, unless the user leaves before.
async fn send<W: AsyncWrite + Unpin>(
    mut reader: ReadHalf<DuplexStream>,
    to_peer: &mut W,
    ending: &SharedEnding,
    dropped: &CancellationToken,
    mut reset: oneshot::Receiver<String>,
    said_all: &CancellationToken,
) -> End {
    let own = |reason: String| End::Broken { reason, by_peer: false };
    let mut buffer = vec![0; 4 + RECORD_MAX];
    let mut reset_open = true;
    let mut open = true;
    loop {
        tokio::select! {
            count = reader.read(&mut buffer[4..]), if open => {
                let count = count.unwrap_or(0);
                let shut = with_ending(ending, |ending| ending.shut);
                if count == 0 && dropped.is_cancelled() && !shut {
                    return own("closed".to_owned());
                }
                open = count > 0;
                let length = if open { u32::try_from(count).unwrap_or(FIN) } else { FIN };
                buffer[..4].copy_from_slice(&length.to_be_bytes());
                let sent = async {
                    to_peer.write_all(&buffer[..4 + count]).await?;
                    to_peer.flush().await
                };
                if let Err(error) = sent.await {
                    return cut(ending, &error);
                }
            }
            reason = &mut reset, if reset_open => match reason {
                Ok(reason) => return own(reason),
                Err(_) => reset_open = false,
            },
            () = said_all.cancelled(), if !open => return End::Whole,
            // What was said before a shutdown has gone out; the rest of the peer's words nobody hears.
            () = dropped.cancelled(), if !open => return own("closed".to_owned()),
        }
    }
}

/// A peer that had said all and left is no failure of what it said.
fn cut(ending: &SharedEnding, error: &io::Error) -> End {
    let reason = with_ending(ending, |ending| ending.unwanted.clone());
    let reason = reason.unwrap_or_else(|| format!("the direct connection was cut: {error}"));
    End::Broken { reason, by_peer: true }
}

/// Gives the user what the peer sends.
async fn receive<R: AsyncRead + Unpin>(
    mut from_peer: ReadHalf<R>,
    mut writer: WriteHalf<DuplexStream>,
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
            Err(_) if whole => return End::Whole,
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
                    return End::Whole;
                }
                return by_peer(reason);
            }
            (_, count) if count <= RECORD_MAX && !whole => {
                if let Err(error) = from_peer.read_exact(&mut buffer[..count]).await {
                    return by_peer(format!("the direct connection was cut: {error}"));
                }
                if writer.write_all(&buffer[..count]).await.is_err() {
                    // The user's end is gone; `send` decides what becomes of the rest.
                    return std::future::pending().await;
                }
            }
            _ => return End::Broken { reason: "the peer sent a malformed record".to_owned(), by_peer: false },
        }
    }
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
