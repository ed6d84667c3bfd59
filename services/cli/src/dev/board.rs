//! The board: what a supervisor says of its lab, in a file that outlives it. The next one finds there what the last
//! one left running.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use contract::ApiError;
use serde::{Deserialize, Serialize};

use super::{
    layout::{self, Layout},
    process::ProcessId,
};

/// Where a lab stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// Starting; `doing` says what.
    Starting {
        /// In words.
        doing: String,
    },
    /// Everything was started.
    Running,
    /// Ending; `doing` says what.
    Stopping {
        /// In words.
        doing: String,
    },
    /// Ended as asked.
    Stopped,
    /// Given up.
    Failed {
        /// Why.
        why: String,
    },
}

/// One process of the lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The process, while it runs.
    pub process: Option<ProcessId>,
    /// How often it died and was started again.
    pub restarts: u32,
    /// How it ended last.
    pub last_end: Option<String>,
}

/// What the file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The supervisor.
    pub supervisor: ProcessId,
    /// Where the lab stands.
    pub state: Phase,
    /// Its processes by name.
    pub processes: BTreeMap<String, Row>,
}

impl Content {
    /// Reads the board; nothing where there is none.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(layout: &Layout) -> Result<Option<Self>, ApiError> {
        let path = layout.board();
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| ApiError::failed_precondition(format!("{} cannot be read: {error}", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(layout::at(&path, "read", &error)),
        }
    }

    /// The processes that live.
    pub fn living(&self) -> Vec<(&str, &ProcessId)> {
        let rows = self.processes.iter().filter_map(|(name, row)| Some((name.as_str(), row.process.as_ref()?)));
        rows.filter(|(_, process)| process.alive()).collect()
    }
}

/// The supervisor's own handle; clones share it.
#[derive(Clone, Debug)]
pub struct Board {
    layout: Layout,
    content: Arc<Mutex<Content>>,
}

impl Board {
    /// A fresh board.
    pub fn new(layout: Layout, supervisor: ProcessId) -> Self {
        let state = Phase::Starting { doing: "beginning".to_owned() };
        let content = Content { supervisor, state, processes: BTreeMap::new() };
        Self { layout, content: Arc::new(Mutex::new(content)) }
    }

    /// Changes the board and writes it down. A full disk is logged and costs the file's freshness only.
    pub fn change(&self, change: impl FnOnce(&mut Content)) {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut content);
        let written = serde_json::to_vec_pretty(&*content)
            .map_err(io::Error::other)
            .and_then(|bytes| layout::write_atomically(&self.layout.board(), &bytes, 0o600));
        if let Err(error) = written {
            tracing::error!(%error, "the lab's status cannot be written");
        }
    }

    /// Says where the lab stands.
    pub fn phase(&self, state: Phase) {
        tracing::info!(?state, "lab");
        self.change(|content| content.state = state);
    }

    /// Says what the lab is doing while it starts.
    pub fn starting(&self, doing: impl Into<String>) {
        self.phase(Phase::Starting { doing: doing.into() });
    }

    /// Says what the lab is doing while it ends.
    pub fn stopping(&self, doing: impl Into<String>) {
        self.phase(Phase::Stopping { doing: doing.into() });
    }

    /// The row of one process.
    pub fn row(&self, name: &str, change: impl FnOnce(&mut Row)) {
        self.change(|content| {
            let row = content.processes.entry(name.to_owned());
            change(row.or_insert(Row { process: None, restarts: 0, last_end: None }));
        });
    }
}
