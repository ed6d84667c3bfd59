//! A build's **log** as rows: pieces of text with their offsets. Where the middle of a long one was dropped, rows are missing.

use contract::{OperationId, agent::Fence, image::LOG_MAX};
use store::{Client, GenericClient, StoreError};

use super::claim_holds_in_txn;

/// Whose log, and of which step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The build.
    pub build: OperationId,
    /// The step, from 0.
    pub step: i32,
}

/// What is written to a log.
#[derive(Clone, Copy, Debug)]
pub enum Text<'a> {
    /// What the script printed, from that offset of all it printed on.
    Output(u64, &'a [u8]),
    /// What Warren says; once a step, however often it is said.
    Note(&'a str),
}

/// Appends to the log, and drops of its middle what is too much; whether the claim still holds, without which nothing is written.
///
/// # Errors
/// The database could not.
pub async fn log_append(client: &mut Client, fence: Fence, part: Part, text: Text<'_>) -> Result<bool, StoreError> {
    let (output_at, data) = match text {
        Text::Output(at, data) => (Some(signed(at)), data),
        Text::Note(note) => (None, note.as_bytes()),
    };
    let transaction = client.transaction().await?;
    // One writer at a time has the claim; the sum of what was written is where the next begins.
    let insert = transaction
        .prepare_cached(
            "insert into image.build_log (operation_id, at, step, output_at, data) \
             select $1, coalesce((select l.at + length(l.data) from image.build_log l where l.operation_id = $1 \
                 order by l.at desc limit 1), 0), $2, $3, $4 \
             where $3::bigint is not null or not exists (select from image.build_log n \
                 where n.operation_id = $1 and n.step = $2 and n.output_at is null and n.data = $4) \
             returning at",
        )
        .await?;
    let row = transaction.query_opt(&insert, &[&part.build.0, &part.step, &output_at, &data]).await?;
    if let Some(row) = row {
        let end = row.try_get::<_, i64>(0)?.unsigned_abs() + data.len() as u64;
        if end > LOG_MAX {
            let drop = transaction
                .prepare_cached(
                    "delete from image.build_log where operation_id = $1 and at >= $2 and at + length(data) <= $3",
                )
                .await?;
            let (head, tail) = (signed(LOG_MAX / 2), signed(end - LOG_MAX / 2));
            transaction.execute(&drop, &[&part.build.0, &head, &tail]).await?;
        }
    }
    if !claim_holds_in_txn(&transaction, fence).await? {
        return Ok(false);
    }
    transaction.commit().await.map_err(StoreError::committing)?;
    Ok(true)
}

/// How much of what a step's script printed is in the log, or was.
///
/// # Errors
/// The database could not.
pub async fn log_output_end(client: &impl GenericClient, part: Part) -> Result<u64, StoreError> {
    let statement = client
        .prepare_cached(
            "select coalesce(max(output_at + length(data)), 0) from image.build_log \
             where operation_id = $1 and step = $2 and output_at is not null",
        )
        .await?;
    Ok(client.query_one(&statement, &[&part.build.0, &part.step]).await?.try_get::<_, i64>(0)?.unsigned_abs())
}

/// The last rows of what a step's script printed, at least so many bytes where there are.
///
/// # Errors
/// The database could not.
pub async fn log_tail(client: &impl GenericClient, part: Part, bytes: usize) -> Result<Vec<u8>, StoreError> {
    /// More rows than hold what is asked for: a row is what came within a moment, a line at the least.
    const ROWS: i64 = 64;
    let statement = client
        .prepare_cached(
            "select data from image.build_log where operation_id = $1 and step = $2 and output_at is not null \
             order by at desc limit $3",
        )
        .await?;
    let rows = client.query(&statement, &[&part.build.0, &part.step, &ROWS]).await?;
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    let mut length = 0;
    for row in rows {
        let data: Vec<u8> = row.try_get(0)?;
        length += data.len();
        pieces.push(data);
        if length >= bytes {
            break;
        }
    }
    pieces.reverse();
    Ok(pieces.concat())
}

/// A piece of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// How many bytes before it are not kept.
    pub missing: u64,
    /// The bytes.
    pub data: Vec<u8>,
    /// Where the next begins.
    pub next: u64,
}

/// Reads from an offset on, up to the next that is not kept: whole rows, and no more bytes than the limit unless one alone has more.
///
/// # Errors
/// The database could not.
pub async fn log_read(
    client: &impl GenericClient,
    build: OperationId,
    offset: u64,
    limit: usize,
) -> Result<Piece, StoreError> {
    /// The most rows of one piece.
    const ROWS: i64 = 2000;
    let statement = client
        .prepare_cached(
            "select at, data from image.build_log where operation_id = $1 and at >= \
                 coalesce((select max(f.at) from image.build_log f where f.operation_id = $1 and f.at <= $2), 0) \
             order by at limit $3",
        )
        .await?;
    let rows = client.query(&statement, &[&build.0, &signed(offset), &ROWS]).await?;
    let mut piece = Piece { missing: 0, data: Vec::new(), next: offset };
    for row in rows {
        let (at, data): (i64, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
        let (at, end) = (at.unsigned_abs(), at.unsigned_abs() + data.len() as u64);
        if end <= piece.next {
            continue;
        }
        if at > piece.next && piece.data.is_empty() {
            piece.missing = at - piece.next;
            piece.next = at;
        }
        let over = !piece.data.is_empty() && piece.data.len() + data.len() > limit;
        if at > piece.next || over {
            break;
        }
        let skipped = usize::try_from(piece.next - at).unwrap_or(data.len());
        piece.data.extend_from_slice(&data[skipped..]);
        piece.next = end;
    }
    Ok(piece)
}

/// The last build of that name.
///
/// # Errors
/// The database could not.
pub async fn build_of(
    client: &impl GenericClient,
    resource: &str,
    kind: &str,
) -> Result<Option<OperationId>, StoreError> {
    let statement = client
        .prepare_cached(
            "select id from operations.operation where resource = $1 and kind = $2 order by id desc limit 1",
        )
        .await?;
    let row = client.query_opt(&statement, &[&resource, &kind]).await?;
    row.map(|row| Ok(OperationId(row.try_get(0)?))).transpose()
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
