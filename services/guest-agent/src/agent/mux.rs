//! One connection of the channel: the handshake, then yamux, one task a stream.

use std::{future::poll_fn, io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
};
use tokio_util::compat::TokioAsyncReadCompatExt;
use yamux::{Config, Connection, Mode};

use super::{MuxStream, Shared, channel::Channel, service, stream};

/// The most streams served at once; each holds at the most a process and some buffers.
const STREAMS_MAX: usize = 128;
/// The most streams yamux itself takes. Beyond it the connection ends, so polite refusals come well before.
const YAMUX_STREAMS_MAX: usize = 512;
/// All streams' receive windows together, in bytes: yamux wants 256 KiB for each that it may take. What a stream
/// really holds is bounded by what its task has not read yet.
const WINDOWS_MAX: usize = YAMUX_STREAMS_MAX * yamux::DEFAULT_CREDIT as usize;
/// The most streams of a lane.
const LANE_STREAMS_MAX: usize = 8;
/// The receive windows of a lane's streams together, in bytes; what one of them gets beyond yamux's 256 KiB grows with its use.
const LANE_WINDOWS_MAX: usize = 8 << 20;
/// How long a refusal may take to be sent.
const REFUSAL: Duration = Duration::from_secs(5);

/// Waits for a host and serves it until its connection ends. Returns when a next one may follow on the same pipe.
///
/// # Errors
/// The pipe itself has ended or failed.
pub async fn serve<S>(channel: &mut Channel<S>, shared: &Arc<Shared>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    channel.accept().await?;
    tracing::debug!("a host has connected");
    let mut config = Config::default();
    config.set_max_num_streams(YAMUX_STREAMS_MAX).set_max_connection_receive_window(Some(WINDOWS_MAX));
    let ended = carry(&mut *channel, config, shared).await;
    tracing::debug!("the host's connection ended: {ended:?}");
    match ended {
        // Garbage where a frame should be, or a preamble: the pipe is as good as before.
        Some(yamux::ConnectionError::Decode(_)) => Ok(()),
        Some(yamux::ConnectionError::Io(error)) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        Some(yamux::ConnectionError::Io(error)) => Err(error),
        // The host said good-bye.
        _ => Ok(()),
    }
}

/// What a lane takes: one stream, and those that ask whether it is there.
pub fn lane_config() -> Config {
    let mut config = Config::default();
    config.set_max_num_streams(LANE_STREAMS_MAX).set_max_connection_receive_window(Some(LANE_WINDOWS_MAX));
    config
}

/// Serves a connection until it ends; why it did.
pub async fn carry<S>(pipe: S, config: Config, shared: &Arc<Shared>) -> Option<yamux::ConnectionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = Connection::new(pipe.compat(), config, Mode::Server);
    let permits = Arc::new(Semaphore::new(STREAMS_MAX));
    loop {
        match poll_fn(|context| connection.poll_next_inbound(context)).await {
            Some(Ok(stream)) => begin(MuxStream::new(stream), &permits, shared),
            Some(Err(error)) => return Some(error),
            None => return None,
        }
    }
}

fn begin(stream: MuxStream, permits: &Arc<Semaphore>, shared: &Arc<Shared>) {
    match Arc::clone(permits).try_acquire_owned() {
        Ok(permit) => {
            let shared = Arc::clone(shared);
            tokio::spawn(async move {
                service::answer(stream, &shared).await;
                drop(permit);
            });
        }
        Err(_) => {
            tokio::spawn(tokio::time::timeout(REFUSAL, stream::refuse(stream, STREAMS_MAX)));
        }
    }
}
