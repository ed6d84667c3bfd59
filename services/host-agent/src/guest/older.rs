//! A guest of an older version, for tests: it speaks the channel and answers every request as guest-agent answers one that it does not know.

use std::{io, path::Path};

use contract::{ApiError, guest::Reply};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

use super::Guest;

const SOCKET: &str = "channel.sock";
/// The length of the handshake's preamble.
const PREAMBLE: usize = 32;

/// Connects to such a guest, whose socket is in `dir`.
pub(crate) fn guest(dir: &Path) -> Guest {
    let listener = UnixListener::bind(dir.join(SOCKET)).unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket));
        }
    });
    Guest::connect(dir.to_owned(), SOCKET, None)
}

async fn serve(mut socket: UnixStream) -> io::Result<()> {
    let mut preamble = [0; PREAMBLE];
    socket.read_exact(&mut preamble).await?;
    socket.write_all(&preamble).await?;
    let mut connection = yamux::Connection::new(socket.compat(), yamux::Config::default(), yamux::Mode::Server);
    while let Some(stream) = std::future::poll_fn(|cx| connection.poll_next_inbound(cx)).await {
        let stream = stream.map_err(io::Error::other)?;
        tokio::spawn(answer(stream));
    }
    Ok(())
}

async fn answer(stream: yamux::Stream) -> io::Result<()> {
    let mut stream = stream.compat();
    let length = stream.read_u32().await?;
    let mut request = vec![0; length as usize];
    stream.read_exact(&mut request).await?;
    let reply = Reply::Error(ApiError::invalid_argument("the guest does not understand the request: unknown variant"));
    let reply = serde_json::to_vec(&reply)?;
    stream.write_u32(u32::try_from(reply.len()).map_err(io::Error::other)?).await?;
    stream.write_all(&reply).await?;
    stream.shutdown().await
}
