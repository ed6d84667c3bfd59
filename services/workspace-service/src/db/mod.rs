//! SQL of the schema `workspace` (migrations/*__workspace*.sql): rows in, parsed types out.

pub mod pending;
pub mod workspace;
