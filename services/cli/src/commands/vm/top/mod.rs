//! `warren vm top`: what VMs use, measured again and again, as top(1) shows processes.

mod rates;
mod screen;
mod view;

use std::{io::IsTerminal, time::Duration};

use contract::{
    ApiError,
    usage::{Usage, UsageReply, UsageRequest},
};
use tokio::time::{Instant, sleep_until};

use super::PAGE;
use crate::{
    args::{Global, TopArgs},
    client::Client,
    commands::parse_some,
    failure::{Failure, Outcome, SIGINT_EXIT},
    output::{self, Format},
};
use rates::Rates;
use screen::Screen;
use view::{Sort, View};

/// The shortest time between two measurements: hosts give samples younger than half a second to all who ask, and twice the same
/// sample has no rate.
const DELAY_MIN: Duration = Duration::from_secs(1);
/// The longest.
const DELAY_MAX: Duration = Duration::from_secs(3600);

/// Measures and shows until it is told to end.
///
/// # Errors
/// What the service answered the first time; later a table says it.
pub async fn run(global: &Global, format: Format, args: TopArgs) -> Result<Outcome, Failure> {
    let sort: Sort = args.sort.parse()?;
    let delay = delay(&args.delay)?;
    let tables = if args.once { Some(1) } else { args.iterations };
    if tables == Some(0) {
        return Err(ApiError::invalid_argument("0 tables are nothing to show").hint("-n is 1 or more").into());
    }
    let request = UsageRequest {
        vm: args.vm,
        host: parse_some(args.host.as_deref())?,
        label: parse_some(args.label.as_deref())?,
        limit: PAGE,
        after: None,
    };
    let client = Client::connect(global).await?;
    match format {
        Format::Json => lines(&client, request, delay, tables).await,
        Format::Table => show(&client, request, View { sort }, delay, tables).await,
    }
}

fn delay(text: &str) -> Result<Duration, ApiError> {
    let delay = humantime::parse_duration(text).map_err(|error| {
        ApiError::invalid_argument(format!("{text:?} is no time: {error}")).hint("write it like 2s")
    })?;
    if !(DELAY_MIN..=DELAY_MAX).contains(&delay) {
        return Err(ApiError::invalid_argument(format!("--delay cannot be {text}")).hint("it is 1s to 1h"));
    }
    Ok(delay)
}

/// All pages.
async fn measure(client: &Client, mut request: UsageRequest) -> Result<UsageReply, ApiError> {
    let mut all = UsageReply { vms: Vec::new(), silent: Vec::new(), more: false };
    loop {
        let page = client.ask::<Usage>(&request).await?;
        let empty = page.vms.is_empty();
        all.vms.extend(page.vms);
        for host in page.silent {
            if !all.silent.iter().any(|known| known.host == host.host) {
                all.silent.push(host);
            }
        }
        if !page.more || empty {
            return Ok(all);
        }
        request.after = all.vms.last().map(|vm| vm.name.clone());
    }
}

/// A line each VM and measurement: counters, as programs that compute their own rates want them.
async fn lines(
    client: &Client,
    request: UsageRequest,
    delay: Duration,
    rounds: Option<u64>,
) -> Result<Outcome, Failure> {
    let mut round = 0;
    loop {
        let next = Instant::now() + delay;
        let reply = measure(client, request.clone()).await?;
        for vm in &reply.vms {
            output::json_line(vm)?;
        }
        for silent in &reply.silent {
            output::json_line(silent)?;
        }
        round += 1;
        if rounds.is_some_and(|rounds| round >= rounds) {
            return Ok(Outcome::Done);
        }
        tokio::select! {
            () = sleep_until(next) => {}
            _ = tokio::signal::ctrl_c() => return Ok(Outcome::Exit(SIGINT_EXIT)),
        }
    }
}

/// Tables with rates, which the second measurement gives for the first time.
async fn show(
    client: &Client,
    request: UsageRequest,
    view: View,
    delay: Duration,
    tables: Option<u64>,
) -> Result<Outcome, Failure> {
    let mut rates = Rates::default();
    // The first rates are had sooner, so that nobody looks at an empty table for long.
    let mut next = Instant::now() + delay.min(DELAY_MIN);
    rates.update(measure(client, request.clone()).await?);
    let live = std::io::stdout().is_terminal() && std::io::stdin().is_terminal() && tables.is_none();
    let mut screen = if live { Some(Screen::enter()?) } else { None };
    let mut shown = 0;
    loop {
        let ended = match &mut screen {
            Some(screen) => {
                screen.draw(&view.lines(&rates))?;
                screen.until(next).await
            }
            None => tokio::select! {
                () = sleep_until(next) => None,
                _ = tokio::signal::ctrl_c() => Some(Outcome::Exit(SIGINT_EXIT)),
            },
        };
        if let Some(outcome) = ended {
            return Ok(outcome);
        }
        next = Instant::now() + delay;
        match measure(client, request.clone()).await {
            Ok(reply) => rates.update(reply),
            // A service or host that is restarted does not end what a person watches.
            Err(error) if screen.is_some() && error.retryable => rates.failed(&error),
            Err(error) => return Err(error.into()),
        }
        if screen.is_none() {
            let gap = if shown > 0 { "\n" } else { "" };
            output::text(&format!("{gap}{}", view.lines(&rates).join("\n") + "\n"))?;
            shown += 1;
            if tables.is_some_and(|tables| shown >= tables) {
                return Ok(Outcome::Done);
            }
        }
    }
}
