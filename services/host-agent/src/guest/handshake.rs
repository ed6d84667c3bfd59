//! The beginning of a connection: drops what an older conversation left in the pipe.

use std::io;

use contract::guest::MAGIC;
use rand::RngExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const LENGTH: usize = 2 * MAGIC.len() + 16;

fn preamble() -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    rand::rng().fill(&mut bytes[..]);
    bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
    bytes[LENGTH - MAGIC.len()..].copy_from_slice(&MAGIC);
    bytes[LENGTH - MAGIC.len()..].reverse();
    bytes
}

/// Sends a fresh preamble and drops everything up to its echo. Waits as long as the caller does: a guest that boots answers
/// only when its agent lives.
pub(super) async fn perform(pipe: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    let preamble = preamble();
    pipe.write_all(&preamble).await?;
    pipe.flush().await?;
    // One byte at a time after the first window, so that nothing behind the echo is taken.
    let mut window = [0; LENGTH];
    pipe.read_exact(&mut window).await?;
    while window != preamble {
        window.rotate_left(1);
        window[LENGTH - 1] = pipe.read_u8().await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn garbage_before_the_echo_is_dropped_and_nothing_after_it() {
        let (mut host, mut guest) = tokio::io::duplex(4096);
        let echo = tokio::spawn(async move {
            let mut preamble = [0; LENGTH];
            guest.read_exact(&mut preamble).await.unwrap();
            guest.write_all(b"\x00WARREN\x01 left over from before").await.unwrap();
            guest.write_all(&preamble).await.unwrap();
            guest.write_all(b"next").await.unwrap();
        });
        perform(&mut host).await.unwrap();
        let mut next = [0; 4];
        host.read_exact(&mut next).await.unwrap();
        assert_eq!(&next, b"next");
        echo.await.unwrap();
    }
}
