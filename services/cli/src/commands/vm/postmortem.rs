//! `warren vm postmortem`: all that is known of a VM in one archive, for whoever is asked what went wrong. It is made from what is
//! there; what is not stands in `missing.txt`.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use bus::CallOptions;
use contract::{
    ApiError, ErrorCode, HostId, VmId, deadline,
    doctor::{Doctor, DoctorRequest},
    operation::{self, ListRequest, Operation, OperationRef},
    postmortem::{Gather, redact},
    vm::{self, VmRef},
};
use flate2::{Compression, write::GzEncoder};
use futures::StreamExt;
use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::{
    args::{Global, PostmortemArgs},
    client::Client,
    commands::operation_id,
    failure::{Failure, Outcome},
    output::{self, Format},
};

/// How many of its last operations are told of.
const OPERATIONS: u32 = 20;
/// How many creates are looked through for one of that name whose VM is gone.
const CREATES: usize = 500;
/// The most events that are told of: the last ones.
const EVENTS: usize = 1_000;
/// How long JetStream may take to give them.
const EVENTS_WAIT: Duration = Duration::from_secs(5);

/// Makes the archive.
///
/// # Errors
/// Nothing at all is known of the VM, or the file cannot be written.
pub async fn run(global: &Global, format: Format, args: PostmortemArgs) -> Result<Outcome, Failure> {
    let client = Client::connect(global).await?;
    let subject = subject(&client, &args).await?;
    let mut archive = Archive::default();
    gather(&client, &subject, &mut archive).await?;
    let name = format!("postmortem-{}", subject.name);
    let path =
        args.file.unwrap_or_else(|| PathBuf::from(format!("{name}-{}.tar.gz", stamp(OffsetDateTime::now_utc()))));
    let count = archive.files.len();
    let missing = archive.missing.clone();
    let target = path.clone();
    let written = tokio::task::spawn_blocking(move || archive.write(&target, &name)).await;
    written.map_err(io::Error::other).flatten().map_err(|error| refused(&path, &error))?;
    match format {
        Format::Json => output::json(&json!({ "file": path, "vm_id": subject.vm, "missing": missing }))?,
        Format::Table => {
            output::text(&format!("{} ({count} files)\n", path.display()))?;
            for line in missing {
                output::note(&format!("missing: {}", output::clean(&line).replace('\n', " ")));
            }
        }
    }
    Ok(Outcome::Done)
}

fn refused(path: &Path, error: &io::Error) -> ApiError {
    let message = format!("{} cannot be written: {error}", path.display());
    match error.kind() {
        io::ErrorKind::AlreadyExists => ApiError::already_exists(message).hint("name another with --file"),
        io::ErrorKind::StorageFull => ApiError::resource_exhausted(message),
        _ => ApiError::failed_precondition(message),
    }
}

/// Whom it is about.
struct Subject {
    vm: VmId,
    name: String,
}

/// The VM asked for: one that is there, or the one an operation was about.
async fn subject(client: &Client, args: &PostmortemArgs) -> Result<Subject, ApiError> {
    if let Some(id) = &args.operation {
        let id = operation_id(id)?;
        return about(&client.ask::<operation::Get>(&OperationRef { id }).await?);
    }
    let asked = args.vm.clone().unwrap_or_default();
    match client.ask::<vm::Get>(&VmRef { vm: asked.clone() }).await {
        Ok(vm) => Ok(Subject { vm: vm.id, name: vm.name.to_string() }),
        Err(error) if error.code == ErrorCode::NotFound => match last_create(client, &asked).await? {
            Some(create) => about(&create),
            None => Err(error.hint("its last operations are not kept any more; `warren op ls` lists those that are")),
        },
        Err(error) => Err(error),
    }
}

fn about(operation: &Operation) -> Result<Subject, ApiError> {
    let vm = operation.resource.strip_prefix("vm:").and_then(|id| id.parse().ok());
    let Some(vm) = vm else {
        return Err(ApiError::invalid_argument(format!("the operation {} is about no VM", operation.id))
            .hint("`warren op show` tells what it was about"));
    };
    Ok(Subject { vm, name: name_in(&operation.request).unwrap_or("vm").to_owned() })
}

/// The name of the VM in an operation's request; only what may stand in a file's name.
fn name_in(request: &Value) -> Option<&str> {
    let name = request["create"]["name"].as_str().or_else(|| request["name"].as_str())?;
    name.parse::<contract::VmName>().is_ok().then_some(name)
}

/// The last create of a VM of that name or id whose VM is gone.
async fn last_create(client: &Client, name_or_id: &str) -> Result<Option<Operation>, ApiError> {
    let resource = name_or_id.parse::<VmId>().ok().map(|id| format!("vm:{id}"));
    let kind = resource.is_none().then(|| "vm.create".to_owned());
    let mut request = ListRequest { kind, resource, limit: 100, ..ListRequest::default() };
    let mut seen = 0;
    while seen < CREATES {
        let page = client.ask::<operation::List>(&request).await?;
        seen += page.operations.len();
        request.before = page.operations.last().map(|last| last.id);
        let fits =
            |operation: &Operation| request.resource.is_some() || name_in(&operation.request) == Some(name_or_id);
        if let Some(found) = page.operations.into_iter().find(fits) {
            return Ok(Some(found));
        }
        if !page.more {
            break;
        }
    }
    Ok(None)
}

async fn gather(client: &Client, subject: &Subject, archive: &mut Archive) -> Result<(), Failure> {
    let asked = VmRef { vm: subject.vm.to_string() };
    let row = client.ask::<vm::Get>(&asked).await;
    let host = row.as_ref().ok().map(|vm| vm.host.clone());
    archive.json("vm.json", row)?;
    let request =
        ListRequest { resource: Some(format!("vm:{}", subject.vm)), limit: OPERATIONS, ..ListRequest::default() };
    let listed = client.ask::<operation::List>(&request).await;
    // What a create failed with, its console's end and trace id are here, also when nothing else is left of it.
    archive.json("operations.json", listed.map(|list| list.operations))?;
    archive.json("events.json", events(client, subject.vm).await)?;
    match host {
        None => archive.missing.push("all that a host knows: the VM is on none".to_owned()),
        Some(host) => of_host(client, &asked, &host, archive).await?,
    }
    archive.json("about.json", Ok(json!({
        "vm_id": subject.vm, "name": subject.name, "made_at": OffsetDateTime::now_utc().to_string(), "warren": crate::VERSION,
    })))?;
    Ok(())
}

async fn of_host(client: &Client, vm: &VmRef, host: &HostId, archive: &mut Archive) -> Result<(), Failure> {
    match client.ask::<Gather>(vm).await {
        Err(error) => archive.missing.push(format!("all that the host knows: {}", error.message)),
        Ok(reply) => {
            for file in reply.evidence.files {
                archive.add(&format!("host/{}", file.name), file.text.into_bytes());
            }
            archive.missing.extend(reply.evidence.missing.into_iter().map(|line| format!("host/{line}")));
        }
    }
    let request = DoctorRequest { host: Some(host.clone()), fix: false };
    let options = CallOptions { timeout: Some(3 * deadline::AGENT), request_key: None };
    archive.json("doctor.json", client.bus().call_with::<Doctor>(&request, options).await)
}

/// What JetStream still has of the VM's events.
async fn events(client: &Client, vm: VmId) -> Result<Vec<Value>, ApiError> {
    let filter = format!("warren.event.vm.{vm}.>");
    let (there, mut events) = client.bus().events(filter, Some(OffsetDateTime::UNIX_EPOCH)).await?;
    let mut all = Vec::new();
    let reading = async {
        let mut left = there;
        while left > 0 {
            let Some(heard) = events.next().await.transpose()? else { break };
            all.push(json!({ "subject": heard.subject, "event": heard.event }));
            left = heard.pending;
        }
        Ok::<_, ApiError>(())
    };
    match tokio::time::timeout(EVENTS_WAIT, reading).await {
        Ok(read) => read?,
        // Those that came are worth having.
        Err(_) => tracing::debug!("not all events came in time"),
    }
    let surplus = all.len().saturating_sub(EVENTS);
    Ok(all.split_off(surplus))
}

/// Files to be, and what is not there.
#[derive(Default)]
struct Archive {
    files: Vec<(String, Vec<u8>)>,
    missing: Vec<String>,
}

impl Archive {
    fn add(&mut self, name: &str, bytes: Vec<u8>) {
        self.files.push((name.to_owned(), bytes));
    }

    /// Adds a value without its secrets, or why it is missing.
    fn json<T: Serialize>(&mut self, name: &str, value: Result<T, ApiError>) -> Result<(), Failure> {
        let written = |value: T| -> serde_json::Result<Vec<u8>> {
            let mut value = serde_json::to_value(value)?;
            redact(&mut value);
            serde_json::to_vec_pretty(&value)
        };
        match value.map(written) {
            Ok(Ok(bytes)) => self.add(name, bytes),
            Ok(Err(error)) => return Err(ApiError::internal(format!("{name} is no JSON: {error}")).into()),
            Err(error) => self.missing.push(format!("{name}: {}", error.message)),
        }
        Ok(())
    }

    /// Writes a gzipped tar archive with all files below one directory; for the user's eyes only.
    fn write(mut self, path: &Path, dir: &str) -> io::Result<()> {
        if !self.missing.is_empty() {
            let text = self.missing.join("\n") + "\n";
            self.add("missing.txt", text.into_bytes());
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let mut tar = tar::Builder::new(GzEncoder::new(io::BufWriter::new(file), Compression::default()));
        let now = u64::try_from(OffsetDateTime::now_utc().unix_timestamp()).unwrap_or_default();
        for (name, bytes) in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(now);
            tar.append_data(&mut header, format!("{dir}/{name}"), bytes.as_slice())?;
        }
        tar.into_inner()?.finish()?.flush()
    }
}

/// `20260131-120509`, in UTC.
fn stamp(at: OffsetDateTime) -> String {
    let (date, time) = (at.date(), at.time());
    format!(
        "{:04}{:02}{:02}-{:02}{:02}{:02}",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_vms_name_becomes_part_of_a_files_name() {
        assert_eq!(name_in(&json!({ "vm_id": "x", "create": { "name": "web" } })), Some("web"));
        assert_eq!(name_in(&json!({ "name": "web" })), Some("web"));
        assert_eq!(name_in(&json!({ "name": "../../etc" })), None);
        assert_eq!(stamp(OffsetDateTime::UNIX_EPOCH), "19700101-000000");
    }

    #[test]
    fn an_archive_holds_what_was_given_and_overwrites_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar.gz");
        let archive = || {
            let mut archive = Archive::default();
            archive.json("vm.json", Ok(json!({ "env": { "A": "secret" } }))).unwrap();
            archive.json::<Value>("gone.json", Err(ApiError::unavailable("away"))).unwrap();
            archive
        };
        archive().write(&path, "postmortem-web").unwrap();
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(std::fs::File::open(&path).unwrap()));
        let mut texts = Vec::new();
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            texts.push((name, io::read_to_string(&mut entry).unwrap()));
        }
        assert_eq!(texts[0].0, "postmortem-web/vm.json");
        assert!(texts[0].1.contains("removed") && !texts[0].1.contains("secret"));
        assert_eq!(texts[1], ("postmortem-web/missing.txt".to_owned(), "gone.json: away\n".to_owned()));
        assert_eq!(archive().write(&path, "x").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
