//! `warren vm …`

mod claims;
mod console;
pub(super) mod create;
mod many;
mod postmortem;
pub(super) mod set;
mod top;
mod wait_for;

use bus::ByteStream;
use contract::{
    ApiError, Labels, deadline,
    feature::DataDisk,
    idle::{self, IdleLimit},
    many::ManyVerb,
    operation::Operation,
    verb::Verb,
    vm::{self, LifecycleRequest, ListRequest, Vm, VmList, VmRef},
    workspace::SessionKind,
};
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::parse_some;
use crate::{
    args::{Global, VmCommand, Waiting, Which},
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
    wait,
};
use claims::Claims;
pub(super) use create::{keys_in, seconds};

/// The VMs of one request for a list: about 200 KiB, far below what a message may hold.
const PAGE: u32 = 200;

/// Runs a command about VMs.
///
/// # Errors
/// What the service answered.
pub async fn run(global: &Global, format: Format, command: VmCommand) -> Result<Outcome, Failure> {
    match command {
        VmCommand::Create(args) => create::run(global, format, *args).await,
        VmCommand::Ls { state, host, label, lab, image } => {
            let (state, host) = (parse_some(state.as_deref())?, parse_some(host.as_deref())?);
            let (label, lab) = (parse_some(label.as_deref())?, parse_some(lab.as_deref())?);
            let request = ListRequest { state, host, label, lab, image, limit: PAGE, after: None };
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
        VmCommand::Top(args) => top::run(global, format, args).await,
        VmCommand::Show { vm } => {
            let client = Client::connect(global).await?;
            let vm = client.ask::<vm::Get>(&VmRef { vm }).await?;
            match format {
                Format::Json => output::json(&vm)?,
                Format::Table => show(&vm, &claims::of(&client, &vm).await?)?,
            }
            Ok(Outcome::Done)
        }
        VmCommand::Start { which, waiting } => {
            lifecycle::<vm::Start>(global, format, (which, false), (ManyVerb::Start, waiting), "runs").await
        }
        VmCommand::Stop { which, force, waiting } => {
            lifecycle::<vm::Stop>(global, format, (which, force), (ManyVerb::Stop, waiting), "is stopped").await
        }
        VmCommand::Restart { which, force, waiting } => {
            lifecycle::<vm::Restart>(global, format, (which, force), (ManyVerb::Restart, waiting), "runs again").await
        }
        VmCommand::Set(args) => set::run(global, format, args).await,
        VmCommand::Rename { vm, name, waiting } => set::rename(global, format, vm, &name, waiting).await,
        VmCommand::Pause { which, waiting } => {
            lifecycle::<vm::Pause>(global, format, (which, false), (ManyVerb::Pause, waiting), "is paused").await
        }
        VmCommand::Resume { which, waiting } => {
            lifecycle::<vm::Resume>(global, format, (which, false), (ManyVerb::Resume, waiting), "goes on").await
        }
        VmCommand::Rm { which, force, waiting } => {
            lifecycle::<vm::Delete>(global, format, (which, force), (ManyVerb::Delete, waiting), "is gone").await
        }
        VmCommand::Wait { vm, what, timeout } => wait_for::run(global, format, vm, &what, &timeout).await,
        VmCommand::Console { vm } => console::run(global, &vm).await,
        VmCommand::Postmortem(args) => postmortem::run(global, format, args).await,
        VmCommand::Logs { vm, follow, tail } => logs(global, &vm, follow, tail).await,
    }
}

fn request(vm: String, force: bool) -> LifecycleRequest {
    LifecycleRequest { vm, force, wait: false, timeout_ms: deadline::WAIT_DEFAULT_MS }
}

/// One VM is one operation, with its progress; several are one request, with a line each.
async fn lifecycle<V: Verb<Request = LifecycleRequest, Reply = Operation>>(
    global: &Global,
    format: Format,
    (which, force): (Which, bool),
    (verb, waiting): (ManyVerb, Waiting),
    done: &str,
) -> Result<Outcome, Failure> {
    let client = Client::connect(global).await?;
    let mut vms = many::chosen(&client, &which).await?;
    if vms.len() != 1 || which.label.is_some() {
        return many::run(&client, format, vms, (verb, force), waiting.no_wait, done).await;
    }
    let request = request(vms.remove(0), force);
    let operation = client.change::<V>(&request, deadline::QUICK).await?;
    let text = format!("{} {done}\n", output::clean(&request.vm));
    wait::settle(&client, operation, format, waiting.no_wait, async |_| output::text(&text)).await
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

fn show(vm: &Vm, claims: &Claims) -> Result<(), Failure> {
    output::pairs(vec![
        ("name", vm.name.to_string()),
        ("id", vm.id.to_string()),
        ("state", state(vm)),
        ("reason", vm.reason.clone().unwrap_or_default()),
        ("image", format!("{} ({})", vm.image_name, vm.image)),
        ("image digest", vm.image_digest.clone().unwrap_or_default()),
        ("host", vm.host.to_string()),
        ("address", vm.address.to_string()),
        ("dns name", vm.fqdn.clone()),
        ("mac", vm.mac.clone()),
        ("cpus", vm.cpus.to_string()),
        ("memory", vm.memory.to_string()),
        ("disk", vm.disk.to_string()),
        ("ssh host key", vm.ssh_host_key.clone().unwrap_or_default()),
        ("ssh port", vm.ssh_port.map(|port| port.to_string()).unwrap_or_default()),
        ("lab", vm.lab.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("labels", labels_text(&vm.labels)),
        ("restart", restart(vm)),
        ("network", vm.features.network.as_str().to_owned()),
        ("ports", joined(&vm.features.ports)),
        ("data disks", vm.features.disks.iter().map(data_disk).collect::<Vec<_>>().join(" ")),
        ("env", vm.features.env.keys().cloned().collect::<Vec<_>>().join(" ")),
        ("kernel", kernel(vm)),
        ("kernel args", vm.features.kernel_args.clone()),
        ("expires", vm.expires_at.map(|at| at.format(&Rfc3339).unwrap_or_default()).unwrap_or_default()),
        ("idle limit", vm.idle_limit.map(idle_limit).unwrap_or_default()),
        ("idle for", vm.active_at.map(output::age).unwrap_or_default()),
        ("protected", if vm.deletion_protection { "against deletion".to_owned() } else { String::new() }),
        ("operation", claims.holder.clone()),
        ("queued", claims.queued.clone()),
        ("age", output::age(vm.created_at)),
        ("ready for", vm.ready_at.map(output::age).unwrap_or_default()),
    ])
}

fn joined<T: ToString>(all: &[T]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn data_disk(disk: &DataDisk) -> String {
    let mount = disk.mount.as_ref().map(|path| format!(" at {path}")).unwrap_or_default();
    format!("{} ({}{mount}{})", disk.name, disk.size, if disk.keep { ", kept" } else { "" })
}

fn labels_text(labels: &Labels) -> String {
    let texts = labels.iter().map(|(key, value)| match value.as_str() {
        "" => key.to_string(),
        value => format!("{key}={value}"),
    });
    texts.collect::<Vec<_>>().join(" ")
}

fn idle_limit(limit: IdleLimit) -> String {
    format!("{} after {} without use", limit.action.as_str(), idle::in_words(limit.seconds))
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

/// What it asked for, and what that is.
fn kernel(vm: &Vm) -> String {
    let asked = vm.features.kernel.as_ref().map(ToString::to_string);
    let booted =
        vm.booted.as_ref().map(|kernel| format!("Linux {} ({})", output::clean(&kernel.release), kernel.digest));
    asked.into_iter().chain(booted).collect::<Vec<_>>().join(": ")
}
