//! Stories of VMs on one host with real QEMU processes: commands repeated, late and reordered, an agent that dies, a VMM that
//! dies, handles that are damaged.

mod promote;

use std::{path::Path, sync::Arc, time::Duration};

use contract::{
    ApiError, ErrorCode, HostId, ImageId, MebiBytes, OperationId, VmId,
    agent::{
        AdjustRequest, Adjusted, Fence, HostVmState, ProvisionRequest, PublishRequest, ReclaimRequest, StageRequest,
        StageStatus, StopRequest, VmCommand, VmObservation, VmSpec,
    },
    feature::Features,
    guest::Request,
    image::{ImageConfig, ImageSource},
};
use host_agent::{
    capability::Capabilities,
    config::Uplink,
    disk::{self, Driver},
    handles::VmDirs,
    image::{ImageOptions, ImageStore},
    kernel::{self, BootFiles, KernelObjects, KernelOptions, Kernels},
    net::Lab,
    vm::{Deps, Vms},
    vmm::qemu::Qemu,
};
use tokio::{io::AsyncReadExt, sync::mpsc};

const BOUND: Duration = Duration::from_secs(120);

/// A host whose agent can be killed and started again.
struct Host {
    id: HostId,
    dir: tempfile::TempDir,
    lab: Lab,
    image: ImageId,
    boot: BootFiles,
    disk: disk::Wanted,
}

fn images(state: &Path) -> Arc<ImageStore> {
    ImageStore::open(state, ImageOptions { high_water: 100, ..ImageOptions::default() }).unwrap()
}

impl Host {
    /// A host with a published busybox image and a network; nothing when the machine lacks what VMs need.
    async fn new(name: &str) -> Option<Self> {
        if let Some(why) = testkit::lab::missing_for_vms() {
            println!("skipped: {why}");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("wlab-").tempdir().unwrap();
        let layout = dir.path().join("layout");
        testkit::image::busybox_image().write(&layout).unwrap();
        let (store, image) = (images(dir.path()), ImageId::new());
        let fence = Fence { operation: OperationId::new(), epoch: 1 };
        let source = ImageSource::Layout { path: layout.display().to_string(), reference: None };
        let staged = store.stage(&StageRequest { fence, source: source.into(), wait_ms: 60_000 }).await.unwrap();
        assert!(matches!(staged, StageStatus::Done { .. }), "{staged:?}");
        store.publish(&PublishRequest { fence, image }).await.unwrap();

        let id = format!("wlab-{name}-{}", std::process::id()).parse().unwrap();
        let lab = Lab::new(&id, Uplink::None);
        let (making, state) = (lab.clone(), dir.path().to_owned());
        let boot = tokio::task::spawn_blocking(move || {
            making.ensure([10, 77, 0, 1].into(), "10.77.0.0/24".parse().unwrap(), &[]).unwrap();
            let path = |name: &str| std::path::PathBuf::from(std::env::var_os(name).unwrap());
            let (kernel, modules) = (path("WARREN_KERNEL"), path("WARREN_KERNEL_MODULES"));
            kernel::prepare(&state, &kernel, Some(&modules), &path("WARREN_GUEST_AGENT")).unwrap()
        });
        Some(Self { id, image, boot: boot.await.unwrap(), disk: disk::Wanted::Auto, lab, dir })
    }

    /// An agent's part that has to do with VMs, which adopts what is there.
    fn agent(&self) -> Agent {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (reports, reported) = mpsc::unbounded_channel();
        let entered = runtime.enter();
        let agent = std::path::PathBuf::from(std::env::var_os("WARREN_GUEST_AGENT").unwrap());
        let lab = Lab::with_pool(&self.id, Uplink::None, 2);
        let vms = Vms::new(Deps {
            dirs: VmDirs::open(self.dir.path()).unwrap(),
            state_dir: self.dir.path().to_owned(),
            images: images(self.dir.path()),
            capabilities: Capabilities::new(&lab, &Arc::default(), self.dir.path(), std::net::Ipv4Addr::LOCALHOST),
            cgroups: None,
            lab: lab.clone(),
            vmm: Box::new(Qemu::new(false)),
            disks: Driver::choose(self.dir.path(), self.disk, "qemu", true).unwrap(),
            kernels: Kernels::new(
                self.boot.clone(),
                self.dir.path(),
                Some(&self.dir.path().join("other-kernels")),
                &agent,
                KernelObjects::open(
                    self.dir.path(),
                    KernelOptions { allowed: vec![self.dir.path().join("other-kernels")], high_water: 100 },
                )
                .unwrap(),
            ),
            reports,
        });
        vms.adopt().unwrap();
        lab.ensure([10, 77, 0, 1].into(), "10.77.0.0/24".parse().unwrap(), &vms.guarded().unwrap()).unwrap();
        drop(entered);
        Agent { vms, _reported: reported, runtime: Some(runtime) }
    }

    fn spec(&self, n: u8) -> VmSpec {
        VmSpec {
            id: VmId::new(),
            name: format!("vm{n}").parse().unwrap(),
            image: self.image,
            config: ImageConfig::default(),
            cpus: 1,
            memory: MebiBytes(128),
            disk: MebiBytes(128),
            address: format!("10.77.0.{n}/24").parse().unwrap(),
            gateway: [10, 77, 0, 1].into(),
            mac: format!("02:57:0a:4d:00:{n:02x}"),
            domain: "warren".into(),
            ssh_keys: vec![],
            features: Features::default(),
            kernel: None,
        }
    }

    /// The taps that are or were a VM's.
    fn vms_taps(&self) -> Vec<String> {
        self.lab.taps().unwrap().into_iter().filter(|tap| tap.vm.is_some()).map(|tap| tap.name).collect()
    }

    /// Waits until they are removed: that is done after the answer.
    async fn no_vms_taps(&self) {
        testkit::wait_until("the VMs' taps to go", BOUND, async || self.vms_taps().is_empty().then_some(())).await;
    }

    fn vm_dir(&self, vm: VmId) -> std::path::PathBuf {
        self.dir.path().join("vms").join(vm.to_string())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for pid in vmms(self.dir.path()) {
            let _ended_meanwhile =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        if let Err(error) = self.lab.remove() {
            eprintln!("a test's lab stays behind: {error}");
        }
    }
}

/// The VMMs that run below a directory.
fn vmms(state: &Path) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        name.starts_with("qemu-system") && cwd.starts_with(state)
    })
    .collect()
}

struct Agent {
    vms: Arc<Vms>,
    _reported: mpsc::UnboundedReceiver<VmObservation>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        // As a kill does: tasks end where they are, VMMs run on.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Agent {
    /// Runs a command in the agent's own runtime.
    async fn on<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.runtime.as_ref().unwrap().spawn(work).await.unwrap()
    }

    async fn provision(&self, spec: &VmSpec, epoch: i64) -> Result<(), ApiError> {
        let (vms, request) = (self.vms.clone(), ProvisionRequest { fence: fence(epoch), spec: spec.clone() });
        self.on(async move { vms.provision(request).await.map(drop) }).await
    }

    async fn boot(&self, vm: VmId, epoch: i64) -> Result<VmObservation, ApiError> {
        let (vms, command) = (self.vms.clone(), command(vm, epoch));
        self.on(async move { vms.boot(command).await }).await
    }

    async fn ready(&self, vm: VmId, epoch: i64) -> VmObservation {
        let (vms, command) = (self.vms.clone(), command(vm, epoch));
        self.on(async move { tokio::time::timeout(BOUND, vms.await_ready(command)).await.unwrap().unwrap() }).await
    }

    async fn stop(&self, vm: VmId, epoch: i64, grace_ms: u64) -> Result<VmObservation, ApiError> {
        let (vms, fence) = (self.vms.clone(), fence(epoch));
        let request = StopRequest { fence, vm, grace_ms, wait_ms: 60_000 };
        self.on(async move { vms.stop(request).await }).await
    }

    async fn remove(&self, vm: VmId, epoch: i64) -> Result<(), ApiError> {
        let (vms, command) = (self.vms.clone(), command(vm, epoch));
        self.on(async move { vms.remove(command).await }).await
    }

    fn seen(&self, vm: VmId) -> Option<VmObservation> {
        self.vms.observations().into_iter().find(|seen| seen.vm == vm)
    }

    async fn adjust(&self, spec: &VmSpec, epoch: i64, disk: MebiBytes) -> Result<Adjusted, ApiError> {
        let (name, cpus, memory) = (spec.name.clone(), spec.cpus, spec.memory);
        let request = AdjustRequest { fence: fence(epoch), vm: spec.id, name, cpus, memory, disk, ports: None };
        let vms = self.vms.clone();
        self.on(async move { vms.adjust(request).await }).await
    }

    /// What a shell in the guest prints, amid the frames that carry it.
    async fn shell(&self, vm: VmId, script: &str) -> String {
        let (vms, argv) = (self.vms.clone(), ["sh", "-c", script].map(str::to_owned).to_vec());
        self.on(async move {
            let command = serde_json::from_value(serde_json::json!({ "argv": argv })).unwrap();
            let (guest, _) = vms.guest(vm).unwrap();
            let mut stream = guest.ask(&Request::Exec(command)).await.unwrap();
            let mut output = Vec::new();
            tokio::time::timeout(BOUND, stream.read_to_end(&mut output)).await.unwrap().unwrap();
            String::from_utf8_lossy(&output).into_owned()
        })
        .await
    }

    /// Whether the guest answers over its channel.
    async fn answers(&self, vm: VmId) -> bool {
        let vms = self.vms.clone();
        self.on(async move {
            let (guest, _) = vms.guest(vm).unwrap();
            tokio::time::timeout(Duration::from_secs(20), guest.ask(&Request::Ping))
                .await
                .is_ok_and(|pong| pong.is_ok())
        })
        .await
    }
}

fn fence(epoch: i64) -> Fence {
    Fence { operation: OperationId::new(), epoch }
}

fn command(vm: VmId, epoch: i64) -> VmCommand {
    VmCommand { fence: fence(epoch), vm, wait_ms: 100_000 }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_repeated_late_and_reordered_do_no_harm() {
    let Some(host) = Host::new("fence").await else { return };
    let agent = host.agent();
    let spec = host.spec(2);
    let vm = spec.id;
    agent.provision(&spec, 1).await.unwrap();
    agent.provision(&spec, 1).await.unwrap();
    let (first, second) = tokio::join!(agent.boot(vm, 1), agent.boot(vm, 1));
    assert_eq!(first.unwrap().pid, second.unwrap().pid, "two boots, one VMM");
    assert_eq!(agent.ready(vm, 1).await.state, HostVmState::Ready);
    assert_eq!(vmms(host.dir.path()).len(), 1);

    // The next operation has begun: what is left of the one before comes too late.
    agent.stop(vm, 2, 10_000).await.unwrap();
    assert_eq!(agent.boot(vm, 1).await.unwrap_err().code, ErrorCode::Aborted);
    assert_eq!(agent.provision(&spec, 1).await.unwrap_err().code, ErrorCode::Aborted);
    assert_eq!(agent.remove(vm, 1).await.unwrap_err().code, ErrorCode::Aborted);
    assert_eq!(agent.seen(vm).unwrap().state, HostVmState::Off);
    assert_eq!(vmms(host.dir.path()), [0; 0]);

    // Deleted is deleted, whatever comes after, also to an agent that has restarted.
    agent.remove(vm, 3).await.unwrap();
    agent.remove(vm, 3).await.unwrap();
    drop(agent);
    let agent = host.agent();
    assert_eq!(agent.provision(&spec, 2).await.unwrap_err().code, ErrorCode::Aborted);
    assert_eq!(agent.provision(&spec, 3).await.unwrap_err().code, ErrorCode::Aborted);
    assert_eq!(agent.boot(vm, 2).await.unwrap_err().code, ErrorCode::Aborted);
    assert!(agent.seen(vm).is_none() && !host.vm_dir(vm).exists());
    host.no_vms_taps().await;
    assert_eq!(vmms(host.dir.path()), [0; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_died_finds_its_vm_as_it_was_or_says_that_it_died() {
    let Some(host) = Host::new("adopt").await else { return };
    let agent = host.agent();
    let spec = host.spec(2);
    let vm = spec.id;
    agent.provision(&spec, 1).await.unwrap();
    agent.boot(vm, 1).await.unwrap();
    let before = agent.ready(vm, 1).await;
    drop(agent);

    let agent = host.agent();
    let after = agent.seen(vm).unwrap();
    assert_eq!((after.state, after.pid, &after.guest), (HostVmState::Ready, before.pid, &before.guest));
    assert!(agent.answers(vm).await, "the guest talks to the new agent");
    drop(agent);

    // Somebody ends the VMM while no agent looks; and there are things that are not the agent's.
    let pid = before.pid.unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGKILL).unwrap();
    testkit::wait_until("the VMM's end", BOUND, async || vmms(host.dir.path()).is_empty().then_some(())).await;
    let foreign = host.dir.path().join("vms/not-a-vm");
    std::fs::create_dir(&foreign).unwrap();
    let empty = host.vm_dir(VmId::new());
    std::fs::create_dir(&empty).unwrap();
    // And the VM is one that an agent without a pool made: its tap is named by its id.
    let [tap] = &*host.vms_taps() else { panic!("one VM has one tap") };
    let (handles, older) = (host.vm_dir(vm).join("handles.json"), format!("wt{}", vm.tail()));
    let text = std::fs::read_to_string(&handles).unwrap();
    assert!(text.contains(tap.as_str()), "{text}");
    std::fs::write(&handles, text.replace(tap.as_str(), &older)).unwrap();
    host.lab.remove_tap(tap).unwrap();
    let mut stranger = std::process::Command::new("sleep").arg("1000").current_dir(host.vm_dir(vm)).spawn().unwrap();

    let agent = host.agent();
    let died = agent.seen(vm).unwrap();
    assert_eq!(died.state, HostVmState::Failed);
    assert!(died.reason.unwrap().contains("while the host-agent was away"));
    assert!(foreign.exists(), "a foreign directory is left alone");
    assert!(!empty.exists(), "a directory that came to nothing is removed");
    assert!(stranger.try_wait().unwrap().is_none(), "a foreign process is left alone");
    stranger.kill().and_then(|()| stranger.wait()).unwrap();
    agent.boot(vm, 2).await.unwrap();
    assert_eq!(agent.ready(vm, 2).await.state, HostVmState::Ready, "it starts again");
    assert_eq!(host.vms_taps(), [older]);
    assert_eq!(agent.vms.strays(false), vec![]);
    agent.remove(vm, 3).await.unwrap();
    host.no_vms_taps().await;
    assert_eq!(agent.vms.strays(false), vec![]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_handles_are_damaged_keeps_its_disk_and_runs_on() {
    let Some(host) = Host::new("damage").await else { return };
    let agent = host.agent();
    let spec = host.spec(2);
    let vm = spec.id;
    agent.provision(&spec, 1).await.unwrap();
    agent.boot(vm, 1).await.unwrap();
    let pid = agent.ready(vm, 1).await.pid;
    drop(agent);
    let file = host.vm_dir(vm).join("handles.json");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();

    let agent = host.agent();
    let seen = agent.seen(vm).unwrap();
    assert_eq!((seen.state, seen.pid), (HostVmState::Failed, pid), "it is shown, and runs on");
    assert_eq!(agent.vms.strays(true), vec![], "nor is its tap anybody's to remove");
    assert_eq!(host.vms_taps().len(), 1);
    assert!(seen.reason.unwrap().contains("handles.json cannot be read"));
    let refused = agent.boot(vm, 2).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::FailedPrecondition);
    assert!(refused.hint.unwrap().contains("mend"));
    assert_eq!(agent.provision(&spec, 2).await.unwrap_err().code, ErrorCode::FailedPrecondition);
    // What its disk builds on nobody here can tell.
    let reclaim = ReclaimRequest { image: ImageId::new(), operations: Vec::new() };
    let refused = agent.vms.reclaim(reclaim).await.unwrap_err();
    assert!(refused.code == ErrorCode::FailedPrecondition && refused.message.contains(&vm.to_string()), "{refused}");
    assert!(host.vm_dir(vm).join("root.qcow2").exists() || host.vm_dir(vm).join("root.img").exists());
    drop(agent);

    std::fs::write(&file, &whole).unwrap();
    let agent = host.agent();
    assert_eq!(agent.seen(vm).unwrap().state, HostVmState::Ready, "mended, it is as it was");
    drop(agent);

    std::fs::write(&file, b"{}").unwrap();
    let agent = host.agent();
    agent.remove(vm, 2).await.unwrap();
    assert!(!host.vm_dir(vm).exists());
    assert_eq!(vmms(host.dir.path()), [0; 0]);
    host.no_vms_taps().await;
}

/// Packs the machine's kernel for guests as its distribution ships it.
fn package(path: &std::path::Path) {
    let from = |name: &str| std::path::PathBuf::from(std::env::var_os(name).unwrap());
    let (kernel, modules) = (from("WARREN_KERNEL"), from("WARREN_KERNEL_MODULES"));
    let mut archive = tar::Builder::new(zstd::Encoder::new(Vec::new(), 1).unwrap());
    archive.append_path_with_name(&kernel, "./boot/vmlinuz-6.1").unwrap();
    let release = std::path::Path::new("./lib/modules").join(modules.file_name().unwrap());
    archive.append_dir_all(release, &modules).unwrap();
    let data = archive.into_inner().unwrap().finish().unwrap();
    let mut package = ar::Builder::new(std::fs::File::create(path).unwrap());
    package.append(&ar::Header::new(b"data.tar.zst".to_vec(), data.len() as u64), &data[..]).unwrap();
}

/// The size of the guest's root filesystem, a little less than its disk's.
async fn size_kib(agent: &Agent, vm: VmId) -> u64 {
    let seen = agent.shell(vm, "set -- $(df -k / | tail -n 1); echo size=$2=").await;
    let size = seen.split("size=").nth(1).and_then(|rest| rest.split('=').next());
    size.and_then(|size| size.parse().ok()).unwrap_or_else(|| panic!("df says {seen}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_disk_with_a_kernel_by_name_grows_under_its_guest() {
    let Some(mut host) = Host::new("grow").await else { return };
    host.disk = "copy".parse().unwrap();
    let kernel = host.dir.path().join("other-kernels/6.1-copy");
    std::fs::create_dir_all(&kernel).unwrap();
    package(&kernel.join("linux-image.deb"));

    let agent = host.agent();
    let mut spec = host.spec(2);
    let vm = spec.id;
    spec.features.kernel = Some("6.12".parse().unwrap());
    let refused = agent.provision(&spec, 1).await.unwrap_err();
    assert!(refused.message.contains("no kernel 6.12") && refused.hint.unwrap().contains("6.1-copy"));
    spec.features.kernel = Some("6.1-copy".parse().unwrap());
    agent.provision(&spec, 1).await.unwrap();
    agent.boot(vm, 1).await.unwrap();
    agent.ready(vm, 1).await;
    let disk = host.vm_dir(vm).join("root.img");
    assert!(disk.exists(), "a copy is a raw disk");

    let adjusted = agent.adjust(&spec, 2, MebiBytes(640)).await.unwrap();
    assert_eq!(adjusted, Adjusted { disk: Some(MebiBytes(640)), warnings: vec![] });
    assert_eq!(std::fs::metadata(&disk).unwrap().len(), 640 << 20);
    assert!(size_kib(&agent, vm).await > 560 << 10);
    agent.shell(vm, "dd if=/dev/zero of=/fill bs=1M count=300 && sync").await;

    // Asked for less, as when the change is taken back: it stays as large as it is, also when the VM starts again.
    let adjusted = agent.adjust(&spec, 3, MebiBytes(128)).await.unwrap();
    assert_eq!(adjusted.disk, Some(MebiBytes(640)));
    agent.stop(vm, 4, 10_000).await.unwrap();
    // A disk that is not in use is grown by the next start, and to far more than its image was made for.
    let large = MebiBytes(20 << 10);
    assert_eq!(agent.adjust(&spec, 5, large).await.unwrap().disk, Some(large));
    agent.boot(vm, 6).await.unwrap();
    agent.ready(vm, 6).await;
    assert_eq!(std::fs::metadata(&disk).unwrap().len(), 20 << 30);
    assert!(size_kib(&agent, vm).await > 19 << 20);
    assert!(agent.shell(vm, "ls -s /fill").await.contains("/fill"), "what was written is there");
    agent.remove(vm, 7).await.unwrap();
}
