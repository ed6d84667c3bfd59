//! A process started for somebody outside: what to run, as whom and where ([`Launch`]), and the running thing ([`Job`]).

mod cgroup;
mod control;
mod job;
mod launch;
mod pty;
pub mod user;

pub use cgroup::Cgroups;
pub use control::Control;
pub use job::{Input, Job, Output};
pub use launch::{DEFAULT_PATH, Environment, Launch, LaunchError, Program};
pub use pty::Terminal;
