//! Configuration: environment variables, read once, all problems reported together.

use std::{fmt::Display, str::FromStr};

/// Collects what is wrong while a configuration is read.
#[derive(Debug, Default)]
pub struct Reader {
    problems: Vec<String>,
}

/// Every problem of a configuration, one a line.
#[derive(Debug, thiserror::Error)]
#[error("the configuration cannot be used:\n  {}", .0.join("\n  "))]
pub struct ConfigError(Vec<String>);

impl Reader {
    /// A reader of this process's environment.
    pub fn new() -> Self {
        Self::default()
    }

    /// The variable's value, parsed; `None` when it is unset or empty.
    pub fn optional<T: FromStr<Err: Display>>(&mut self, variable: &str) -> Option<T> {
        let text = match std::env::var(variable) {
            Ok(text) if !text.is_empty() => text,
            Ok(_) | Err(std::env::VarError::NotPresent) => return None,
            Err(std::env::VarError::NotUnicode(_)) => {
                self.problems.push(format!("{variable} is not UTF-8"));
                return None;
            }
        };
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.problems.push(format!("{variable}: {error}"));
                None
            }
        }
    }

    /// The variable's value, parsed, or `default`.
    pub fn or<T: FromStr<Err: Display>>(&mut self, variable: &str, default: T) -> T {
        self.optional(variable).unwrap_or(default)
    }

    /// The variable's value; its absence is a problem, `meaning` says what it is for.
    pub fn required<T: FromStr<Err: Display>>(&mut self, variable: &str, meaning: &str) -> Option<T> {
        let before = self.problems.len();
        let value = self.optional(variable);
        if value.is_none() && self.problems.len() == before {
            self.problems.push(format!("{variable} is not set: it is {meaning}"));
        }
        value
    }

    /// Adds a problem found by the caller.
    pub fn problem(&mut self, text: impl Into<String>) {
        self.problems.push(text.into());
    }

    /// The configuration `build` makes, or all problems. `build` is called only when there are none, so it
    /// may unwrap what was [`required`](Self::required) with `?`.
    ///
    /// # Errors
    /// Anything was wrong.
    pub fn finish<T>(self, build: impl FnOnce() -> Option<T>) -> Result<T, ConfigError> {
        if !self.problems.is_empty() {
            return Err(ConfigError(self.problems));
        }
        build().ok_or_else(|| ConfigError(vec!["a required value is missing".to_owned()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_are_reported_together() {
        let mut reader = Reader::new();
        let missing: Option<String> = reader.required("WARREN_TEST_UNSET_A", "a test");
        reader.problem("and another");
        let error = reader.finish(|| missing).unwrap_err().to_string();
        assert!(error.contains("WARREN_TEST_UNSET_A is not set: it is a test") && error.contains("and another"));
    }

    #[test]
    fn a_default_stands_in_for_what_is_unset() {
        let mut reader = Reader::new();
        let value = reader.or("WARREN_TEST_UNSET_B", 7);
        assert_eq!(reader.finish(|| Some(value)).unwrap(), 7);
    }
}
