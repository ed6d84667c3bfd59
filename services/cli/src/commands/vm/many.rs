//! Verbs on several VMs: one request, then each operation followed to its end, with one line of result each.

use contract::{
    ApiError, deadline,
    many::{Many, ManyReply, ManyRequest, ManyVerb, OneOfMany},
    vm::ListRequest,
};
use futures::{StreamExt, stream};

use super::{PAGE, all};
use crate::{
    args::Which,
    client::Client,
    commands::parse,
    failure::{Failure, Outcome},
    output::{self, Format},
    wait,
};

/// How many operations are followed at once.
const AT_ONCE: usize = 64;

/// The names or ids meant. Labels are looked up here, so that a repeat of the request is about the same VMs.
pub async fn chosen(client: &Client, which: &Which) -> Result<Vec<String>, ApiError> {
    let Some(label) = &which.label else { return Ok(which.vms.clone()) };
    let filter = ListRequest { label: Some(parse(label)?), limit: PAGE, ..ListRequest::default() };
    let vms: Vec<_> = all(client, filter).await?.vms.into_iter().map(|vm| vm.name.to_string()).collect();
    if vms.is_empty() {
        return Err(ApiError::not_found(format!("no VM has the labels {label}")).hint("`warren vm ls` lists the VMs"));
    }
    Ok(vms)
}

/// Does one thing to several VMs.
///
/// # Errors
/// The first error of one, after all have ended.
pub async fn run(
    client: &Client,
    format: Format,
    vms: Vec<String>,
    (verb, force): (ManyVerb, bool),
    no_wait: bool,
    done: &str,
) -> Result<Outcome, Failure> {
    let request = ManyRequest { verb, vms, label: None, force, wait: false, timeout_ms: deadline::WAIT_DEFAULT_MS };
    let reply = client.change::<Many>(&request, deadline::QUICK).await?;
    settle(client, reply, format, no_wait, done).await
}

/// Follows each accepted operation to its end, or not, and says what became of each.
///
/// # Errors
/// The first error of one, after all have ended.
pub async fn settle(
    client: &Client,
    reply: ManyReply,
    format: Format,
    no_wait: bool,
    done: &str,
) -> Result<Outcome, Failure> {
    let ended = stream::iter(reply.results).map(|one| follow(client, one, no_wait));
    let mut ended = ended.buffered(AT_ONCE);
    let mut results = Vec::new();
    let mut first: Option<ApiError> = None;
    while let Some(one) = ended.next().await {
        if format == Format::Table {
            let what = match (&one.error, &one.operation) {
                (Some(error), _) => error.message.clone(),
                (None, Some(operation)) if no_wait => format!("{} {}", operation.id, operation.state.as_str()),
                _ => done.to_owned(),
            };
            output::text(&format!("{} {}\n", output::clean(&one.vm), output::clean(&what)))?;
        }
        first = first.or_else(|| one.error.clone());
        results.push(one);
    }
    if format == Format::Json {
        output::json(&ManyReply { results })?;
    }
    match first {
        None => Ok(Outcome::Done),
        Some(error) => Err(error.into()),
    }
}

async fn follow(client: &Client, one: OneOfMany, no_wait: bool) -> OneOfMany {
    let Some(operation) = one.operation.clone().filter(|_| !no_wait && one.error.is_none()) else { return one };
    match wait::follow(client, operation.clone(), None, |_| Ok(())).await {
        Ok(ended) => {
            let error = wait::succeeded(ended.clone()).err();
            OneOfMany { vm: one.vm, operation: Some(ended), error }
        }
        Err(Failure::Api(error)) => OneOfMany { vm: one.vm, operation: Some(operation), error: Some(*error) },
        Err(Failure::OutputClosed) => OneOfMany { vm: one.vm, operation: Some(operation), error: None },
    }
}
