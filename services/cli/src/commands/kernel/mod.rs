//! `warren kernel …`

use contract::{
    HostId, deadline,
    kernel::{
        self, Choice, DeleteRequest, ImportRequest, Kernel, KernelRef, KernelSource, ListRequest, SetDefaultRequest,
    },
};

use super::{gone, parse, parse_some};
use crate::{
    args::{Global, KernelCommand, KernelImportArgs},
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
    upload::{self, Upload},
    wait,
};

/// Runs a command about kernels.
///
/// # Errors
/// What the service answered.
pub async fn run(global: &Global, format: Format, command: KernelCommand) -> Result<Outcome, Failure> {
    match command {
        KernelCommand::Import(args) => import(global, format, args).await,
        KernelCommand::Ls => {
            let list = Client::connect(global).await?.ask::<kernel::List>(&ListRequest {}).await?;
            match format {
                Format::Json => output::json(&list)?,
                Format::Table => {
                    let header = ["NAME", "RELEASE", "SIZE", "HOSTS", "VMS", "IMAGES", "DEFAULT", "AGE", "SOURCE"];
                    output::table(&header, list.kernels.iter().map(row).collect())?;
                }
            }
            Ok(Outcome::Done)
        }
        KernelCommand::Show { kernel } => {
            let kernel = Client::connect(global).await?.ask::<kernel::Get>(&KernelRef { kernel }).await?;
            print(&kernel, format)?;
            Ok(Outcome::Done)
        }
        KernelCommand::Rm { kernel, waiting } => {
            let client = Client::connect(global).await?;
            let request = DeleteRequest { kernel: kernel.clone(), wait: false, timeout_ms: deadline::WAIT_DEFAULT_MS };
            let operation = client.change::<kernel::Delete>(&request, deadline::QUICK).await?;
            wait::settle(&client, operation, format, waiting.no_wait, async |ended| {
                output::text(&gone::told("kernel", &kernel, &ended))
            })
            .await
        }
        KernelCommand::Default { kernel, none } => default(global, format, kernel, none).await,
    }
}

async fn import(global: &Global, format: Format, args: KernelImportArgs) -> Result<Outcome, Failure> {
    let (name, host) = (parse(&args.name)?, parse_some(args.host.as_deref())?);
    let upload = match &args.host_path {
        Some(_) => None,
        // Looked at before anything is asked for.
        None => Some(Upload::of_kernel(args.files)?),
    };
    let client = Client::connect(global).await?;
    let (source, upload) = match (args.host_path, upload) {
        (None, Some(upload)) => {
            let (opened, session, label) = upload.open(&client).await?;
            (KernelSource::Upload { session, label }, Some(opened))
        }
        (path, _) => (KernelSource::Path(path.unwrap_or_default()), None),
    };
    let timeout_ms = deadline::WAIT_DEFAULT_MS;
    let request = ImportRequest { source, name, host, replace: args.replace, wait: false, timeout_ms };
    let operation = client.change::<kernel::Import>(&request, deadline::QUICK).await?;
    upload::made(&client, operation, upload, format, args.waiting.no_wait, async |_| {
        let kernel = client.ask::<kernel::Get>(&KernelRef { kernel: request.name.to_string() }).await?;
        let release = output::clean(&kernel.release);
        output::text(&format!("kernel {} is here: Linux {release}, {}\n", kernel.name, kernel.digest))
    })
    .await
}

async fn default(global: &Global, format: Format, kernel: Option<String>, none: bool) -> Result<Outcome, Failure> {
    let client = Client::connect(global).await?;
    let choice = if kernel.is_some() || none {
        client.change::<kernel::SetDefault>(&SetDefaultRequest { kernel }, deadline::QUICK).await?
    } else {
        let list = client.ask::<kernel::List>(&ListRequest {}).await?;
        Choice { kernel: list.kernels.into_iter().find(|kernel| kernel.default) }
    };
    match (format, &choice.kernel) {
        (Format::Json, _) => output::json(&choice)?,
        (Format::Table, Some(kernel)) => output::text(&format!(
            "VMs boot {} (Linux {}) unless they or their image name another kernel\n",
            kernel.name,
            output::clean(&kernel.release)
        ))?,
        (Format::Table, None) => {
            output::text("VMs boot their host's own kernel unless they or their image name another\n")?;
        }
    }
    Ok(Outcome::Done)
}

fn hosts(hosts: &[HostId]) -> String {
    hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn row(kernel: &Kernel) -> Vec<String> {
    vec![
        kernel.name.to_string(),
        output::clean(&kernel.release),
        indicatif::BinaryBytes(kernel.bytes).to_string(),
        hosts(&kernel.hosts),
        kernel.vms.to_string(),
        kernel.images.to_string(),
        if kernel.default { "yes" } else { "" }.to_owned(),
        output::age(kernel.created_at),
        output::clean(&kernel.source),
    ]
}

fn print(kernel: &Kernel, format: Format) -> Result<(), Failure> {
    if let Format::Json = format {
        return output::json(kernel);
    }
    output::pairs(vec![
        ("name", kernel.name.to_string()),
        ("names", kernel.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
        ("id", kernel.id.to_string()),
        ("digest", kernel.digest.clone()),
        ("release", output::clean(&kernel.release)),
        ("architecture", kernel.architecture.clone()),
        ("size", indicatif::BinaryBytes(kernel.bytes).to_string()),
        ("source", output::clean(&kernel.source)),
        ("default", if kernel.default { "yes" } else { "no" }.to_owned()),
        ("hosts", hosts(&kernel.hosts)),
        ("missing on", hosts(&kernel.missing)),
        ("vms", kernel.vms.to_string()),
        ("images", kernel.images.to_string()),
        ("age", output::age(kernel.created_at)),
    ])
}
