//! `warren dev`: a whole lab on one machine. A supervisor process runs private PostgreSQL and nats-server, the
//! services and one or more host-agents, and restarts what dies. All it keeps lies below one state directory.

pub mod args;
mod binaries;
mod board;
mod down;
mod layout;
mod nats;
mod plan;
mod postgres;
mod process;
mod push_image;
mod status;
mod supervisor;
mod task;
mod up;

use contract::ApiError;
use store::{Store, StoreConfig};

use self::{args::DevCommand, layout::Layout, plan::Plan};
use crate::{
    args::Global,
    failure::{Failure, Outcome},
    output::{self, Format},
};

/// Runs a command about the lab on this machine.
///
/// # Errors
/// Something is missing, or did not start or end in time.
pub async fn run(global: &Global, format: Format, command: DevCommand) -> Result<Outcome, Failure> {
    match command {
        DevCommand::Up(args) => up::run(global, format, args).await,
        DevCommand::Status(state) => status::run(format, &Layout::new(&state.state_dir)?).await,
        DevCommand::Down(args) => down::run(format, args).await,
        DevCommand::Migrate { state, database_url } => migrate(&Layout::new(&state.state_dir)?, database_url).await,
        DevCommand::Supervise(state) => supervisor::run(Layout::new(&state.state_dir)?).await,
        DevCommand::PushImage(args) => push_image::push(args).await,
        DevCommand::OciLayout(args) => push_image::layout(args),
    }
}

async fn migrate(layout: &Layout, database_url: Option<String>) -> Result<Outcome, Failure> {
    let url = match database_url {
        Some(url) => url,
        None => Plan::read(layout)?.map(|plan| plan.database_url(layout)).ok_or_else(|| {
            ApiError::failed_precondition(format!("no lab was ever started in {}", layout.dir().display()))
                .hint("name a database with --database-url, or start a lab with `warren dev up`")
        })?,
    };
    let store = Store::connect(&url, StoreConfig { max_connections: 1, ..StoreConfig::default() });
    store.await.map_err(ApiError::from)?.migrate().await.map_err(ApiError::from)?;
    output::text("the database schema is up to date\n")?;
    Ok(Outcome::Done)
}
