//! Pure rules: who may be entered when, what may be run, how much output one reply holds, where workspaces may be, and what may be
//! put into them.

pub mod access;
pub mod command;
pub mod output;
pub mod place;
pub mod signal;
pub mod source;
