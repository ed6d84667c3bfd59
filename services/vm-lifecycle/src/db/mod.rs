//! SQL of the schema `vm` (migrations/*__vm*.sql): one file a table or statement, rows in, parsed types out.

pub mod change;
pub mod disk;
pub mod due;
pub mod examine;
pub mod host;
pub mod idle;
pub mod lab;
pub mod lab_reservation;
pub mod names;
pub mod observation;
pub mod reservation;
pub mod vm;

use store::{StoreError, parsed};
use tokio_postgres::Row;

/// The SQLSTATE of a failed statement, and the failure as the database told it.
fn db_error(error: &StoreError) -> Option<&tokio_postgres::error::DbError> {
    let StoreError::Defect(error) = error else { return None };
    error.as_db_error()
}

/// A count or size column, within the range of its type by a CHECK or by whoever wrote it.
fn number(row: &Row, column: &str) -> Result<u32, StoreError> {
    let value: i64 = row.try_get(column)?;
    u32::try_from(value).map_err(|_| StoreError::Schema(format!("column {column} holds {value}")))
}
