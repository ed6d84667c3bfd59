//! What a scripted registry does with **pushes** (distribution-spec 1.1): uploads that it keeps as far as they came, mounts, manifests.

use std::{collections::HashMap, sync::Arc};

use sha2::{Digest, Sha256};

use super::{Asked, Reply, State, plain};

/// What was begun to be sent, by the number in its location.
#[derive(Default)]
pub(super) struct Uploads {
    open: HashMap<usize, Vec<u8>>,
    begun: usize,
    /// Which repository has which blob, as far as it was pushed there.
    pushed: Vec<(String, String)>,
    /// Bytes of blobs that came.
    pub received: u64,
}

/// Answers what a push asks; nothing for anything else.
pub(super) fn reply(state: &mut State, port: u16, asked: &Asked, whole: bool) -> Option<Reply> {
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    let rest = path.strip_prefix("/v2/")?;
    if let Some((repository, id)) = rest.split_once("/blobs/uploads/") {
        let at = format!("http://127.0.0.1:{port}/v2/{repository}/blobs/uploads/");
        return Some(match (asked.method.as_str(), id.parse::<usize>()) {
            ("POST", _) => begin(state, repository, query, &at),
            (method, Ok(id)) if state.uploads.open.contains_key(&id) => {
                upload(state, method, repository, id, query, asked, whole, &at)
            }
            _ => plain(404, "", r#"{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"blob upload unknown"}]}"#),
        });
    }
    if asked.method == "PUT"
        && let Some((repository, tag)) = rest.split_once("/manifests/")
    {
        let digest = digest(&asked.bytes);
        state.blobs.insert(digest.clone(), Arc::new(asked.bytes.clone()));
        state.tags.insert(format!("{repository}:{tag}"), digest);
        return Some(plain(201, "", ""));
    }
    None
}

fn begin(state: &mut State, repository: &str, query: &str, at: &str) -> Reply {
    let parameter = |name: &str| query.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    let unescaped = |text: &str| text.replace("%3A", ":").replace("%2F", "/");
    if let (Some(digest), Some(from)) = (parameter("mount").map(unescaped), parameter("from").map(unescaped))
        && state.uploads.pushed.contains(&(from, digest.clone()))
    {
        state.uploads.pushed.push((repository.to_owned(), digest.clone()));
        return plain(201, &format!("Location: /v2/{repository}/blobs/{digest}\r\n"), "");
    }
    state.uploads.begun += 1;
    let id = state.uploads.begun;
    state.uploads.open.insert(id, Vec::new());
    plain(202, &format!("Location: {at}{id}?state=0\r\nRange: 0-0\r\n"), "")
}

#[expect(clippy::too_many_arguments, reason = "the parts of one request")]
fn upload(
    state: &mut State,
    method: &str,
    repository: &str,
    id: usize,
    query: &str,
    asked: &Asked,
    whole: bool,
    at: &str,
) -> Reply {
    let Some(mut content) = state.uploads.open.remove(&id) else { return plain(404, "", "") };
    if method == "PATCH" {
        let begins = asked.content_range.as_deref().map_or(Some(0), |range| range.split_once('-')?.0.parse().ok());
        if begins != Some(content.len()) {
            state.uploads.open.insert(id, content);
            return plain(416, "", "");
        }
        state.uploads.received += asked.bytes.len() as u64;
        content.extend_from_slice(&asked.bytes);
    }
    let (length, last) = (content.len(), content.len().saturating_sub(1));
    let told = format!("Location: {at}{id}?state={length}\r\nRange: 0-{last}\r\n");
    match method {
        "PUT" => {
            let digest = digest(&content);
            if !query.contains(&digest.replace(':', "%3A")) {
                return plain(400, "", r#"{"errors":[{"code":"DIGEST_INVALID","message":"the digest is another"}]}"#);
            }
            state.uploads.pushed.push((repository.to_owned(), digest.clone()));
            state.blobs.insert(digest, Arc::new(content));
            return plain(201, "", "");
        }
        "DELETE" => return plain(204, "", ""),
        _ => drop(state.uploads.open.insert(id, content)),
    }
    match method {
        "PATCH" if whole => plain(202, &told, ""),
        // Whoever went away hears nothing.
        "PATCH" => Reply { head: String::new(), ..plain(500, "", "") },
        _ => plain(204, &told, ""),
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
