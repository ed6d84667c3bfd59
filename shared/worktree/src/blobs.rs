//! **Blobs** taken out of a repository as they are, without filters and line endings' conversions.

use std::{
    fs::File,
    io::{self, BufRead, Read},
    path::Path,
};

use crate::{error::WorktreeError, git::Git};

/// Writes blobs into files, in one run of git; their sizes.
pub(crate) fn write_out(git: &Git, blobs: &[(String, std::path::PathBuf)]) -> Result<Vec<u64>, WorktreeError> {
    let ids: Vec<u8> = blobs.iter().flat_map(|(id, _)| format!("{id}\n").into_bytes()).collect();
    let read = |from: &mut dyn BufRead| blobs.iter().map(|(id, path)| one(from, id, path)).collect();
    let (_, sizes): (_, Result<Vec<u64>, WorktreeError>) =
        git.converse(&["cat-file", "--batch"], move |to| to.write_all(&ids), read)?;
    sizes
}

/// A blob's bytes, if it is no longer than `limit`.
pub(crate) fn read(git: &Git, id: &str, limit: u64) -> Result<Option<Vec<u8>>, WorktreeError> {
    let size = git.text(&["cat-file", "-s", id])?;
    if size.parse::<u64>().is_ok_and(|size| size <= limit) {
        git.run(&["cat-file", "blob", id]).map(Some)
    } else {
        Ok(None)
    }
}

/// Which of some objects are here.
pub(crate) fn present(git: &Git, ids: &[String]) -> Result<Vec<bool>, WorktreeError> {
    let input: Vec<u8> = ids.iter().flat_map(|id| format!("{id}\n").into_bytes()).collect();
    let out = git.feed(&["cat-file", "--batch-check=%(objecttype)"], input)?;
    let said: Vec<bool> = out.split(|byte| *byte == b'\n').map(|line| line == b"blob").collect();
    Ok((0..ids.len()).map(|index| said.get(index).copied().unwrap_or_default()).collect())
}

/// Writes one answer of `cat-file --batch`, `<id> blob <size>\n<bytes>\n`, into a file; its size.
fn one(from: &mut dyn BufRead, id: &str, path: &Path) -> Result<u64, WorktreeError> {
    let odd = |said: String| WorktreeError::Git { what: "cat-file".to_owned(), said };
    let mut head = String::new();
    (&mut *from).take(256).read_line(&mut head).map_err(|error| odd(error.to_string()))?;
    let size = match head.trim_end().split(' ').collect::<Vec<_>>()[..] {
        [_, "blob", size] => size.parse::<u64>().ok(),
        _ => None,
    };
    let size = size.ok_or_else(|| odd(format!("{id} is not there: {}", head.trim_end())))?;
    let mut file = File::create(path).map_err(WorktreeError::write(path))?;
    let copied = io::copy(&mut (&mut *from).take(size), &mut file).map_err(WorktreeError::write(path))?;
    let mut end = [0];
    from.read_exact(&mut end).map_err(|error| odd(error.to_string()))?;
    if copied == size { Ok(size) } else { Err(odd(format!("{id} was cut off"))) }
}
