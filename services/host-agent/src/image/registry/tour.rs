//! A **tour**: in which order endpoints are asked for one thing, after what pauses, and when to give up.
//!
//! Mirrors come in the order they were named and the registry itself comes last. Who cannot have it is not asked again; after the
//! last one the tour begins anew, later each time.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use contract::ApiError;

use super::answer::{Failure, Remedy};

/// How often a tour begins anew without having got anywhere.
const ROUNDS: usize = 5;
/// The pause before the second round; it doubles, with some chance in it so that hosts do not come back all at once.
const PAUSE: Duration = Duration::from_millis(200);
/// The longest pause of our own.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long a registry can make a pull wait by `Retry-After`: more than the usual minute's limit asks for is cut.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// Whom to ask.
#[derive(Debug)]
pub(in crate::image) struct Tour {
    /// Whether each endpoint may still have it.
    fit: Vec<bool>,
    at: usize,
    pauses: ExponentialBackoff,
    /// What is told in the end: the failure of whoever stands last in the order, which is the registry itself.
    told: Option<(usize, ApiError)>,
}

fn pauses() -> ExponentialBackoff {
    let builder = ExponentialBuilder::default().with_min_delay(PAUSE).with_max_delay(PAUSE_MAX).with_jitter();
    builder.with_max_times(ROUNDS - 1).build()
}

impl Tour {
    /// Of a single endpoint.
    pub(super) fn of_one() -> Self {
        Self { fit: vec![true], at: 0, pauses: pauses(), told: None }
    }

    /// Of endpoints of which some are known not to help; none that is left is `None`.
    pub(super) fn new(fit: Vec<bool>) -> Option<Self> {
        let at = fit.iter().position(|fit| *fit)?;
        Some(Self { fit, at, pauses: pauses(), told: None })
    }

    /// The endpoint to ask now.
    pub(in crate::image) fn at(&self) -> usize {
        self.at
    }

    /// What to do after a failure: how long to pause before asking [`Tour::at`].
    ///
    /// # Errors
    /// Nobody is left, or it was tried often enough.
    pub(in crate::image) fn failed(&mut self, failure: Failure, progressed: bool) -> Result<Duration, ApiError> {
        tracing::debug!(endpoint = self.at, error = %failure.error, "a registry did not give it");
        let Failure { error, remedy } = failure;
        if self.told.as_ref().is_none_or(|(from, _)| self.at >= *from) {
            self.told = Some((self.at, (*error).clone()));
        }
        let asked = match remedy {
            Remedy::Again(after) => after.map(|after| after.min(RETRY_AFTER_MAX)).unwrap_or_default(),
            Remedy::Elsewhere => {
                self.fit[self.at] = false;
                Duration::ZERO
            }
        };
        if progressed && self.fit[self.at] {
            self.pauses = pauses();
            return Ok(self.pauses.next().unwrap_or(PAUSE).max(asked));
        }
        if let Some(next) = (self.at + 1..self.fit.len()).find(|next| self.fit[*next]) {
            self.at = next;
            return Ok(Duration::ZERO);
        }
        let end = || self.told.clone().map_or(*error, |(_, told)| told);
        let Some(first) = self.fit.iter().position(|fit| *fit) else { return Err(end()) };
        match self.pauses.next() {
            Some(pause) => {
                self.at = first;
                Ok(pause.max(asked))
            }
            None => Err(end()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again(after: Option<u64>) -> Failure {
        Failure {
            error: Box::new(ApiError::unavailable("busy")),
            remedy: Remedy::Again(after.map(Duration::from_secs)),
        }
    }

    fn elsewhere() -> Failure {
        Failure::elsewhere(ApiError::not_found("not here"))
    }

    #[test]
    fn mirrors_come_in_order_and_the_registry_last() {
        let mut tour = Tour::new(vec![true; 3]).unwrap();
        assert_eq!(tour.at(), 0);
        assert_eq!(tour.failed(elsewhere(), false).unwrap(), Duration::ZERO);
        assert_eq!(tour.at(), 1);
        assert_eq!(tour.failed(again(None), false).unwrap(), Duration::ZERO);
        assert_eq!(tour.at(), 2);
        assert!(tour.failed(again(None), false).unwrap() >= PAUSE);
        assert_eq!(tour.at(), 1, "the first one does not have it");
        // What the registry says counts, not what a mirror said.
        tour.failed(elsewhere(), false).unwrap();
        assert_eq!(tour.failed(elsewhere(), false).unwrap_err(), ApiError::not_found("not here"));
    }

    #[test]
    fn it_ends_where_nothing_comes_and_goes_on_where_something_does() {
        let mut tour = Tour::new(vec![true]).unwrap();
        for _ in 1..ROUNDS {
            tour.failed(again(None), false).unwrap();
        }
        assert!(tour.failed(again(None), false).is_err());
        let mut tour = Tour::new(vec![true]).unwrap();
        for _ in 0..ROUNDS * 10 {
            tour.failed(again(None), true).unwrap();
        }
    }

    #[test]
    fn a_registry_says_when_to_come_back_but_not_next_week() {
        let mut tour = Tour::new(vec![true]).unwrap();
        assert_eq!(tour.failed(again(Some(20)), false).unwrap(), Duration::from_secs(20));
        assert_eq!(tour.failed(again(Some(600_000)), false).unwrap(), RETRY_AFTER_MAX);
        assert!(Tour::new(vec![false]).is_none());
    }
}
