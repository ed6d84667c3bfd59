//! `warren vm console`: the VM's serial console, as if one sat before it.

use std::io::IsTerminal;

use contract::workspace::SessionKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::broken;
use crate::{
    args::Global,
    client::Client,
    failure::{Failure, Outcome},
    output,
    terminal::RawMode,
};

/// Ctrl-], as telnet(1) and virsh(1) have it.
const LEAVE: u8 = 0x1d;

/// Carries bytes both ways until the user leaves, the VM goes off, or, without a terminal, input and output have ended.
///
/// # Errors
/// The VM does not run, or the console cannot be reached.
pub async fn run(global: &Global, vm: &str) -> Result<Outcome, Failure> {
    let client = Client::connect(global).await?;
    let stream = client.open(vm, SessionKind::Console {}).await?;
    let terminal = std::io::stdin().is_terminal();
    let raw = terminal.then(RawMode::enter).transpose().map_err(|error| broken(&error))?;
    if terminal {
        output::note("connected; Ctrl-] leaves the console\r");
    }
    let (mut said, mut typed) = tokio::io::split(stream);
    let inward = async {
        let (mut input, mut buffer) = (tokio::io::stdin(), vec![0; 4096]);
        loop {
            let count = input.read(&mut buffer).await?;
            let leave = buffer[..count].iter().position(|byte| terminal && *byte == LEAVE);
            typed.write_all(&buffer[..leave.unwrap_or(count)]).await?;
            typed.flush().await?;
            if leave.is_some() {
                return Ok(());
            }
            if count == 0 {
                // Input from a file has ended: what the console still has to say is waited for.
                std::future::pending::<()>().await;
            }
        }
    };
    let outward = async {
        let (mut out, mut buffer) = (tokio::io::stdout(), vec![0; 32 * 1024]);
        loop {
            let count = said.read(&mut buffer).await.map_err(|error| broken(&error))?;
            if count == 0 {
                return Ok(());
            }
            let written = async {
                out.write_all(&buffer[..count]).await?;
                out.flush().await
            };
            written.await.map_err(|error| Failure::writing(&error))?;
        }
    };
    let ended = tokio::select! {
        left = inward => left.map_err(|error: std::io::Error| broken(&error).into()),
        gone = outward => gone,
    };
    drop(raw);
    if terminal {
        output::note("left the console");
    }
    ended.map(|()| Outcome::Done)
}
