//! One file a verb: what a request must be, and its answer.

mod activity;
mod create;
mod disks;
mod doctor;
mod evidence;
mod get;
mod heartbeat;
mod hosts;
mod lab;
mod lifecycle;
mod list;
mod many;
mod names;
mod register;
mod report;
mod set;
mod usage;

use std::{sync::Arc, time::Duration};

use bus::{Bus, BusError, RequestContext, Service};
use contract::{
    ApiError, Verb, dns,
    doctor::Doctor,
    host,
    idle::Activity,
    lab as labs,
    many::{CreateMany, Many},
    postmortem::Gather,
    usage::Usage,
    vm,
};
use ipnet::Ipv4Net;
use operations::Submitter;
use store::Store;

use crate::kinds::{Delete, Lab, Pause, Restart, Resume, Start, Stop};

/// What handlers work with.
pub struct App {
    /// The database.
    pub store: Store,
    /// The bus, for commands to hosts outside of operations.
    pub bus: Bus,
    /// Accepts operations.
    pub submitter: Submitter,
    /// Who reserves, and the lab's domain.
    pub lab: Arc<Lab>,
    /// What hosts get their subnets of.
    pub network: Ipv4Net,
    /// The prefix length of a host's subnet.
    pub host_prefix: u8,
    /// How long a freed address rests before it is given again.
    pub address_rest: Duration,
}

/// Serves one verb with a handler that takes the app.
async fn serve<V, F>(
    service: &Service,
    app: &Arc<App>,
    handler: fn(Arc<App>, RequestContext, V::Request) -> F,
) -> Result<(), BusError>
where
    V: Verb,
    F: Future<Output = Result<V::Reply, ApiError>> + Send + 'static,
{
    let app = app.clone();
    service.serve::<V, F>(move |context, request| handler(app.clone(), context, request)).await
}

/// Serves every verb of this service.
///
/// # Errors
/// The bus connection is closed.
pub async fn serve_all(service: &Service, app: &Arc<App>) -> Result<(), BusError> {
    serve::<vm::Create, _>(service, app, create::handle).await?;
    serve::<CreateMany, _>(service, app, many::create).await?;
    serve::<Many, _>(service, app, many::handle).await?;
    serve::<vm::List, _>(service, app, list::handle).await?;
    serve::<vm::Get, _>(service, app, get::handle).await?;
    serve::<vm::Start, _>(service, app, lifecycle::handle::<Start>).await?;
    serve::<vm::Stop, _>(service, app, lifecycle::handle::<Stop>).await?;
    serve::<vm::Restart, _>(service, app, lifecycle::handle::<Restart>).await?;
    serve::<vm::Pause, _>(service, app, lifecycle::handle::<Pause>).await?;
    serve::<vm::Resume, _>(service, app, lifecycle::handle::<Resume>).await?;
    serve::<vm::Set, _>(service, app, set::handle).await?;
    serve::<Gather, _>(service, app, evidence::handle).await?;
    serve::<Usage, _>(service, app, usage::handle).await?;
    serve::<vm::DiskList, _>(service, app, disks::list).await?;
    serve::<vm::DiskDelete, _>(service, app, disks::delete).await?;
    serve::<vm::Delete, _>(service, app, lifecycle::handle::<Delete>).await?;
    serve::<labs::Up, _>(service, app, lab::up).await?;
    serve::<labs::Down, _>(service, app, lab::down).await?;
    serve::<labs::List, _>(service, app, lab::list).await?;
    serve::<labs::Get, _>(service, app, lab::get).await?;
    serve::<host::Register, _>(service, app, register::handle).await?;
    serve::<host::Heartbeat, _>(service, app, heartbeat::handle).await?;
    serve::<host::Report, _>(service, app, report::handle).await?;
    serve::<dns::ListNames, _>(service, app, names::page).await?;
    serve::<dns::Resolve, _>(service, app, names::resolve).await?;
    serve::<Activity, _>(service, app, activity::handle).await?;
    serve::<Doctor, _>(service, app, doctor::handle).await?;
    serve::<host::List, _>(service, app, hosts::handle).await
}

/// What a host-agent is told whose host another agent speaks for.
fn superseded(host: &contract::HostId) -> ApiError {
    ApiError::aborted(format!("another host-agent speaks for {host}"))
        .hint("two host-agents run with the same WARREN_HOST_ID, or this is the older one's last message")
}
