//! `warren vm …`

use std::path::{Path, PathBuf};

use bus::ByteStream;
use contract::{
    ApiError, Labels, deadline, label,
    operation::Operation,
    verb::Verb,
    vm::{self, CreateRequest, LifecycleRequest, ListRequest, Vm, VmList, VmRef},
    workspace::SessionKind,
};
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{parse, parse_some, set};
use crate::{
    args::{CreateArgs, Global, VmCommand},
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
    wait,
};

/// The VMs of one request for a list: about 200 KiB, far below what a message may hold.
const PAGE: u32 = 200;

/// Runs a command about VMs.
///
/// # Errors
/// What the service answered.
pub async fn run(global: &Global, format: Format, command: VmCommand) -> Result<Outcome, Failure> {
    match command {
        VmCommand::Create(args) => create(global, format, args).await,
        VmCommand::Ls { state, host, label, image } => {
            let (state, host) = (parse_some(state.as_deref())?, parse_some(host.as_deref())?);
            let label = parse_some(label.as_deref())?;
            let request = ListRequest { state, host, label, image, limit: PAGE, after: None };
            let list = all(&Client::connect(global).await?, request).await?;
            match format {
                Format::Json => output::json(&list)?,
                Format::Table => {
                    let header = ["NAME", "STATE", "IMAGE", "HOST", "ADDRESS", "CPUS", "MEMORY", "DISK", "AGE"];
                    output::table(&header, list.vms.iter().map(row).collect())?;
                }
            }
            Ok(Outcome::Done)
        }
        VmCommand::Show { vm } => {
            let vm = Client::connect(global).await?.ask::<vm::Get>(&VmRef { vm }).await?;
            match format {
                Format::Json => output::json(&vm)?,
                Format::Table => show(&vm)?,
            }
            Ok(Outcome::Done)
        }
        VmCommand::Start { vm, waiting } => {
            lifecycle::<vm::Start>(global, format, request(vm, false), waiting.no_wait, "runs").await
        }
        VmCommand::Stop { vm, force, waiting } => {
            lifecycle::<vm::Stop>(global, format, request(vm, force), waiting.no_wait, "is stopped").await
        }
        VmCommand::Restart { vm, force, waiting } => {
            lifecycle::<vm::Restart>(global, format, request(vm, force), waiting.no_wait, "runs again").await
        }
        VmCommand::Set(args) => set::run(global, format, args).await,
        VmCommand::Rename { vm, name, waiting } => set::rename(global, format, vm, &name, waiting).await,
        VmCommand::Pause { vm, waiting } => {
            lifecycle::<vm::Pause>(global, format, request(vm, false), waiting.no_wait, "is paused").await
        }
        VmCommand::Resume { vm, waiting } => {
            lifecycle::<vm::Resume>(global, format, request(vm, false), waiting.no_wait, "goes on").await
        }
        VmCommand::Rm { vm, force, waiting } => {
            lifecycle::<vm::Delete>(global, format, request(vm, force), waiting.no_wait, "is gone").await
        }
        VmCommand::Logs { vm, follow, tail } => logs(global, &vm, follow, tail).await,
    }
}

async fn create(global: &Global, format: Format, args: CreateArgs) -> Result<Outcome, Failure> {
    let request = CreateRequest {
        cpus: args.cpus,
        memory: parse(&args.memory)?,
        disk: parse(&args.disk)?,
        host: parse_some(args.host.as_deref())?,
        ssh_keys: ssh_keys(&args.ssh_key)?,
        labels: labels(&args.label)?,
        restart: parse(&args.restart)?,
        ttl_seconds: args.ttl.as_deref().map(seconds).transpose()?,
        deletion_protection: args.deletion_protection,
        ..CreateRequest::new(parse(&args.name)?, args.image)
    };
    let client = Client::connect(global).await?;
    let operation = client.change::<vm::Create>(&request, deadline::QUICK).await?;
    wait::settle(&client, operation, format, args.waiting.no_wait, async |operation| {
        let vm = client.ask::<vm::Get>(&VmRef { vm: request.name.to_string() }).await?;
        let took = operation.finished_at.map(|end| end - operation.created_at);
        let took = took.map(|took| format!(" after {:.1} s", took.as_seconds_f64())).unwrap_or_default();
        output::text(&format!("{} runs on {} with address {}{took}\n", vm.name, vm.host, vm.address))?;
        output::note(&format!("try: warren ssh {}", vm.name));
        Ok(())
    })
    .await
}

fn labels(texts: &[String]) -> Result<Labels, ApiError> {
    let read = |text: &String| label::parse(text).map_err(|error| ApiError::invalid_argument(error.to_string()));
    texts.iter().map(read).collect()
}

/// A time such as `90m` or `7days`, in whole seconds.
pub(super) fn seconds(text: &str) -> Result<u64, ApiError> {
    humantime::parse_duration(text).map(|time| time.as_secs()).map_err(|error| {
        ApiError::invalid_argument(format!("{text:?} is no time: {error}")).hint("write it like 90s, 15m, 2h or 7days")
    })
}

/// The keys in the named files, or in all `~/.ssh/*.pub` where none is named.
fn ssh_keys(files: &[PathBuf]) -> Result<Vec<String>, ApiError> {
    if files.is_empty() {
        return Ok(default_keys());
    }
    let mut keys = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|error| {
            ApiError::invalid_argument(format!("the key {} cannot be read: {error}", file.display()))
        })?;
        if text.contains("PRIVATE KEY") {
            let message = format!("{} is a private key", file.display());
            return Err(ApiError::invalid_argument(message).hint("name the public one, which ends in .pub"));
        }
        keys.extend(lines(&text));
    }
    Ok(keys)
}

fn default_keys() -> Vec<String> {
    let Some(home) = std::env::var_os("HOME") else { return Vec::new() };
    let Ok(entries) = std::fs::read_dir(Path::new(&home).join(".ssh")) else { return Vec::new() };
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "pub"));
    files.sort();
    // What is there by chance must not make a create fail: certificates and oddities are left out.
    let texts = files.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    let keys = texts.flat_map(|text| lines(&text));
    let usable = keys.filter(|key| key.len() <= vm::SSH_KEY_BYTES_MAX && !key.contains("-cert-v01@"));
    usable.take(vm::SSH_KEYS_MAX).collect()
}

fn lines(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

fn request(vm: String, force: bool) -> LifecycleRequest {
    LifecycleRequest { vm, force, wait: false, timeout_ms: deadline::WAIT_DEFAULT_MS }
}

async fn lifecycle<V: Verb<Request = LifecycleRequest, Reply = Operation>>(
    global: &Global,
    format: Format,
    request: LifecycleRequest,
    no_wait: bool,
    done: &str,
) -> Result<Outcome, Failure> {
    let client = Client::connect(global).await?;
    let operation = client.change::<V>(&request, deadline::QUICK).await?;
    let text = format!("{} {done}\n", output::clean(&request.vm));
    wait::settle(&client, operation, format, no_wait, async |_| output::text(&text)).await
}

async fn all(client: &Client, mut request: ListRequest) -> Result<VmList, ApiError> {
    let mut list = VmList { vms: Vec::new(), more: false };
    loop {
        let page = client.ask::<vm::List>(&request).await?;
        let empty = page.vms.is_empty();
        list.vms.extend(page.vms);
        if !page.more || empty {
            return Ok(list);
        }
        request.after = list.vms.last().map(|vm| vm.name.clone());
    }
}

fn state(vm: &Vm) -> String {
    let unsure = if vm.host_down { " (host down)" } else { "" };
    format!("{}{unsure}", vm.state.as_str())
}

fn row(vm: &Vm) -> Vec<String> {
    vec![
        vm.name.to_string(),
        state(vm),
        vm.image_name.clone(),
        vm.host.to_string(),
        vm.address.to_string(),
        vm.cpus.to_string(),
        vm.memory.to_string(),
        vm.disk.to_string(),
        output::age(vm.created_at),
    ]
}

fn show(vm: &Vm) -> Result<(), Failure> {
    output::pairs(vec![
        ("name", vm.name.to_string()),
        ("id", vm.id.to_string()),
        ("state", state(vm)),
        ("reason", vm.reason.clone().unwrap_or_default()),
        ("image", format!("{} ({})", vm.image_name, vm.image)),
        ("host", vm.host.to_string()),
        ("address", vm.address.to_string()),
        ("dns name", vm.fqdn.clone()),
        ("mac", vm.mac.clone()),
        ("cpus", vm.cpus.to_string()),
        ("memory", vm.memory.to_string()),
        ("disk", vm.disk.to_string()),
        ("ssh host key", vm.ssh_host_key.clone().unwrap_or_default()),
        ("ssh port", vm.ssh_port.map(|port| port.to_string()).unwrap_or_default()),
        ("labels", labels_text(&vm.labels)),
        ("restart", restart(vm)),
        ("expires", vm.expires_at.map(|at| at.format(&Rfc3339).unwrap_or_default()).unwrap_or_default()),
        ("protected", if vm.deletion_protection { "against deletion".to_owned() } else { String::new() }),
        ("operation", vm.operation.map(|id| id.to_string()).unwrap_or_default()),
        ("queued", vm.queued.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
        ("age", output::age(vm.created_at)),
        ("ready for", vm.ready_at.map(output::age).unwrap_or_default()),
    ])
}

fn labels_text(labels: &Labels) -> String {
    let texts = labels.iter().map(|(key, value)| match value.as_str() {
        "" => key.to_string(),
        value => format!("{key}={value}"),
    });
    texts.collect::<Vec<_>>().join(" ")
}

fn restart(vm: &Vm) -> String {
    let policy = vm.restart.as_str();
    match (vm.restart_at, vm.restarts) {
        (Some(at), n) => format!("{policy} ({n} in a row, next at {})", at.format(&Rfc3339).unwrap_or_default()),
        (None, 0) => policy.to_owned(),
        (None, n) => format!("{policy} ({n} in a row)"),
    }
}

async fn logs(global: &Global, vm: &str, follow: bool, tail: Option<u64>) -> Result<Outcome, Failure> {
    let client = Client::connect(global).await?;
    let mut stream = client.open(vm, SessionKind::Logs { follow, tail_bytes: tail }).await?;
    stream.shutdown().await.map_err(|error| broken(&error))?;
    copy_out(&mut stream).await?;
    Ok(Outcome::Done)
}

async fn copy_out(stream: &mut ByteStream) -> Result<(), Failure> {
    let mut out = tokio::io::stdout();
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let n = stream.read(&mut buffer).await.map_err(|error| broken(&error))?;
        if n == 0 {
            return Ok(());
        }
        let written = async {
            out.write_all(&buffer[..n]).await?;
            out.flush().await
        };
        written.await.map_err(|error| Failure::writing(&error))?;
    }
}

fn broken(error: &std::io::Error) -> ApiError {
    ApiError::unavailable(format!("the stream was cut: {error}"))
}
