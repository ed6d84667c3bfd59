//! **Lines** of those who want the same thing, of whom one has it at a time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::OwnedMutexGuard;

/// All lines, by what is wanted. Nobody who has what he waited for waits for another line, so no two wait for each other.
#[derive(Debug, Default)]
pub struct Lines(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Lines {
    /// Waits until all who came before are done. What this gives is to be held as long as others shall wait.
    pub async fn first(&self, wanted: &str) -> OwnedMutexGuard<()> {
        let line = {
            let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            lines.retain(|_, line| line.strong_count() > 0);
            let line = lines.get(wanted).and_then(Weak::upgrade).unwrap_or_default();
            lines.insert(wanted.to_owned(), Arc::downgrade(&line));
            line
        };
        line.lock_owned().await
    }
}
