//! `warren image log`: what a build printed.

use std::time::{Duration, Instant};

use contract::{
    ApiError, ErrorCode,
    image::{BuildLogRequest, LOG_PAGE_MAX, ReadBuildLog},
};

use crate::{
    args::{Global, image::LogArgs},
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
};

/// How long one request waits for more, in milliseconds.
const HOLD_MS: u64 = 5_000;
/// How long the services may be away before following is given up.
const AWAY_MAX: Duration = Duration::from_secs(120);
/// The pause before services that are away are asked again.
const AWAY_PAUSE: Duration = Duration::from_millis(500);

/// Prints the log.
pub(super) async fn run(global: &Global, format: Format, args: LogArgs) -> Result<Outcome, Failure> {
    let client = Client::connect(global).await?;
    print(&client, &args.build, args.follow, format).await?;
    Ok(Outcome::Done)
}

/// Prints the log, to its end or to where it is now; as JSON a piece a line.
///
/// # Errors
/// There is no such build, the services stay away, or standard output is closed.
pub(super) async fn print(client: &Client, build: &str, follow: bool, format: Format) -> Result<(), Failure> {
    // Named once: another build of the name may begin meanwhile.
    let mut build = build.to_owned();
    let (mut offset, mut answered) = (0, Instant::now());
    loop {
        let wait_ms = if follow { HOLD_MS } else { 0 };
        let request = BuildLogRequest { build: build.clone(), offset, limit: LOG_PAGE_MAX, wait_ms };
        let page = match client.ask::<ReadBuildLog>(&request).await {
            Ok(page) => page,
            Err(error) if follow && away(&error) && answered.elapsed() < AWAY_MAX => {
                tokio::time::sleep(AWAY_PAUSE).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        answered = Instant::now();
        let nothing = page.text.is_empty();
        match format {
            Format::Json if nothing => {}
            Format::Json => output::json_line(&page)?,
            Format::Table => {
                if page.missing > 0 {
                    output::text(&format!("[{} bytes of the log are not kept]\n", page.missing))?;
                }
                output::text(&page.text)?;
            }
        }
        if page.ended || (nothing && !follow) {
            return Ok(());
        }
        (build, offset) = (page.operation.to_string(), page.next);
    }
}

fn away(error: &ApiError) -> bool {
    matches!(error.code, ErrorCode::Unavailable | ErrorCode::DeadlineExceeded)
}
