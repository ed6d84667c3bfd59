//! **Columns** that hold more than SQL's types say.

use tokio_postgres::Row;

use crate::StoreError;

/// A text column that its service wrote after parsing it.
///
/// # Errors
/// It cannot be read, or parsed: somebody else wrote it.
pub fn parsed<T>(row: &Row, column: &str) -> Result<T, StoreError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    let text: String = row.try_get(column)?;
    text.parse().map_err(|error| StoreError::Schema(format!("column {column} holds {text:?}: {error}")))
}
