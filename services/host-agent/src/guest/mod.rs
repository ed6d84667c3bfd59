//! The connection into one VM's guest: the channel of [`contract::guest`], kept up while the VM runs.

mod channel;
mod handshake;
mod lane;
#[cfg(test)]
pub(crate) mod older;

use std::{io, path::PathBuf, time::Duration};

use contract::{
    ApiError, ErrorCode,
    guest::{GuestFacts, MESSAGE_MAX, Reply, Request, TransferQuery},
    job::{Job, JobAsk},
    worktree::TransferStatus,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

pub use channel::{Channel, GuestStream};
pub use lane::Road;

/// How long a guest may take to answer a request other than `ready`: emulated and busy it takes a second.
const ANSWER: Duration = Duration::from_secs(15);
/// How long a guest may take to write everything to its disks, which comes before they are frozen.
const FREEZE: Duration = Duration::from_secs(60);
/// How long a request waits for the channel itself, which is down while an agent reconnects.
const CONNECT: Duration = Duration::from_secs(10);

/// Asks guests over a [`Channel`]; clones share it.
#[derive(Clone, Debug)]
pub struct Guest {
    channel: Channel,
    /// How lanes reach it.
    road: Option<Road>,
}

impl Guest {
    /// Keeps a channel to the socket below that directory up until dropped; with a road, what moves many bytes takes that.
    pub fn connect(dir: PathBuf, socket: &'static str, road: Option<Road>) -> Self {
        Self { channel: Channel::keep(dir, socket), road }
    }

    /// Waits until the guest is ready, for as long as the caller does; a channel that breaks meanwhile is made anew.
    pub async fn ready(&self) -> GuestFacts {
        loop {
            let answer = async {
                let mut stream = self.channel.open().await?;
                exchange(&mut stream, &Request::Ready).await
            };
            match answer.await {
                Ok(Reply::Ready(facts)) => return facts,
                Ok(other) => tracing::warn!(?other, "the guest gave an unexpected answer"),
                Err(error) => tracing::debug!(%error, "the guest's channel broke before it was ready"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// How many are logged in to its ssh server or run as kept jobs.
    ///
    /// # Errors
    /// It does not answer, or is of a version that does not know.
    pub async fn sessions(&self) -> io::Result<u32> {
        let mut stream = self.channel.open().await?;
        match exchange(&mut stream, &Request::Sessions).await? {
            Reply::Sessions(count) => Ok(count),
            other => Err(io::Error::other(format!("an unexpected answer: {other:?}"))),
        }
    }

    /// Lists, starts or signals the guest's jobs.
    ///
    /// # Errors
    /// What the guest answered, or `unavailable` when it does not answer.
    pub async fn jobs(&self, ask: JobAsk) -> Result<Vec<Job>, ApiError> {
        match self.answer(&Request::Jobs(ask), ANSWER).await?.1 {
            Reply::Jobs(jobs) => Ok(jobs),
            _ => Err(ApiError::internal("the guest gave an unexpected answer")),
        }
    }

    /// Asks the guest; the stream then carries what the request says.
    ///
    /// # Errors
    /// What the guest answered, or `unavailable` when it does not answer.
    pub async fn ask(&self, request: &Request) -> Result<GuestStream, ApiError> {
        match self.answer(request, ANSWER).await? {
            (stream, Reply::Ok) => Ok(stream),
            _ => Err(ApiError::internal("the guest gave an unexpected answer")),
        }
    }

    /// Asks the guest for what moves many bytes: on a lane, or on the channel where none can be made.
    ///
    /// # Errors
    /// What the guest answered, or `unavailable` when it does not answer.
    pub async fn ask_for_much(&self, request: &Request) -> Result<GuestStream, ApiError> {
        let Some(lane) = self.lane().await else { return self.ask(request).await };
        match self.answer_on(&lane, request, ANSWER).await? {
            (stream, Reply::Ok) => Ok(stream.keeping(lane)),
            _ => Err(ApiError::internal("the guest gave an unexpected answer")),
        }
    }

    /// How a transfer of its workspaces goes.
    ///
    /// # Errors
    /// What the guest answered, or `unavailable` when it does not answer.
    pub async fn transfer(&self, query: TransferQuery) -> Result<TransferStatus, ApiError> {
        let time = ANSWER + Duration::from_millis(query.wait_ms);
        match self.answer(&Request::Transfer(query), time).await? {
            (_, Reply::Transfer(status)) => Ok(status),
            _ => Err(ApiError::internal("the guest gave an unexpected answer")),
        }
    }

    /// Asks the guest for what takes it up to so long.
    ///
    /// # Errors
    /// What the guest answered, or `unavailable` when it does not answer.
    pub async fn ask_within(&self, request: &Request, time: Duration) -> Result<(), ApiError> {
        match self.answer(request, time).await? {
            (_, Reply::Ok) => Ok(()),
            _ => Err(ApiError::internal("the guest gave an unexpected answer")),
        }
    }

    /// Freezes the guest's file systems, for so many seconds at the most.
    ///
    /// # Errors
    /// What the guest answered, or `unavailable` when it does not answer.
    pub async fn freeze(&self, seconds: u32) -> Result<Frozen, ApiError> {
        match self.answer(&Request::Freeze(seconds), FREEZE).await? {
            (stream, Reply::Ok) => Ok(Frozen(stream)),
            _ => Err(ApiError::internal("the guest gave an unexpected answer")),
        }
    }

    async fn answer(&self, request: &Request, time: Duration) -> Result<(GuestStream, Reply), ApiError> {
        self.answer_on(&self.channel, request, time).await
    }

    async fn answer_on(
        &self,
        channel: &Channel,
        request: &Request,
        time: Duration,
    ) -> Result<(GuestStream, Reply), ApiError> {
        let silent = || ApiError::unavailable("the guest does not answer").hint("`warren vm logs` shows its console");
        let stream = timeout(CONNECT, channel.open()).await.map_err(|_| silent())?;
        let mut stream = stream.map_err(|_| silent())?;
        match timeout(time, exchange(&mut stream, request)).await {
            Ok(Ok(Reply::Error(error))) => Err(of_an_older_guest(error)),
            Ok(Ok(reply)) => Ok((stream, reply)),
            Ok(Err(error)) => Err(ApiError::unavailable(format!("the guest's channel broke: {error}"))),
            Err(_) => Err(silent()),
        }
    }
}

/// A guest whose file systems are frozen; dropped, they thaw.
#[derive(Debug)]
pub struct Frozen(GuestStream);

impl Frozen {
    /// Thaws them.
    ///
    /// # Errors
    /// They were not frozen until now, or the guest does not say so.
    pub async fn thaw(self) -> Result<(), ApiError> {
        let mut stream = self.0;
        let thaw = async {
            stream.write_u8(0).await?;
            stream.flush().await?;
            reply(&mut stream).await
        };
        match timeout(ANSWER, thaw).await {
            Ok(Ok(Reply::Ok)) => Ok(()),
            Ok(Ok(Reply::Error(error))) => Err(error),
            Ok(Ok(_)) => Err(ApiError::internal("the guest gave an unexpected answer")),
            Ok(Err(error)) => Err(ApiError::unavailable(format!("the guest's channel broke: {error}"))),
            Err(_) => Err(ApiError::unavailable("the guest does not answer")),
        }
    }
}

/// What to do about a guest whose agent, which came with the VM's start, does not know the request.
fn of_an_older_guest(error: ApiError) -> ApiError {
    let older = error.code == ErrorCode::InvalidArgument && error.message.contains("does not understand the request");
    if !older || error.hint.is_some() {
        return error;
    }
    error.hint("the VM's guest-agent is older than its host's: `warren vm restart` gives it the present one")
}

/// Sends one request and reads its reply; the guest's lengths are bounded before they are believed.
async fn exchange(stream: &mut GuestStream, request: &Request) -> io::Result<Reply> {
    let bytes = serde_json::to_vec(request)?;
    if bytes.len() > MESSAGE_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the request is too long for a guest"));
    }
    stream.write_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX)).await?;
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    reply(stream).await
}

async fn reply(stream: &mut GuestStream) -> io::Result<Reply> {
    let length = stream.read_u32().await? as usize;
    if length > MESSAGE_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the guest's answer is too long"));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(serde_json::from_slice(&bytes)?)
}
