//! `warren events`: what happened in the lab, and what happens.

use contract::{ApiError, subject};
use futures::StreamExt;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::vm::seconds;
use crate::{
    args::{EventsArgs, Global},
    client::Client,
    failure::{Failure, Outcome, SIGINT_EXIT},
    output::{self, Format},
};

/// Prints events, a line each; JSON: an object a line.
///
/// # Errors
/// JetStream cannot be reached, or the area is no word.
pub async fn run(global: &Global, format: Format, args: EventsArgs) -> Result<Outcome, Failure> {
    let filter = match &args.area {
        None => subject::EVENT_WILDCARD.to_owned(),
        Some(area) if !area.is_empty() && area.chars().all(|c| c.is_ascii_lowercase()) => {
            format!("warren.event.{area}.>")
        }
        Some(area) => {
            return Err(ApiError::invalid_argument(format!("{area:?} is no area of events"))
                .hint("areas are vm, lab, image, host and operation")
                .into());
        }
    };
    let since = match (&args.since, args.follow) {
        (Some(time), _) => Some(ago(seconds(time)?)),
        (None, true) => None,
        (None, false) => Some(ago(3600)),
    };
    let client = Client::connect(global).await?;
    let (there, mut events) = client.bus().events(filter, since).await?;
    if there == 0 && !args.follow {
        output::note("no events");
        return Ok(Outcome::Done);
    }
    loop {
        let heard = tokio::select! {
            heard = events.next() => heard,
            _ = tokio::signal::ctrl_c() => return Ok(Outcome::Exit(SIGINT_EXIT)),
        };
        let Some(heard) = heard.transpose()? else { return Ok(Outcome::Done) };
        let what = heard.subject.trim_start_matches("warren.event.").to_owned();
        let line = match format {
            Format::Json => serde_json::json!({ "subject": heard.subject, "event": heard.event }).to_string(),
            Format::Table => {
                let at = heard.event.at.format(&Rfc3339).unwrap_or_default();
                format!("{at} {what} {}", heard.event.data)
            }
        };
        output::text(&format!("{}\n", output::clean(&line)))?;
        if heard.pending == 0 && !args.follow {
            return Ok(Outcome::Done);
        }
    }
}

fn ago(seconds: u64) -> OffsetDateTime {
    OffsetDateTime::now_utc() - std::time::Duration::from_secs(seconds)
}
