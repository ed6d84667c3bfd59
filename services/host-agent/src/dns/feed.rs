//! The feed: brings the zone what vm-lifecycle knows. One task asks, one question at a time, so that replies come in the order of
//! their questions and a flood of misses is never more than one message on the bus: what waits meanwhile is asked together.
//!
//! It asks for all names every quarter of the time addresses rest, and again whenever events may have been missed; for one VM when an
//! event tells that its name, address or existence changed (events are only nudges: what they say may be older than what is
//! known); and for what somebody asks here and is not known well enough.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bus::{Bus, CallOptions};
use contract::{
    ApiError, VmId,
    dns::{ListNames, NamedVm, Names, NamesRequest, PAGE_MAX, RESOLVE_MAX, Resolve, ResolveRequest},
};
use futures::StreamExt;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{sleep, sleep_until, timeout},
};

use super::{
    Shared,
    zone::{Key, now},
};

/// How many questions wait for the one in hand; more are told that nobody knows.
const WAITING: usize = 2048;
/// How long vm-lifecycle may take for one question. A stub resolver asks again after 5 s (resolv.conf(5)).
const ASK: Duration = Duration::from_millis(1500);
/// How long an asker waits for an answer: for the question in hand, and for its own.
const ANSWER: Duration = Duration::from_millis(3000);
/// How often all names are asked for: a quarter of the time addresses rest, within these.
const EVERY: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(15);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// What happens to VMs.
const EVENTS: &str = "warren.event.vm.>";
/// Events that leave name and address as they are.
const UNRELATED: [&str; 4] = ["running", "paused", "stopped", "failed"];

/// Nobody could tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nobody;

struct Question {
    key: Key,
    answer: Option<oneshot::Sender<Result<Option<NamedVm>, Nobody>>>,
}

/// Asks for what the zone does not know.
#[derive(Clone, Debug)]
pub struct Asker(mpsc::Sender<Question>);

impl Asker {
    /// Who that is, as of now at the earliest.
    ///
    /// # Errors
    /// vm-lifecycle could not be asked in time.
    pub async fn ask(&self, key: Key) -> Result<Option<NamedVm>, Nobody> {
        let (answer, answered) = oneshot::channel();
        self.0.try_send(Question { key, answer: Some(answer) }).map_err(|_| Nobody)?;
        match timeout(ANSWER, answered).await {
            Ok(Ok(outcome)) => outcome,
            _ => Err(Nobody),
        }
    }
}

/// The task that asks.
pub struct Feed {
    bus: Bus,
    shared: Arc<Shared>,
    questions: mpsc::Receiver<Question>,
    /// Where the next page begins.
    after: Option<VmId>,
    /// When the pages in hand began.
    began: Duration,
    complained: bool,
}

impl Feed {
    /// A feed of that zone, and how to ask it.
    pub fn new(bus: Bus, shared: Arc<Shared>) -> (Self, Asker) {
        let (sender, questions) = mpsc::channel(WAITING);
        let feed = Self { bus, shared, questions, after: None, began: Duration::ZERO, complained: false };
        (feed, Asker(sender))
    }

    /// Feeds for ever.
    pub async fn run(mut self, asker: Asker) {
        let missed = Arc::new(Notify::new());
        let _events = AbortOnDrop(tokio::spawn(follow(self.bus.clone(), asker, missed.clone())));
        let mut page_at = tokio::time::Instant::now();
        let mut waiting = Vec::new();
        loop {
            // In turns that chance decides, so that neither a flood of questions nor many pages hold up the other.
            tokio::select! {
                count = self.questions.recv_many(&mut waiting, RESOLVE_MAX) => {
                    if count == 0 {
                        return;
                    }
                    self.resolve(std::mem::take(&mut waiting)).await;
                }
                () = sleep_until(page_at) => page_at = tokio::time::Instant::now() + self.page().await,
                () = missed.notified() => {
                    self.after = None;
                    page_at = tokio::time::Instant::now();
                }
            }
        }
    }

    /// Asks for what waits, and answers.
    async fn resolve(&mut self, waiting: Vec<Question>) {
        let mut askers: BTreeMap<Key, Vec<_>> = BTreeMap::new();
        for question in waiting {
            // Who waits no more is not asked for.
            if question.answer.as_ref().is_none_or(|answer| !answer.is_closed()) {
                askers.entry(question.key).or_default().extend(question.answer);
            }
        }
        let mut request = ResolveRequest::default();
        for key in askers.keys().cloned() {
            match key {
                Key::Vm(vm) => request.vms.push(vm),
                Key::Name(name) => request.names.push(name),
                Key::Address(address) => request.addresses.push(address),
            }
        }
        if askers.is_empty() {
            return;
        }
        let asked = now();
        let reply = self.call::<Resolve>(&request).await;
        if let Some(reply) = &reply {
            self.shared.zone().resolved(askers.keys(), reply, asked);
        }
        for (key, askers) in askers {
            let outcome = reply.as_ref().map(|reply| found(reply, &key)).ok_or(Nobody);
            for asker in askers {
                // An asker that waits no more has been told so already.
                drop(asker.send(outcome.clone()));
            }
        }
    }

    /// Asks for the next page; when to ask again.
    async fn page(&mut self) -> Duration {
        let asked = now();
        if self.after.is_none() {
            self.began = asked;
        }
        let request = NamesRequest { limit: PAGE_MAX, after: self.after };
        let Some(reply) = self.call::<ListNames>(&request).await else { return RETRY };
        let last = reply.vms.last().map(|vm| vm.id);
        let mut zone = self.shared.zone();
        zone.page(self.after, &reply, asked);
        self.after = last.filter(|_| reply.more);
        if self.after.is_some() {
            return Duration::ZERO;
        }
        drop(zone);
        self.shared.confirm(self.began);
        (Duration::from_millis(reply.rest_ms) / 4).clamp(*EVERY.start(), *EVERY.end())
    }

    async fn call<V: contract::Verb<Reply = Names>>(&mut self, request: &V::Request) -> Option<Names> {
        let began = Instant::now();
        match self.bus.call_with::<V>(request, CallOptions { timeout: Some(ASK), ..CallOptions::default() }).await {
            Ok(reply) => {
                if std::mem::take(&mut self.complained) {
                    tracing::info!("vm-lifecycle tells the lab's names again");
                }
                Some(reply)
            }
            Err(error) => {
                self.complain(&error, began.elapsed());
                None
            }
        }
    }

    fn complain(&mut self, error: &ApiError, after: Duration) {
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!(%error, after_ms = after.as_millis(), "vm-lifecycle does not tell the lab's names");
        }
    }
}

fn found(reply: &Names, key: &Key) -> Option<NamedVm> {
    let is = |vm: &&NamedVm| match key {
        Key::Vm(id) => vm.id == *id,
        Key::Name(name) => vm.name == *name,
        Key::Address(address) => vm.address == *address,
    };
    reply.vms.iter().find(is).cloned()
}

/// Follows events for ever: each that concerns names is a question, each gap a reason to ask for all.
async fn follow(bus: Bus, asker: Asker, missed: Arc<Notify>) {
    loop {
        match bus.events(EVENTS.to_owned(), None).await {
            Ok((_, mut events)) => {
                // What happened before is in the names that are asked for after this.
                missed.notify_one();
                while let Some(event) = events.next().await {
                    let event = match event {
                        Ok(event) => event,
                        Err(error) => {
                            tracing::debug!(%error, "events were missed");
                            break;
                        }
                    };
                    let Some(vm) = concerned(&event.subject) else { continue };
                    if asker.0.send(Question { key: Key::Vm(vm), answer: None }).await.is_err() {
                        return;
                    }
                }
            }
            // There is no stream before the lab's first event.
            Err(error) => tracing::debug!(%error, "events cannot be followed yet"),
        }
        sleep(RETRY).await;
    }
}

/// The VM whose name, address or existence an event's subject tells of.
fn concerned(subject: &str) -> Option<VmId> {
    let (vm, what) = subject.strip_prefix("warren.event.vm.")?.split_once('.')?;
    if UNRELATED.contains(&what) { None } else { vm.parse().ok() }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_that_may_change_a_name_concern_it() {
        let vm = VmId::new();
        for what in ["reserved", "changed", "deleted", "whatever-comes"] {
            assert_eq!(concerned(&contract::subject::event("vm", vm, what)), Some(vm), "{what}");
        }
        for what in UNRELATED {
            assert_eq!(concerned(&contract::subject::event("vm", vm, what)), None, "{what}");
        }
        assert_eq!(concerned("warren.event.vm.x.reserved"), None);
        assert_eq!(concerned("warren.event.vm"), None);
    }
}
