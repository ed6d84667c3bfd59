//! `warren image gc`: what rows and hosts have of images that the other lacks.

use contract::image::{self, GcItem, GcOutcome, GcReport, GcRequest};

use crate::{
    args::{Global, image::GcArgs},
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
};

/// Compares, and mends unless it is a dry run.
///
/// # Errors
/// What the service answered.
pub async fn run(global: &Global, format: Format, args: &GcArgs) -> Result<Outcome, Failure> {
    let report = Client::connect(global).await?.ask::<image::Gc>(&GcRequest { dry_run: args.dry_run }).await?;
    match format {
        Format::Json => output::json(&report)?,
        Format::Table => show(&report)?,
    }
    Ok(Outcome::Done)
}

fn show(report: &GcReport) -> Result<(), Failure> {
    for host in &report.hosts {
        if let Some(why) = &host.skipped {
            output::note(&format!("{} was not looked at: {}", host.host, output::clean(why)));
        }
    }
    if report.items.is_empty() {
        output::note("nothing to collect");
        return Ok(());
    }
    output::table(&["WHERE", "KIND", "WHAT", "SIZE", "OUTCOME", "WHY"], report.items.iter().map(row).collect())?;
    if report.left_off > 0 {
        output::note(&format!("and {} more", report.left_off));
    }
    Ok(())
}

fn row(item: &GcItem) -> Vec<String> {
    let size = if item.disk_bytes == 0 { String::new() } else { indicatif::BinaryBytes(item.disk_bytes).to_string() };
    let outcome = match item.outcome {
        GcOutcome::Pending => "to do",
        GcOutcome::Mended => "done",
        GcOutcome::Left => "left",
    };
    vec![
        item.host.as_ref().map_or_else(|| "lab".to_owned(), ToString::to_string),
        item.kind.as_str().replace('_', " "),
        output::clean(&item.what),
        size,
        outcome.to_owned(),
        item.why.as_deref().map(output::clean).unwrap_or_default(),
    ]
}
