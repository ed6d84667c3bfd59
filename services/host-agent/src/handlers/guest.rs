//! `guest.open`: connects a byte stream to a process in a guest, to its ssh server, or to its console log.

use std::{io::SeekFrom, os::fd::AsRawFd, path::Path, sync::Arc, time::Duration};

use bus::{
    Bus, ByteStream,
    direct::{Arrival, Doors},
};
use contract::{
    ApiError,
    agent::OpenRequest,
    direct::{Opened, TOKEN_LIFE},
    guest::Request,
    job::{AskRequest, Jobs},
    workspace::SessionKind,
};
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncReadExt, AsyncSeekExt, AsyncWrite, AsyncWriteExt},
    net::UnixStream,
};

use super::workspace::off;
use crate::{
    vm::Vms,
    vmm::{jail::open_untrusted, names},
};

/// How often a followed log is looked at.
const FOLLOW: Duration = Duration::from_millis(200);
/// How much of a log is read at once, in bytes.
const CHUNK: usize = 32 * 1024;
/// Buffer of each direction between a guest and the bus, in bytes.
const COPY: usize = 32 * 1024;

/// Opens the session; the bytes flow after the reply.
///
/// # Errors
/// `not_found`, `failed_precondition` when the VM does not run, or what the guest answered.
pub async fn open(
    bus: Bus,
    vms: Arc<Vms>,
    doors: Arc<Option<Doors>>,
    request: OpenRequest,
) -> Result<Opened, ApiError> {
    let wanted = match &request.kind {
        SessionKind::Exec(command) => Request::Exec(command.clone()),
        SessionKind::Attach(attach) => Request::Attach(attach.clone()),
        SessionKind::Ssh {} => Request::Ssh,
        SessionKind::Tcp(target) => Request::Tcp(target.clone()),
        SessionKind::Pack(files) => Request::Pack(files.clone()),
        SessionKind::Unpack(files) => Request::Unpack(files.clone()),
        SessionKind::Look(look) => Request::Look(look.clone()),
        SessionKind::Console {} => return console(&bus, &vms, &request).await,
        SessionKind::Logs { follow, tail_bytes } => {
            let path = vms.dir(request.vm).join(names::CONSOLE);
            if !path.exists() {
                return Err(ApiError::not_found(format!("the VM {} has no console log on this host", request.vm)));
            }
            let stream = ByteStream::accept(&bus, request.session).await?;
            tokio::spawn(logs(stream, path, *follow, *tail_bytes));
            return Ok(Opened::default());
        }
    };
    let (guest, observed) = vms.guest(request.vm)?;
    // Listening before the guest is asked, so that the opener may send as soon as it has the reply.
    let stream = ByteStream::accept(&bus, request.session).await?;
    let inside = match wanted {
        // Files begin anew where a network fails; what people work in does not.
        Request::Pack(_) | Request::Unpack(_) => guest.ask_for_much(&wanted).await?,
        _ => guest.ask(&wanted).await?,
    };
    let open = vms.session(request.vm);
    let doors = doors.as_ref().as_ref().filter(|_| request.direct);
    let (direct, arrival) = doors.and_then(|doors| doors.expect(request.session)).unzip();
    tokio::spawn(async move {
        let _open = open;
        let stream = match arrival {
            Some(arrival) => by_either_road(stream, arrival).await,
            None => stream,
        };
        carry(stream, inside, off(observed)).await;
    });
    Ok(Opened { direct })
}

/// The road the client takes: the direct connection, or the bus once it speaks there, or after the time it had.
async fn by_either_road(stream: ByteStream, mut arrival: Arrival) -> ByteStream {
    tokio::select! {
        direct = arrival.stream() => direct,
        () = stream.heard() => stream,
        () = tokio::time::sleep(TOKEN_LIFE) => stream,
    }
}

/// Lists, starts or signals the jobs of a guest.
///
/// # Errors
/// `not_found`, `failed_precondition` when the VM does not run, or what the guest answered.
pub async fn jobs(vms: Arc<Vms>, request: AskRequest) -> Result<Jobs, ApiError> {
    let (guest, _) = vms.guest(request.vm)?;
    let _open = vms.session(request.vm);
    Ok(Jobs { jobs: guest.jobs(request.ask).await? })
}

/// Connects to the serial console, which is the VMM's and needs no guest that answers.
async fn console(bus: &Bus, vms: &Vms, request: &OpenRequest) -> Result<Opened, ApiError> {
    let (_, observed) = vms.guest(request.vm)?;
    let socket = console_socket(&vms.dir(request.vm)).await?;
    let stream = ByteStream::accept(bus, request.session).await?;
    let open = vms.session(request.vm);
    tokio::spawn(async move {
        let _open = open;
        carry(stream, socket, off(observed)).await;
    });
    Ok(Opened::default())
}

/// The VMM's end of the serial console, which talks to one client at a time.
async fn console_socket(dir: &Path) -> Result<UnixStream, ApiError> {
    let connect = async {
        // A unix socket's path has at most 107 bytes; through a descriptor of the directory it is always short.
        let dir = std::fs::File::open(dir)?;
        UnixStream::connect(format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), names::CONSOLE_SOCKET)).await
    };
    connect.await.map_err(|error: std::io::Error| {
        ApiError::unavailable(format!("the console cannot be reached: {error}"))
            .hint("a VMM that an older host-agent started has no interactive console: restart the VM")
    })
}

/// Copies both ways with half-closes until both have ended; a VM that goes off meanwhile ends it with a reason.
pub(super) async fn carry<I: AsyncRead + AsyncWrite>(stream: ByteStream, inside: I, off: impl Future<Output = ()>) {
    let (mut from_client, mut to_client) = tokio::io::split(stream);
    let (mut from_guest, mut to_guest) = tokio::io::split(inside);
    let inward = async {
        let mut buffer = vec![0; COPY];
        loop {
            match from_client.read(&mut buffer).await {
                Ok(0) => return to_guest.shutdown().await,
                Ok(count) => {
                    to_guest.write_all(&buffer[..count]).await?;
                    to_guest.flush().await?;
                }
                Err(error) => return Err(error),
            }
        }
    };
    let outward = async {
        let mut buffer = vec![0; COPY];
        loop {
            match from_guest.read(&mut buffer).await? {
                0 => return to_client.shutdown().await,
                count => to_client.write_all(&buffer[..count]).await?,
            }
        }
    };
    let ended = {
        tokio::pin!(inward, outward, off);
        let (mut inward_done, mut outward_done) = (false, false);
        loop {
            tokio::select! {
                // The guest's last bytes come before the news that it is off.
                biased;
                outcome = &mut outward, if !outward_done => match outcome {
                    Ok(()) => outward_done = true,
                    Err(_) => break Some("the guest's channel broke"),
                },
                outcome = &mut inward, if !inward_done => match outcome {
                    Ok(()) => inward_done = true,
                    // The client is gone, or the guest reads no more: what it still says is carried on.
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break Some("closed"),
                    Err(_) => inward_done = true,
                },
                () = &mut off => break Some("vm stopped"),
            }
            if outward_done {
                break None;
            }
        }
    };
    let stream = from_client.unsplit(to_client);
    match ended {
        Some(reason) => stream.reset(reason).await,
        None => {
            // The client ends its direction when it has read the guest's end, or was ended by then.
            let closed = tokio::time::timeout(Duration::from_secs(10), drain(stream));
            if closed.await.is_err() {
                tracing::debug!("a client kept its direction open after the guest's end");
            }
        }
    }
}

async fn drain(mut stream: ByteStream) {
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await.is_ok_and(|count| count > 0) {}
    stream.closed().await;
}

async fn logs(mut stream: ByteStream, path: std::path::PathBuf, follow: bool, tail_bytes: Option<u64>) {
    if let Err(error) = copy_log(&mut stream, &path, follow, tail_bytes).await {
        stream.reset(format!("the log cannot be read on: {error}")).await;
        return;
    }
    drain(stream).await;
}

async fn copy_log(stream: &mut ByteStream, path: &Path, follow: bool, tail_bytes: Option<u64>) -> std::io::Result<()> {
    let mut file = File::from_std(open_untrusted(path, std::fs::OpenOptions::new().read(true))?);
    let length = file.metadata().await?.len();
    // The head of a long log is punched out; see `console`.
    let kept = length.saturating_sub(crate::vm::console::KEEP);
    let start = tail_bytes.map_or(kept, |tail| length.saturating_sub(tail).max(kept));
    file.seek(SeekFrom::Start(start)).await?;
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer).await? {
            0 if follow && path.exists() => {
                // A reader that has gone is noticed by writing nothing to it.
                let mut nothing = [0; 1];
                match tokio::time::timeout(FOLLOW, stream.read(&mut nothing)).await {
                    Err(_) => {}
                    Ok(Ok(0) | Err(_)) => return stream.shutdown().await,
                    Ok(Ok(_)) => {} // said something, which means nothing here
                }
            }
            0 => return stream.shutdown().await,
            count => stream.write_all(&buffer[..count]).await?,
        }
    }
}
