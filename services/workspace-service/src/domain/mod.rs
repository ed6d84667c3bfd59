//! Pure rules: who may be entered when, what may be run, and how much output one reply holds.

pub mod access;
pub mod command;
pub mod output;
