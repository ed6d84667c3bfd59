//! The world a test's operations act on. Like a host it keeps effects, and refuses a lower epoch than it has seen.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use contract::{ApiError, OperationId};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

/// The steps of a story, in order.
pub const STEPS: [&str; 3] = ["a", "b", "c"];

/// Where something other than plain success is to happen: before or after a step's effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum At {
    Before,
    After,
}

/// What is to happen there, once.
#[derive(Clone, Debug)]
pub enum Deed {
    /// The step fails for good.
    Fail,
    /// The step fails and may be tried again.
    Retry,
    /// The step panics.
    Panic,
    /// The step waits for a permit of this gate.
    Wait(Arc<Semaphore>),
}

impl Deed {
    /// A gate that is shut.
    pub fn gate() -> (Arc<Semaphore>, Self) {
        let gate = Arc::new(Semaphore::new(0));
        (gate.clone(), Self::Wait(gate))
    }
}

type Place = (&'static str, &'static str, At);

#[derive(Default)]
struct Inner {
    log: Vec<String>,
    plan: HashMap<Place, VecDeque<Deed>>,
    always: HashMap<Place, Deed>,
    effects: BTreeMap<(OperationId, &'static str), u32>,
    epochs: HashMap<String, i64>,
    inside: BTreeSet<String>,
    overlaps: usize,
    most_inside: usize,
}

/// Shared by all engines of a test.
#[derive(Clone, Default)]
pub struct World(Arc<Mutex<Inner>>);

impl World {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// Plans something for the next time a step (`run`) or its undo (`undo`) passes that place.
    pub fn plan(&self, step: &'static str, way: &'static str, at: At, deed: Deed) {
        self.lock().plan.entry((step, way, at)).or_default().push_back(deed);
    }

    /// Whether all that was planned with [`World::plan`] has been met.
    #[allow(dead_code, reason = "each test file uses its part")]
    pub fn is_met(&self) -> bool {
        self.lock().plan.values().all(|deeds| deeds.is_empty())
    }

    /// Plans something for every time, until [`World::heal`].
    pub fn always(&self, step: &'static str, way: &'static str, at: At, deed: Deed) {
        self.lock().always.insert((step, way, at), deed);
    }

    pub fn heal(&self) {
        self.lock().always.clear();
    }

    /// What was done, as `a/run@1` with the epoch.
    pub fn log(&self) -> Vec<String> {
        self.lock().log.clone()
    }

    pub fn count(&self, entry: &str) -> usize {
        self.lock().log.iter().filter(|line| *line == entry).count()
    }

    /// Effects that stand.
    pub fn effects(&self, id: OperationId) -> Vec<&'static str> {
        self.lock().effects.keys().filter(|(of, _)| *of == id).map(|(_, step)| *step).collect()
    }

    /// How often each effect of an operation was made.
    pub fn times(&self, id: OperationId) -> Vec<u32> {
        self.lock().effects.iter().filter(|((of, _), _)| *of == id).map(|(_, times)| *times).collect()
    }

    /// How often two operations were inside a step on one resource at one time.
    pub fn overlaps(&self) -> usize {
        self.lock().overlaps
    }

    /// The most operations that were inside a step at one time.
    pub fn most_inside(&self) -> usize {
        self.lock().most_inside
    }

    async fn pass(&self, step: &'static str, way: &'static str, at: At) -> Result<(), StepError> {
        let deed = {
            let mut inner = self.lock();
            let place = (step, way, at);
            let planned = inner.plan.get_mut(&place).and_then(VecDeque::pop_front);
            planned.or_else(|| inner.always.get(&place).cloned())
        };
        match deed {
            None => Ok(()),
            Some(Deed::Fail) => Err(StepError::permanent(ApiError::failed_precondition("told to fail by \0\x1b[2J"))),
            Some(Deed::Retry) => Err(StepError::retry(ApiError::unavailable("told to retry"))),
            Some(Deed::Panic) => panic!("told to panic"),
            Some(Deed::Wait(gate)) => {
                gate.acquire().await.expect("gates stay").forget();
                Ok(())
            }
        }
    }

    /// As a host does: a command under a lower epoch than seen is refused.
    fn command(&self, cx: &Context, resource: &str, step: &'static str, way: &'static str) -> Result<(), StepError> {
        let mut inner = self.lock();
        let highest = inner.epochs.entry(resource.to_owned()).or_default();
        if cx.epoch() < *highest {
            let refused = format!("{step}/{way}@{} refused", cx.epoch());
            inner.log.push(refused);
            return Err(StepError::permanent(ApiError::aborted("a newer worker has it")));
        }
        *highest = cx.epoch();
        inner.log.push(format!("{step}/{way}@{}", cx.epoch()));
        match way {
            "run" => *inner.effects.entry((cx.operation(), step)).or_default() += 1,
            _ => drop(inner.effects.remove(&(cx.operation(), step))),
        }
        Ok(())
    }

    fn enter(&self, resource: &str) -> Inside<'_> {
        let mut inner = self.lock();
        if !inner.inside.insert(resource.to_owned()) {
            inner.overlaps += 1;
        }
        inner.most_inside = inner.most_inside.max(inner.inside.len());
        Inside(self, resource.to_owned())
    }
}

struct Inside<'a>(&'a World, String);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.lock().inside.remove(&self.1);
    }
}

/// A kind of three steps.
pub struct Story(pub World);

/// What the steps leave in the journal: their names, in order.
#[derive(Default, Serialize, Deserialize)]
pub struct Told(Vec<String>);

impl Kind for Story {
    const NAME: &'static str = "test.story";
    type Request = Value;
    type Journal = Told;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        STEPS.iter().map(|name| Box::new(Chapter(name)) as Box<dyn Step<Self>>).collect()
    }

    fn result(&self, _request: &Value, journal: &Told) -> Value {
        json!(journal.0)
    }
}

struct Chapter(&'static str);

#[async_trait]
impl Step<Story> for Chapter {
    fn name(&self) -> &'static str {
        self.0
    }

    async fn run(&self, cx: &Context, story: &Story, request: &Value, journal: &mut Told) -> Result<(), StepError> {
        let resource = resource(cx, request);
        let _inside = story.0.enter(&resource);
        story.0.pass(self.0, "run", At::Before).await?;
        story.0.command(cx, &resource, self.0, "run")?;
        story.0.pass(self.0, "run", At::After).await?;
        journal.0.push(self.0.to_owned());
        Ok(())
    }

    async fn undo(&self, cx: &Context, story: &Story, request: &Value, _journal: &Told) -> Result<(), StepError> {
        let resource = resource(cx, request);
        story.0.pass(self.0, "undo", At::Before).await?;
        story.0.command(cx, &resource, self.0, "undo")?;
        story.0.pass(self.0, "undo", At::After).await
    }
}

/// The resource as a host knows it; requests name it where it matters.
fn resource(cx: &Context, request: &Value) -> String {
    request.get("resource").and_then(Value::as_str).map_or_else(|| cx.operation().to_string(), str::to_owned)
}
