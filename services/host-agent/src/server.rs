//! The agent's life: prepare, adopt, register, make the network, and only then serve commands.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bus::{Bus, BusConfig, Service, direct::Doors};
use contract::{ApiError, HostId, agent, host::Empty};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    activity,
    capability::Capabilities,
    cgroup::Cgroups,
    config::Config,
    disk::Driver,
    dns::{self, Dns},
    handlers::{self, workspace::Workspaces},
    handles::VmDirs,
    image::{ImageStore, Sources},
    kernel::{self, KernelObjects, KernelOptions, Kernels},
    net::Lab,
    registration::Registration,
    usage::Meter,
    vm::{Deps, Vms, console, postmortem, reconcile},
    vmm::{Vmm, probe, qemu::Qemu},
};

/// How long commands under way get at shutdown; they are repeated to the next agent anyway.
const GRACE: Duration = Duration::from_secs(3);

/// Runs the agent until `stop`. VMs go on running afterwards.
///
/// # Errors
/// The state directory, the kernel or NATS cannot be used.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let (reports, changes) = mpsc::unbounded_channel();
    let preparing = config.clone();
    let names = Arc::<dns::Shared>::default();
    let known = names.clone();
    let (vms, vmm) = tokio::task::spawn_blocking(move || prepare(&preparing, &known, reports)).await??;
    let vms = Vms::new(vms);
    vms.adopt().context("the VMs on this host cannot be adopted")?;
    let name = format!("host-agent {}", config.host);
    let nats = BusConfig { credentials: config.nats_credentials.clone(), ..BusConfig::new(&config.nats_url, name) };
    let bus = Bus::connect(&nats).await?;
    vms.deps().images.take_from(Sources { bus: Some(bus.clone()), dirs: config.image_dirs.clone() });
    let registration =
        Registration { bus: bus.clone(), config: config.clone(), incarnation: Uuid::now_v7(), vmm, vms: vms.clone() };
    let registered = tokio::select! {
        registered = registration.register() => registered,
        () = stop.cancelled() => return Ok(()),
    };
    let network = vms.clone();
    tokio::task::spawn_blocking(move || {
        let guests = network.guarded()?;
        network.deps().lab.ensure(registered.gateway, registered.subnet, &guests)?;
        for leak in network.strays(true) {
            tracing::warn!(?leak, "an object nobody owns");
        }
        anyhow::Ok(())
    })
    .await?
    .context("the lab's network cannot be made")?;
    let dns = Dns::start(bus.clone(), &vms.deps().lab, &names, &registered, config.dns.clone());
    registration.quarantine(&registered).await;
    let workspaces = Workspaces::new(bus.clone(), vms.clone(), config.workspace_dirs.clone());
    let doors = match &config.stream {
        Some(listen) => Some(Doors::open(listen).await.context("direct streams cannot be listened for")?),
        None => None,
    };
    let service = serve(&bus, &config.host, &vms, workspaces, doors).await?;
    let background = [
        tokio::spawn(registration.clone().beat()),
        tokio::spawn(activity::run(registration.clone())),
        tokio::spawn(registration.report(changes)),
        tokio::spawn(console::bound(vms.clone())),
        tokio::spawn(reconcile::run(vms.clone())),
    ];
    tracing::info!(host.id = %config.host, "serving");
    stop.cancelled().await;
    service.stop(GRACE).await;
    dns.stop().await;
    for task in background {
        task.abort();
    }
    Ok(())
}

/// Opens what is on disk and finds out what the machine can do. Blocking.
fn prepare(
    config: &Config,
    names: &Arc<dns::Shared>,
    reports: mpsc::UnboundedSender<agent::VmObservation>,
) -> anyhow::Result<(Deps, &'static str)> {
    std::fs::create_dir_all(&config.state_dir)
        .with_context(|| format!("the state directory {} cannot be made", config.state_dir.display()))?;
    let boot = kernel::prepare(&config.state_dir, &config.kernel, Some(&config.modules), &config.guest_agent)
        .context("the guests' kernel cannot be prepared")?;
    if let Err(error) = kernel::prune(&config.state_dir) {
        tracing::warn!(%error, "old kernels cannot be removed");
    }
    let qemu = Qemu::new(probe::kvm_works(config.acceleration, &config.state_dir, &boot));
    tracing::info!(vmm = qemu.name(), kernel = %boot.release, "guests run under this");
    let images = ImageStore::open(&config.state_dir, config.images.clone()).context("the images cannot be opened")?;
    let options =
        KernelOptions { allowed: config.kernels.iter().cloned().collect(), high_water: config.images.high_water };
    let objects = KernelObjects::open(&config.state_dir, options).context("the lab's kernels cannot be opened")?;
    images.keep_kernels(objects.clone());
    let lab = Lab::with_pool(&config.host, config.uplink, config.tap_pool);
    let deps = Deps {
        dirs: VmDirs::open(&config.state_dir).context("the VMs' directory cannot be opened")?,
        state_dir: config.state_dir.clone(),
        images,
        capabilities: Capabilities::new(&lab, names, &config.state_dir, config.publish_address),
        cgroups: Cgroups::open(&config.host),
        lab,
        disks: Driver::choose(&config.state_dir, config.disk, qemu.name(), qemu.reads_qcow2())?,
        vmm: Box::new(qemu),
        kernels: Kernels::new(boot, &config.state_dir, config.kernels.as_deref(), &config.guest_agent, objects),
        reports,
    };
    Ok((deps, qemu.name()))
}

/// Serves one command by a method of something shared.
macro_rules! command {
    ($service:expr, $host:expr, $verb:ty, $shared:expr, |$it:ident, $request:ident| $call:expr) => {{
        let shared = $shared.clone();
        $service
            .serve_agent::<$verb, _>($host, move |_, $request| {
                let $it = shared.clone();
                async move { $call }
            })
            .await?;
    }};
}

/// Serves every command to this host.
async fn serve(
    bus: &Bus,
    host: &HostId,
    vms: &Arc<Vms>,
    workspaces: Workspaces,
    doors: Option<Doors>,
) -> anyhow::Result<Service> {
    let service = bus.service("host-agent", env!("CARGO_PKG_VERSION"), &format!("everything on host {host}")).await?;
    // From before the first command can come: what was asked of this process was asked after this.
    let since = Instant::now();
    let alive = move |_, _: Empty| async move {
        Ok(agent::Alive { serving_ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX) })
    };
    service.serve_agent::<agent::HostAlive, _>(host, alive).await?;
    serve_images(&service, host, vms).await?;
    serve_kernels(&service, host, bus, vms).await?;
    serve_vms(&service, host, vms).await?;
    let (wire, all, doors) = (bus.clone(), vms.clone(), Arc::new(doors));
    service
        .serve_agent::<agent::GuestOpen, _>(host, move |_, request| {
            handlers::guest::open(wire.clone(), all.clone(), doors.clone(), request)
        })
        .await?;
    command!(service, host, agent::GuestJobs, vms, |vms, request| handlers::guest::jobs(vms, request).await);
    serve_workspaces(&service, host, workspaces).await?;
    service.ready().await?;
    Ok(service)
}

async fn serve_images(service: &Service, host: &HostId, vms: &Arc<Vms>) -> anyhow::Result<()> {
    let images = vms.deps().images.clone();
    let empty = |()| Empty {};
    command!(service, host, agent::ImageResolve, images, |images, request| images.resolve(&request).await);
    command!(service, host, agent::ImageStage, images, |images, request| images.stage(&request).await);
    command!(service, host, agent::ImagePush, images, |images, request| images.push(&request).await);
    command!(service, host, agent::ImageExport, images, |images, request| images.export(&request).await);
    command!(service, host, agent::ImagePublish, images, |images, request| images.publish(&request).await);
    command!(service, host, agent::ImageDiscard, images, |images, request| images.discard(&request).await.map(empty));
    command!(service, host, agent::ImageRemove, images, |images, request| images.remove(&request).await.map(empty));
    command!(service, host, agent::ImageInventory, images, |images, request| images.inventory(&request).await);
    command!(service, host, agent::ImageReclaim, vms, |vms, request| vms.reclaim(request).await.map(empty));
    Ok(())
}

async fn serve_kernels(service: &Service, host: &HostId, bus: &Bus, vms: &Arc<Vms>) -> anyhow::Result<()> {
    let kernels = (vms.deps().kernels.objects().clone(), bus.clone());
    let empty = |()| Empty {};
    command!(service, host, agent::KernelStage, kernels, |all, request| all.0.stage(&all.1, &request).await);
    command!(service, host, agent::KernelPublish, kernels, |all, request| all.0.publish(request).await);
    command!(service, host, agent::KernelDiscard, kernels, |all, request| all.0.discard(&request).await.map(empty));
    command!(service, host, agent::KernelRemove, kernels, |all, request| all.0.remove(&request).await.map(empty));
    command!(service, host, agent::KernelInventory, kernels, |all, request| all.0.inventory(&request).await);
    command!(service, host, agent::KernelSend, kernels, |all, request| all.0.send(&all.1, &request).await.map(empty));
    Ok(())
}

async fn serve_workspaces(service: &Service, host: &HostId, workspaces: Workspaces) -> anyhow::Result<()> {
    let all = Arc::new(workspaces);
    command!(service, host, agent::WorkspaceImport, all, |all, request| all.import(request).await);
    command!(service, host, agent::WorkspaceExport, all, |all, request| all.export(request).await);
    command!(service, host, agent::WorkspaceStatus, all, |all, request| all.status(request).await);
    command!(service, host, agent::WorkspaceAbort, all, |all, request| all.abort(request).await);
    command!(service, host, agent::WorkspaceForget, all, |all, request| all.forget(request).await);
    Ok(())
}

async fn serve_vms(service: &Service, host: &HostId, vms: &Arc<Vms>) -> anyhow::Result<()> {
    let empty = |()| Empty {};
    command!(service, host, agent::VmProvision, vms, |vms, request| vms.provision(request).await);
    command!(service, host, agent::VmBoot, vms, |vms, request| vms.boot(request).await);
    command!(service, host, agent::VmAwaitReady, vms, |vms, request| vms.await_ready(request).await);
    command!(service, host, agent::VmAdjust, vms, |vms, request| vms.adjust(request).await);
    command!(service, host, agent::VmPause, vms, |vms, request| vms.pause(request, true).await);
    command!(service, host, agent::VmResume, vms, |vms, request| vms.pause(request, false).await);
    command!(service, host, agent::HostExamine, vms, |vms, request| Ok::<_, ApiError>(vms.examine(request).await));
    let meter = Meter::new(vms.clone());
    let (all, gauge) = (vms.clone(), meter.clone());
    let gather = move |_, request| {
        let (vms, meter) = (all.clone(), gauge.clone());
        async move { Ok::<_, ApiError>(postmortem::gather(vms, meter, request).await) }
    };
    service.serve_agent::<agent::VmEvidence, _>(host, gather).await?;
    command!(service, host, agent::HostUsage, meter, |meter, request| Ok::<_, ApiError>(meter.answer(request).await));
    command!(service, host, agent::DiskRemove, vms, |vms, request| vms.remove_disk(request).await.map(empty));
    command!(service, host, agent::VmStop, vms, |vms, request| vms.stop(request).await);
    command!(service, host, agent::VmRemove, vms, |vms, request| vms.remove(request).await.map(empty));
    command!(service, host, agent::VmList, vms, |vms, _request| Ok::<_, ApiError>(agent::Observations {
        vms: vms.observations()
    }));
    Ok(())
}
