//! The rounds: look, ask, tell, save.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use contract::{
    VmId,
    agent::HostVmState,
    deadline,
    idle::{Activity, ActivityRequest, Idleness},
};
use futures::{StreamExt, stream};

use super::{LOOK, Look, Track, saved};
use crate::{
    registration::Registration,
    vm::{Vms, now_ms},
};

/// How often what is known is saved: what a killed agent forgets.
const SAVE: Duration = Duration::from_secs(10);
/// How many guests are asked at once.
const AT_ONCE: usize = 16;
/// How long a guest may take to say who is logged in; one that does not answer has nobody whom that would disturb.
const ANSWER: Duration = Duration::from_secs(3);

/// Watches over the VMs' activity, for ever.
pub async fn run(registration: Registration) {
    let vms = registration.vms.clone();
    let dir = vms.deps().state_dir.clone();
    let mut tracks = tokio::task::spawn_blocking(move || saved::load(&dir)).await.unwrap_or_default();
    let mut limited = HashSet::new();
    let (mut told, mut kept) = (Instant::now(), Instant::now());
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let running = look(&vms, &mut tracks).await;
        if told.elapsed() + Duration::from_millis(100) >= deadline::ACTIVITY {
            ask(&vms, &mut tracks, &running, &limited).await;
            told = Instant::now();
            let now = now_ms();
            let idle = |vm: &VmId| Idleness { vm: *vm, idle_ms: now.saturating_sub(tracks[vm].active_at_ms()) };
            let request = ActivityRequest {
                host: registration.config.host.clone(),
                incarnation: registration.incarnation,
                vms: running.iter().filter(|vm| tracks.contains_key(vm)).map(idle).collect(),
            };
            match registration.bus.call::<Activity>(&request).await {
                Ok(reply) => limited = reply.limited.into_iter().collect(),
                // Nobody is idle on account of what was not heard; the next report says it anew.
                Err(error) => tracing::debug!(%error, "how long VMs are idle was not heard"),
            }
        }
        if kept.elapsed() >= SAVE {
            kept = Instant::now();
            let (dir, tracks) = (vms.deps().state_dir.clone(), tracks.clone());
            if let Ok(Err(error)) = tokio::task::spawn_blocking(move || saved::save(&dir, &tracks)).await {
                tracing::warn!(%error, "how long VMs are idle is not saved");
            }
        }
    }
}

/// Looks at every VM; those whose guests run.
async fn look(vms: &Arc<Vms>, tracks: &mut HashMap<VmId, Track>) -> Vec<VmId> {
    let here = vms.clone();
    let looked = tokio::task::spawn_blocking(move || {
        let (subjects, deps) = (here.subjects(), here.deps());
        let taps = deps.lab.traffic().unwrap_or_default();
        let look = |(subject, state): (crate::usage::Subject, HostVmState)| {
            let counters = subject.counters(deps.cgroups.as_ref(), &taps)?;
            Some((subject.vm, state, Look::new(now_ms(), &counters)))
        };
        subjects.into_iter().filter_map(look).collect::<Vec<_>>()
    });
    let Ok(looked) = looked.await else { return Vec::new() };
    let here: HashSet<VmId> = looked.iter().map(|(vm, ..)| *vm).collect();
    tracks.retain(|vm, _| here.contains(vm));
    vms.retain_sessions(|vm| here.contains(&vm));
    let mut running = Vec::new();
    for (vm, state, look) in looked {
        let track = tracks.entry(vm).or_insert_with(|| Track::new(look));
        track.look(look);
        match state {
            HostVmState::Ready => running.push(vm),
            // One that boots is in use, one that is paused will be once it goes on; what a boot takes is not held against it.
            _ => *track = Track::new(look),
        }
        track.used(vms.used_at(vm, look.at_ms));
    }
    running
}

/// Asks the guests of VMs that have a limit and look idle who is logged in.
async fn ask(vms: &Arc<Vms>, tracks: &mut HashMap<VmId, Track>, running: &[VmId], limited: &HashSet<VmId>) {
    let now = now_ms();
    let idle = |vm: &&VmId| limited.contains(vm) && tracks.get(vm).is_some_and(|track| track.active_at_ms() < now - 1);
    let asked = running.iter().filter(idle).copied().collect::<Vec<_>>();
    let answers = stream::iter(asked).map(|vm| async move {
        let (guest, _) = vms.guest(vm).ok()?;
        // A guest that cannot tell, as it was booted by an older one or is busy, may well be used.
        let asked = tokio::time::timeout(ANSWER, guest.sessions()).await;
        (!matches!(asked, Ok(Ok(0)))).then_some(vm)
    });
    let used: Vec<VmId> = answers.buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await;
    for vm in used {
        if let Some(track) = tracks.get_mut(&vm) {
            track.used(now);
        }
    }
}
