//! `warren doctor`: what is wrong with the lab and its hosts, and what to do about it.

use bus::CallOptions;
use contract::deadline;
use contract::doctor::{Doctor, DoctorReply, DoctorRequest, HostFindings, Verdict};

use super::parse_some;
use crate::{
    args::{DoctorArgs, Global},
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
};

/// The exit code when something does not work.
const FAILED: u8 = 1;

/// Examines the lab.
///
/// # Errors
/// What the service answered.
pub async fn run(global: &Global, format: Format, args: DoctorArgs) -> Result<Outcome, Failure> {
    let client = Client::connect(global).await?;
    let request = DoctorRequest { host: parse_some(args.host.as_deref())?, fix: args.fix };
    let options = CallOptions { timeout: Some(3 * deadline::AGENT), request_key: None };
    let mut reply = client.bus().call_with::<Doctor>(&request, options).await?;
    if args.leaks {
        for host in &mut reply.hosts {
            host.findings.checks.clear();
        }
    }
    match if args.json { Format::Json } else { format } {
        Format::Json => output::json(&reply)?,
        Format::Table => show(&reply)?,
    }
    let bad = |host: &HostFindings| {
        host.findings.checks.iter().any(|check| check.verdict == Verdict::Fail)
            || host.findings.leaks.iter().any(|leak| !leak.fixed)
    };
    Ok(if reply.hosts.iter().any(bad) { Outcome::Exit(FAILED) } else { Outcome::Done })
}

fn show(reply: &DoctorReply) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for host in &reply.hosts {
        let name = host.host.as_ref().map_or_else(|| "lab".to_owned(), ToString::to_string);
        for check in &host.findings.checks {
            let mend = check.mend.clone().unwrap_or_default();
            rows.push(vec![
                name.clone(),
                check.verdict.as_str().to_owned(),
                check.name.clone(),
                check.message.clone(),
                mend,
            ]);
        }
        for leak in &host.findings.leaks {
            let kind = format!("{:?}", leak.kind).to_lowercase();
            let verdict = if leak.fixed { "fixed" } else { "leak" };
            let mend = leak.why.clone().unwrap_or_else(|| {
                if leak.fixed { String::new() } else { "warren doctor --fix removes it".to_owned() }
            });
            rows.push(vec![name.clone(), verdict.to_owned(), kind, leak.what.clone(), mend]);
        }
    }
    if rows.is_empty() {
        output::note("no leaks");
        return Ok(());
    }
    output::table(&["WHERE", "VERDICT", "WHAT", "FOUND", "MEND"], rows)
}
