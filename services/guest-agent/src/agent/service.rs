//! Answers one stream's request.

use std::{sync::Arc, time::Duration};

use contract::{
    ApiError,
    guest::{Reply, Request},
};
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_settime},
};
use tokio::io::AsyncWriteExt;

use super::{MuxStream, Shared, lane};
use crate::{boot, exec, files, freeze, power, tcp, workspace};

/// How long a host may take to send its request.
const REQUEST_WAIT: Duration = Duration::from_secs(30);

/// How long an answer has to leave the guest before it is powered off.
const REPLY_OUT: Duration = Duration::from_millis(50);

/// Reads the request, answers it, and carries what follows.
pub async fn answer(mut stream: MuxStream, shared: &Arc<Shared>) {
    let request = match tokio::time::timeout(REQUEST_WAIT, stream.read_request()).await {
        Ok(Ok(request)) => request,
        Ok(Err(error)) => return finish(stream, Reply::Error(error)).await,
        Err(_) => return finish(stream, Reply::Error(ApiError::deadline_exceeded("the request did not come"))).await,
    };
    match request {
        Request::Ping => finish(stream, Reply::Ok).await,
        Request::Ready => ready(stream, shared).await,
        Request::Clock(nanoseconds) => finish(stream, set_clock(nanoseconds)).await,
        Request::Grow(bytes) => finish(stream, grow(bytes).await).await,
        Request::Sessions => {
            let people = shared.ssh.as_ref().map_or(0, |server| server.logged_in());
            let jobs = u32::try_from(shared.jobs.running()).unwrap_or(u32::MAX);
            finish(stream, Reply::Sessions(people.saturating_add(jobs))).await;
        }
        Request::Exec(command) => exec::serve(stream, &command, shared).await,
        Request::Attach(wanted) => exec::attach(stream, &wanted, shared).await,
        Request::Jobs(ask) => {
            let jobs = shared.jobs.answer(ask, &shared.settings.image.env);
            finish(stream, jobs.map_or_else(Reply::Error, Reply::Jobs)).await;
        }
        Request::Tcp(target) => tcp::serve(stream, &target).await,
        Request::Pack(files) => files::pack(stream, files).await,
        Request::Unpack(files) => files::unpack(stream, files).await,
        Request::Import(order) => workspace::import(stream, order, &shared.workspaces).await,
        Request::ExportTree(order) => workspace::export(stream, order, &shared.workspaces).await,
        Request::Look(look) => workspace::look(stream, look, &shared.workspaces).await,
        Request::Transfer(query) => {
            let status = shared.workspaces.status(query.operation, Duration::from_millis(query.wait_ms)).await;
            finish(stream, Reply::Transfer(status)).await;
        }
        Request::AbortTransfer(operation) => {
            shared.workspaces.abort(operation);
            finish(stream, Reply::Ok).await;
        }
        Request::Freeze(seconds) => freeze::serve(stream, seconds).await,
        Request::Lane(token) => finish(stream, lane::offer(&token, shared).await).await,
        Request::Forget(order) => finish(stream, workspace::forget(order, &shared.workspaces).await).await,
        Request::Ssh => match &shared.ssh {
            Some(server) => {
                if stream.write_reply(&Reply::Ok).await.is_ok() {
                    server.serve_trusted(stream).await;
                }
            }
            None => {
                let error = ApiError::failed_precondition("this VM has no ssh server, its host key cannot be used")
                    .hint("see the VM's warnings; exec works without");
                finish(stream, Reply::Error(error)).await;
            }
        },
        Request::PowerOff => {
            finish(stream, Reply::Ok).await;
            // Process 1 may end this process at once; the answer is on its way through the connection's task.
            tokio::time::sleep(REPLY_OUT).await;
            power::off(&shared.init).await;
        }
    }
}

async fn finish(mut stream: MuxStream, reply: Reply) {
    if stream.write_reply(&reply).await.is_ok() {
        stream.shutdown().await.unwrap_or_default();
    }
}

async fn ready(stream: MuxStream, shared: &Shared) {
    let mut facts = shared.facts.subscribe();
    let reply = tokio::select! {
        facts = facts.wait_for(Option::is_some) => match facts {
            Ok(facts) => facts.clone().map_or(Reply::Ok, Reply::Ready),
            Err(_) => Reply::Error(ApiError::unavailable("the agent is ending")),
        },
        () = stream.closed() => return,
    };
    finish(stream, reply).await;
}

/// Grows the root filesystem in a thread of its own: a large one takes seconds.
async fn grow(bytes: u64) -> Reply {
    let grown = tokio::task::spawn_blocking(move || boot::grow_root(bytes)).await;
    match grown {
        Ok(Ok(())) => Reply::Ok,
        Ok(Err(error)) => Reply::Error(ApiError::internal(boot::chain(&error))),
        Err(error) => Reply::Error(ApiError::internal(format!("growing the root filesystem failed: {error}"))),
    }
}

fn set_clock(nanoseconds: i64) -> Reply {
    let time = TimeSpec::new(nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000));
    match clock_settime(ClockId::CLOCK_REALTIME, time) {
        Ok(()) => Reply::Ok,
        Err(errno) => Reply::Error(ApiError::invalid_argument(format!(
            "the guest's clock cannot be set to {nanoseconds} ns: {errno}"
        ))),
    }
}
