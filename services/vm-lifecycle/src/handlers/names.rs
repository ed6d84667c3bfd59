//! `warren.host.names` and `warren.host.resolve`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError,
    dns::{NamedVm, Names, NamesRequest, PAGE_MAX, RESOLVE_MAX, ResolveRequest},
};
use ipnet::Ipv4Net;

use super::App;
use crate::db::names::{names_find, names_page, names_subnets};

/// Lists a page of all names.
pub async fn page(app: Arc<App>, _: RequestContext, request: NamesRequest) -> Result<Names, ApiError> {
    if !(1..=PAGE_MAX).contains(&request.limit) {
        return Err(ApiError::invalid_argument(format!("`limit` cannot be {}", request.limit))
            .hint(format!("it is 1 to {PAGE_MAX}")));
    }
    let client = app.store.client().await?;
    let mut vms = names_page(&client, request.after, request.limit).await?;
    let page = usize::try_from(request.limit).unwrap_or(usize::MAX);
    let more = vms.len() > page;
    vms.truncate(page);
    Ok(reply(&app, vms, more, names_subnets(&client).await?))
}

/// Tells who has which of the names, addresses and ids asked for.
pub async fn resolve(app: Arc<App>, _: RequestContext, request: ResolveRequest) -> Result<Names, ApiError> {
    let asked = request.vms.len() + request.names.len() + request.addresses.len();
    if !(1..=RESOLVE_MAX).contains(&asked) {
        return Err(ApiError::invalid_argument(format!("{asked} things are asked for"))
            .hint(format!("ask for 1 to {RESOLVE_MAX}")));
    }
    let client = app.store.client().await?;
    let vms = names_find(&client, &request.vms, &request.names, &request.addresses).await?;
    Ok(reply(&app, vms, false, names_subnets(&client).await?))
}

fn reply(app: &App, vms: Vec<NamedVm>, more: bool, mut networks: Vec<Ipv4Net>) -> Names {
    networks.push(app.network);
    Names {
        vms,
        more,
        domain: app.lab.domain.clone(),
        networks: Ipv4Net::aggregate(&networks),
        rest_ms: u64::try_from(app.address_rest.as_millis()).unwrap_or(u64::MAX),
    }
}
