//! Stories of images made of VMs.

use contract::agent::{DiscardRequest, StageSource, StagedImage};

use super::*;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJk5hJv8rEx3l2Qm0kTkq3zN0a0y8mX0kq1l0nB1bZ0a me@example";

impl Agent {
    async fn stage(&self, fence: Fence, vm: VmId, wait_ms: u64) -> StageStatus {
        let images = self.vms.deps().images.clone();
        let source = StageSource::Vm { vm, ssh_keys: vec![KEY.to_owned()], keep_identity: false };
        self.on(async move { images.stage(&StageRequest { fence, source, wait_ms }).await.unwrap() }).await
    }

    /// Promotes a VM to an image of that id.
    async fn promote(&self, vm: VmId, image: ImageId) -> Result<StagedImage, ApiError> {
        let fence = fence(1);
        match self.stage(fence, vm, 120_000).await {
            StageStatus::Done { .. } => {}
            StageStatus::Failed { error } => return Err(error),
            StageStatus::Running { phase, .. } => panic!("still {phase}"),
        }
        let images = self.vms.deps().images.clone();
        self.on(async move { images.publish(&PublishRequest { fence, image }).await }).await
    }

    /// A VM that has lived: with work of its own, an identity, and a deleted secret.
    async fn lived(&self, spec: &VmSpec) {
        self.provision(spec, 1).await.unwrap();
        self.boot(spec.id, 1).await.unwrap();
        assert_eq!(self.ready(spec.id, 1).await.state, HostVmState::Ready);
        let script = "mkdir -p /etc/ssh /var/lib/dhcp && echo work > /root/work && echo 0123 > /etc/machine-id && \
             echo HOST-KEY > /etc/ssh/ssh_host_ed25519_key && echo lease > /var/lib/dhcp/dhclient.leases && \
             yes DELETED-SECRET | head -n 100000 > /secret && sync && rm /secret && sync && echo lived";
        assert!(self.shell(spec.id, script).await.contains("lived"));
    }
}

/// What an image's own files say of a promotion.
fn assert_promoted(host: &Host, image: ImageId, staged: &StagedImage) {
    let rootfs = host.dir.path().join("images").join(image.to_string()).join("rootfs.ext4");
    assert_eq!(std::fs::metadata(&rootfs).unwrap().len(), staged.rootfs_bytes);
    let checked = std::process::Command::new("e2fsck").args(["-f", "-n"]).arg(&rootfs).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    let bytes = std::fs::read(&rootfs).unwrap();
    for gone in ["DELETED-SECRET", "HOST-KEY"] {
        assert!(memchr::memmem::find(&bytes, gone.as_bytes()).is_none(), "{gone} is still there");
    }
    assert_eq!(std::fs::read_dir(host.dir.path().join("staging")).unwrap().count(), 0);
}

/// Boots a VM of the image, with a larger disk, and looks at what is in it.
async fn assert_boots(host: &Host, agent: &Agent, image: ImageId, n: u8) {
    let spec = VmSpec { image, disk: MebiBytes(700), ..host.spec(n) };
    agent.provision(&spec, 1).await.unwrap();
    agent.boot(spec.id, 1).await.unwrap();
    assert_eq!(agent.ready(spec.id, 1).await.state, HostVmState::Ready);
    let script = "cat /root/work /root/.ssh/authorized_keys; echo id=$(cat /etc/machine-id)=; ls /etc/ssh /var/lib/dhcp; \
         set -- $(df -k / | tail -n 1); echo size=$2=; cat /etc/hostname";
    let seen = agent.shell(spec.id, script).await;
    assert!(seen.contains("work") && seen.contains(KEY) && seen.contains("id=="), "{seen}");
    assert!(!seen.contains("ssh_host") && !seen.contains("leases"), "{seen}");
    assert!(seen.contains(spec.name.as_str()), "{seen}");
    let kib: u64 = seen.split("size=").nth(1).unwrap().split('=').next().unwrap().parse().unwrap();
    assert!(kib > 600 << 10, "it grows to its disk: {seen}");
    agent.remove(spec.id, 2).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_vm_becomes_an_image_that_boots() {
    for disk in ["auto", "copy"] {
        let Some(mut host) = Host::new("promote").await else { return };
        host.disk = disk.parse().unwrap();
        let agent = host.agent();
        let spec = VmSpec { disk: MebiBytes(512), ..host.spec(2) };
        agent.lived(&spec).await;
        agent.stop(spec.id, 2, 10_000).await.unwrap();
        let image = ImageId::new();
        let staged = agent.promote(spec.id, image).await.unwrap();
        assert!(staged.rootfs_bytes < 300 << 20, "{staged:?}");
        assert_eq!(staged.config.env, ["PATH=/bin"], "what its image's author asked for stays");
        assert_promoted(&host, image, &staged);
        // Nothing ties the image to the VM.
        let again = agent.promote(spec.id, ImageId::new()).await.unwrap();
        assert_eq!(again.digest, staged.digest, "the same disk is the same image");
        agent.remove(spec.id, 3).await.unwrap();
        assert_boots(&host, &agent, image, 3).await;
        drop(agent);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_that_is_cut_off_leaves_nothing_and_goes_on_elsewhere() {
    let Some(host) = Host::new("cutoff").await else { return };
    let agent = host.agent();
    let spec = host.spec(2);
    agent.provision(&spec, 1).await.unwrap();
    let staging = || std::fs::read_dir(host.dir.path().join("staging")).unwrap().count();
    let missing = agent.promote(VmId::new(), ImageId::new()).await.unwrap_err();
    assert_eq!((missing.code, staging()), (ErrorCode::NotFound, 0));

    // The agent dies before anybody has seen the end; the next one finds it.
    let fence = Fence { operation: OperationId::new(), epoch: 1 };
    assert!(matches!(agent.stage(fence, spec.id, 0).await, StageStatus::Running { .. }));
    let StageStatus::Done { image } = agent.stage(fence, spec.id, 120_000).await else { panic!("it is not staged") };
    drop(agent);
    let agent = host.agent();
    assert_eq!(agent.stage(fence, spec.id, 0).await, StageStatus::Done { image });
    let images = agent.vms.deps().images.clone();
    agent.on(async move { images.discard(&DiscardRequest { fence }).await.unwrap() }).await;
    assert_eq!(staging(), 0);

    // Discarded in the middle, and the VM deleted in the middle: it is gone, or its disk was copied already.
    let fence = Fence { operation: OperationId::new(), epoch: 1 };
    agent.stage(fence, spec.id, 5).await;
    let images = agent.vms.deps().images.clone();
    agent.on(async move { images.discard(&DiscardRequest { fence }).await.unwrap() }).await;
    assert_eq!(staging(), 0);
    let fence = Fence { operation: OperationId::new(), epoch: 1 };
    agent.stage(fence, spec.id, 0).await;
    agent.remove(spec.id, 2).await.unwrap();
    match agent.stage(fence, spec.id, 120_000).await {
        StageStatus::Done { .. } => assert_eq!(staging(), 1),
        StageStatus::Failed { error } => assert_eq!((error.code, staging()), (ErrorCode::NotFound, 0)),
        StageStatus::Running { phase, .. } => panic!("still {phase}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_vm_becomes_an_image_and_runs_on() {
    let Some(host) = Host::new("frozen").await else { return };
    let agent = host.agent();
    let spec = VmSpec { disk: MebiBytes(512), ..host.spec(2) };
    let vm = spec.id;
    agent.lived(&spec).await;
    // Somebody writes all the time, and what is written first is there first.
    let writer =
        "(n=0; while :; do n=$((n+1)); echo $n > /root/a; echo $n > /root/b; done) >/dev/null 2>&1 & echo begun";
    assert!(agent.shell(vm, writer).await.contains("begun"));
    let image = ImageId::new();
    let staged = agent.promote(vm, image).await.unwrap();
    assert_promoted(&host, image, &staged);
    assert!(agent.shell(vm, "echo on > /root/on && sync && cat /root/on").await.contains("on"));
    assert_boots(&host, &agent, image, 3).await;

    let (vms, pause) = (agent.vms.clone(), command(vm, 2));
    agent.on(async move { vms.pause(pause, true).await.unwrap() }).await;
    let refused = agent.promote(vm, ImageId::new()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::FailedPrecondition);
    assert!(refused.message.contains("paused") && refused.hint.unwrap().contains("warren vm stop vm2"));
    agent.remove(vm, 3).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_guest_thaws_when_it_is_told_when_nobody_is_left_and_by_itself() {
    let Some(host) = Host::new("thaw").await else { return };
    let agent = host.agent();
    let spec = host.spec(2);
    let vm = spec.id;
    agent.provision(&spec, 1).await.unwrap();
    agent.boot(vm, 1).await.unwrap();
    agent.ready(vm, 1).await;
    let freeze = async |seconds| {
        let vms = agent.vms.clone();
        agent.on(async move { vms.guest(vm).unwrap().0.freeze(seconds).await }).await
    };
    let write = async || {
        let began = std::time::Instant::now();
        assert!(agent.shell(vm, "echo x > /root/x && sync && echo written").await.contains("written"));
        began.elapsed()
    };
    // Told: nothing is written until then.
    let frozen = freeze(50).await.unwrap();
    assert_eq!(freeze(50).await.unwrap_err().code, ErrorCode::Busy);
    let thaw = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        agent.on(frozen.thaw()).await
    };
    let (took, thawed) = tokio::join!(write(), thaw);
    thawed.unwrap();
    assert!(took > Duration::from_secs(2), "{took:?}");
    // By itself, and it says so.
    let frozen = freeze(4).await.unwrap();
    assert!(write().await > Duration::from_secs(2));
    assert_eq!(agent.on(frozen.thaw()).await.unwrap_err().code, ErrorCode::Aborted);
    // Nobody is left: whoever froze it is gone, or the whole agent.
    drop(freeze(50).await.unwrap());
    assert!(write().await < Duration::from_secs(40));
    let frozen = freeze(50).await.unwrap();
    drop(agent);
    drop(frozen);
    let agent = host.agent();
    let began = std::time::Instant::now();
    assert!(agent.shell(vm, "echo y > /root/y && sync && echo written").await.contains("written"));
    assert!(began.elapsed() < Duration::from_secs(55));
    agent.remove(vm, 2).await.unwrap();
}
