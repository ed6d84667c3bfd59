//! **Carrying** a tree into a VM: it is sent while its operation is watched, and what is said of its end is what was seen of it.

use std::sync::Arc;

use bus::ByteStream;
use contract::{
    ApiError, ErrorCode, FileName, OperationId,
    operation::{Operation, OperationState},
};
use futures::future::BoxFuture;
use tokio::signal::unix::{SignalKind, signal};
use tree::{SendError, Sent, Tree};

use super::{bar::Bar, export::cancel, prepare::of_failure, summary};
use crate::{client::Client, output, wait};

/// How it ended.
pub(super) enum Carried {
    /// The new tree stands.
    Stands(Box<Operation>, Sent),
    /// The operation was seen to have ended without it: the VM's tree is what it was.
    Undone(Unsent),
    /// Nobody here knows whether the VM has the new tree or the old one.
    Unknown(ApiError),
}

/// Why a tree was not put there.
pub(super) enum Unsent {
    /// A file changed while it was read: worth another one. Which, where that is known.
    Changed(ApiError, Option<Box<FileName>>),
    /// Anything else.
    Failed(ApiError),
}

impl From<ApiError> for Unsent {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}

/// Sends a tree while the operation is watched to its end. Ctrl-C calls the operation off, and its end is still waited for, as it may
/// come too late; one more leaves it.
pub(super) async fn carry(
    client: &Client,
    stream: ByteStream,
    operation: Operation,
    tree: Arc<Tree>,
    bar: &Bar,
) -> Carried {
    let id = operation.id;
    let mut interrupts = match signal(SignalKind::interrupt()) {
        Ok(interrupts) => interrupts,
        Err(error) => return unknown(id, ApiError::internal(format!("signals cannot be seen: {error}"))),
    };
    bar.phase("waiting for the VM");
    let shown = bar.clone();
    let mut upload = Box::pin(tree::upload(stream, tree, move |progress| shown.progress(progress)));
    let mut follow = Box::pin(wait::follow(client, operation, None, |_| Ok(())));
    let mut sent = None;
    let mut calling_off: Option<BoxFuture<'_, Result<(), ApiError>>> = None;
    let mut called_off = false;
    let ended = loop {
        tokio::select! {
            ended = &mut follow => break ended,
            result = &mut upload, if sent.is_none() => sent = Some(result),
            refused = async { calling_off.as_mut()?.await.err() }, if calling_off.is_some() => {
                calling_off = None;
                if let Some(error) = refused {
                    output::note(&output::clean(&format!("the prepare cannot be called off: {}", error.message)));
                }
            }
            _ = interrupts.recv() => {
                if called_off {
                    return unknown(id, ApiError::cancelled("its end was not waited for"));
                }
                called_off = true;
                bar.phase("calling the prepare off");
                calling_off = Some(Box::pin(cancel(client, id)));
            }
        }
    };
    drop(follow);
    match ended {
        Ok(operation) if operation.state == OperationState::Succeeded => {
            if called_off {
                output::note("the prepare could not be called off any more: the new tree stands");
            } else if sent.is_none() {
                // A success was told before the stream's end was.
                sent = Some(upload.await);
            }
            stands(operation, sent)
        }
        Ok(operation) => Carried::Undone(why(operation, sent.and_then(Result::err), called_off)),
        Err(failure) => unknown(id, of_failure(failure)),
    }
}

/// What was moved is said by the stream, or else by the operation.
fn stands(operation: Operation, sent: Option<Result<Sent, SendError>>) -> Carried {
    let sent = match sent {
        Some(Ok(sent)) => sent,
        other => {
            tracing::debug!(?other, "the stream's end was not seen");
            Sent { summary: summary(&operation), wire_bytes: 0 }
        }
    };
    Carried::Stands(Box::new(operation), sent)
}

/// Why an operation ended that did not succeed.
fn why(operation: Operation, unsent: Option<SendError>, called_off: bool) -> Unsent {
    match unsent {
        // What was wrong here is the reason.
        Some(error @ (SendError::Changed { .. } | SendError::Read { .. })) => of_send(error),
        _ if called_off && operation.state == OperationState::Cancelled => {
            ApiError::cancelled("the prepare was called off; the VM's tree is what it was").into()
        }
        // The operation's error says more than the stream's end.
        _ => match wait::succeeded(operation) {
            Err(error) => error.into(),
            Ok(operation) => ApiError::internal(format!("the prepare {} ended twice", operation.id)).into(),
        },
    }
}

fn unknown(id: OperationId, error: ApiError) -> Carried {
    let message = format!("whether the prepare came to its end is not known: {}", error.message);
    let hint = format!(
        "the VM has the old tree or the new one, whole: `warren op wait {id}` tells; this machine remembers both, so \
         that either is exported rightly"
    );
    Carried::Unknown(ApiError { message, ..error }.hint(hint))
}

fn of_send(error: SendError) -> Unsent {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    match error {
        SendError::Changed { path } => {
            let error = ApiError::new(ErrorCode::Aborted, text);
            Unsent::Changed(error.hint("something writes there; try again when it is done"), Some(Box::new(path)))
        }
        SendError::Read { .. } | SendError::Refused(_) => ApiError::failed_precondition(text).into(),
        SendError::Stream(_) => ApiError::unavailable(text).hint("does the VM still run? Prepare again").into(),
        SendError::Protocol(_) => ApiError::internal(text).into(),
    }
}
