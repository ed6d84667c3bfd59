//! A registry that does what a test tells it: it cuts bodies off, stalls, lies, refuses, sends on, and counts what it served.
//!
//! One request a connection, HTTP/1.1 written by hand: a library would not let us lie.

mod uploads;

use std::{
    collections::{HashMap, VecDeque},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::Engine as _;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// How much of a body is written at once.
const PIECE: usize = 16 << 10;
/// The largest body of a request that is taken.
const TAKEN_MAX: usize = 256 << 20;

/// What a registry does with one request for a blob or a manifest, or with one of a push; of these it knows [`Act::Cut`], [`Act::Stall`],
/// [`Act::Status`] and [`Act::Forget`].
#[derive(Clone, Debug)]
pub enum Act {
    /// Answers as it should.
    Honest,
    /// Closes the connection after so many bytes of the body; of a push's, which it keeps.
    Cut(usize),
    /// Says nothing more after so many bytes of the body, and keeps the connection; takes no more of a push's.
    Stall(usize),
    /// Knows nothing of the upload any more.
    Forget,
    /// Answers with a status, and `Retry-After` where it is given.
    Status(u16, Option<String>),
    /// Says that the body has so many bytes.
    Length(u64),
    /// Answers with the whole body, whatever range was asked for.
    NoRange,
    /// Claims another range than what was asked for.
    WrongRange,
    /// A chunked body that never ends.
    Endless,
    /// Flips a bit of the body's byte at that place.
    Flip(usize),
    /// Sends on to a URL; `{path}` stands for the path asked for.
    Redirect(String),
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    /// `GET` or another.
    pub method: String,
    /// With its query.
    pub path: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// The `Content-Range` header.
    pub content_range: Option<String>,
    /// What came with it, as far as it is text.
    pub body: String,
    /// The same as it came.
    bytes: Vec<u8>,
}

/// Who may pull.
#[derive(Clone, Debug)]
pub enum Guard {
    /// Who shows these, `user:password`.
    Basic(String),
    /// Who shows a token, which the registry's own token server gives for `user:password`, or to anybody.
    Token(Option<String>),
    /// Who shows a token, which its token server gives for a refresh token.
    Refresh(String),
}

#[derive(Default)]
struct State {
    blobs: HashMap<String, Arc<Vec<u8>>>,
    tags: HashMap<String, String>,
    scripts: Vec<(String, VecDeque<Act>)>,
    asked: Vec<Asked>,
    served: u64,
    guard: Option<Guard>,
    /// How large each piece of a body is where it is not [`PIECE`], and how long it takes.
    piece: Option<usize>,
    pause: Duration,
    tokens: usize,
    /// What a token server adds to each token's answer, in bytes.
    padding: usize,
    uploads: uploads::Uploads,
}

/// A scripted registry; ends when dropped.
pub struct Scripted {
    port: u16,
    state: Arc<Mutex<State>>,
    serving: JoinHandle<()>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Scripted {
    /// Starts one that has nothing yet.
    ///
    /// # Panics
    /// No port on loopback is free.
    pub async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port on loopback");
        let port = listener.local_addr().expect("an address").port();
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = state.clone();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = shared.clone();
                // Whoever goes away does so in the middle of a body.
                tokio::spawn(async move { drop(serve(stream, port, &state).await) });
            }
        });
        Self { port, state, serving }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `127.0.0.1:port`.
    pub fn name(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Takes the image of an OCI layout in; gives its reference here.
    ///
    /// # Panics
    /// The layout cannot be read.
    pub fn add(&self, layout: &Path, repository: &str, tag: &str) -> String {
        let blobs = fs::read_dir(layout.join("blobs/sha256")).expect("the layout's blobs");
        let paths: Vec<PathBuf> = blobs.flatten().map(|entry| entry.path()).collect();
        let index: Value =
            serde_json::from_slice(&fs::read(layout.join("index.json")).expect("index.json")).expect("JSON");
        let mut state = self.state();
        for path in paths {
            let hash = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            state.blobs.insert(format!("sha256:{hash}"), Arc::new(fs::read(&path).expect("a blob")));
        }
        let digests = index["manifests"].as_array().expect("manifests").iter();
        let digests = digests.filter_map(|entry| entry["digest"].as_str());
        let digest = digests.into_iter().find(|digest| state.blobs.contains_key(*digest)).expect("a manifest");
        state.tags.insert(format!("{repository}:{tag}"), digest.to_owned());
        format!("{}/{repository}:{tag}", self.name())
    }

    /// The layers' digests and sizes of an image it has, lowest first.
    ///
    /// # Panics
    /// It does not have it.
    pub fn layers(&self, repository: &str, tag: &str) -> Vec<(String, u64)> {
        let state = self.state();
        let digest = &state.tags[&format!("{repository}:{tag}")];
        let manifest: Value = serde_json::from_slice(&state.blobs[digest]).expect("JSON");
        let layers = manifest["layers"].as_array().expect("layers").iter();
        layers
            .map(|layer| {
                (layer["digest"].as_str().unwrap_or_default().to_owned(), layer["size"].as_u64().unwrap_or_default())
            })
            .collect()
    }

    /// The digest of an image's manifest.
    ///
    /// # Panics
    /// It does not have it.
    pub fn digest(&self, repository: &str, tag: &str) -> String {
        self.state().tags[&format!("{repository}:{tag}")].clone()
    }

    /// What it does with the next requests whose path contains `part`; honest when nothing is left.
    pub fn script(&self, part: &str, acts: impl IntoIterator<Item = Act>) {
        self.state().scripts.push((part.to_owned(), acts.into_iter().collect()));
    }

    /// Whom it lets pull from now on.
    pub fn guard(&self, guard: Guard) {
        self.state().guard = Some(guard);
    }

    /// Lets tokens it gave be refused from now on.
    pub fn expire_tokens(&self) {
        self.state().tokens += 1;
    }

    /// How long every 16 KiB of a body take from now on.
    pub fn pace(&self, pause: Duration) {
        self.state().pause = pause;
    }

    /// How many bytes of a body come at once, and how long they take, from now on.
    pub fn trickle(&self, piece: usize, pause: Duration) {
        let mut state = self.state();
        (state.piece, state.pause) = (Some(piece), pause);
    }

    /// The bytes of bodies of blobs it has served since the last time this was asked.
    pub fn served(&self) -> u64 {
        std::mem::take(&mut self.state().served)
    }

    /// The bytes of blobs that were pushed to it since the last time this was asked.
    pub fn received(&self) -> u64 {
        std::mem::take(&mut self.state().uploads.received)
    }

    /// Lets the token server's answers be so many bytes longer.
    pub fn pad_tokens(&self, bytes: usize) {
        self.state().padding = bytes;
    }

    /// What it was asked since the last time this was asked.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state().asked)
    }
}

async fn serve(stream: TcpStream, port: u16, state: &Mutex<State>) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader.take(64 << 10)).lines();
    let mut request = lines.next_line().await?.unwrap_or_default();
    let mut headers = HashMap::new();
    while let Some(line) = lines.next_line().await?.filter(|line| !line.is_empty()) {
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
    }
    let length: usize = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    request.truncate(request.rfind(' ').unwrap_or(0));
    let (method, path) = request.split_once(' ').unwrap_or_default();
    let pushing = !matches!(method, "GET" | "HEAD") && path.starts_with("/v2/");
    let act = if pushing { state.lock().unwrap_or_else(PoisonError::into_inner).act(path) } else { Act::Honest };
    let taken = match act {
        Act::Cut(bytes) | Act::Stall(bytes) => length.min(bytes),
        Act::Status(..) if length > 64 << 10 => 0,
        _ => length.min(TAKEN_MAX),
    };
    let mut reader = lines.into_inner();
    reader.get_mut().set_limit(taken as u64);
    let mut bytes = vec![0; taken];
    reader.read_exact(&mut bytes).await?;
    if matches!(act, Act::Stall(_)) {
        return std::future::pending().await;
    }
    let asked = Asked {
        method: method.to_owned(),
        path: path.to_owned(),
        range: headers.get("range").cloned(),
        authorization: headers.get("authorization").cloned(),
        content_range: headers.get("content-range").cloned(),
        body: String::from_utf8_lossy(&bytes[..bytes.len().min(64 << 10)]).into_owned(),
        bytes,
    };
    let reply = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.asked.push(Asked { bytes: Vec::new(), ..asked.clone() });
        reply(&mut state, port, &asked, &act, taken == length)
    };
    writer.write_all(reply.head.as_bytes()).await?;
    let mut at = 0;
    while at < reply.body.len() {
        let piece = state.lock().unwrap_or_else(PoisonError::into_inner).piece.unwrap_or(PIECE);
        let end = (at + piece).min(reply.body.len());
        writer.write_all(&reply.body[at..end]).await?;
        let pause = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            if reply.blob {
                state.served += (end - at) as u64;
            }
            state.pause
        };
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        at = end;
    }
    match reply.then {
        Then::Close => writer.shutdown().await,
        Then::Stall => std::future::pending().await,
        Then::GoOn => loop {
            writer.write_all(b"4000\r\n").await?;
            writer.write_all(&[7; 0x4000]).await?;
            writer.write_all(b"\r\n").await?;
        },
    }
}

enum Then {
    Close,
    Stall,
    GoOn,
}

struct Reply {
    head: String,
    body: Vec<u8>,
    blob: bool,
    then: Then,
}

fn plain(status: u16, headers: &str, body: &str) -> Reply {
    let head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    Reply { head, body: body.as_bytes().to_vec(), blob: false, then: Then::Close }
}

fn reply(state: &mut State, port: u16, asked: &Asked, act: &Act, whole: bool) -> Reply {
    if let Some(refusal) = guarded(state, port, asked) {
        return refusal;
    }
    match act {
        Act::Status(status, after) => return refused(*status, after.as_deref()),
        Act::Forget => return plain(404, "", ""),
        _ => {}
    }
    if let Some(reply) = uploads::reply(state, port, asked, whole) {
        return reply;
    }
    if asked.path == "/v2/" {
        return plain(200, "", "{}");
    }
    let path = asked.path.split('?').next().unwrap_or_default();
    let place = path.rfind("/blobs/").or_else(|| path.rfind("/manifests/"));
    let (Some(place), Some(repository)) = (place, path.strip_prefix("/v2/")) else { return plain(404, "", "") };
    let blob = path[place..].starts_with("/blobs/");
    let name = path.rsplit('/').next().unwrap_or_default();
    let repository = &repository[..place - "/v2/".len()];
    let digest = state.tags.get(&format!("{repository}:{name}")).cloned().unwrap_or_else(|| name.to_owned());
    let Some(bytes) = state.blobs.get(&digest).cloned() else { return plain(404, "", "") };
    if asked.method == "HEAD" {
        return plain(200, "", "");
    }
    let act = state.act(path);
    acted(&act, asked, path, &digest, &bytes, blob)
}

impl State {
    /// What the script says of a request.
    fn act(&mut self, path: &str) -> Act {
        let script = self.scripts.iter_mut().find(|(part, acts)| path.contains(part.as_str()) && !acts.is_empty());
        script.and_then(|(_, acts)| acts.pop_front()).unwrap_or(Act::Honest)
    }
}

fn refused(status: u16, after: Option<&str>) -> Reply {
    plain(status, &after.map(|after| format!("Retry-After: {after}\r\n")).unwrap_or_default(), "")
}

fn acted(act: &Act, asked: &Asked, path: &str, digest: &str, bytes: &[u8], blob: bool) -> Reply {
    let range = asked.range.as_deref().filter(|_| blob && !matches!(act, Act::NoRange));
    let from = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let mut body = bytes[from.unwrap_or(0).min(bytes.len())..].to_vec();
    let status = match (from, act) {
        (_, Act::Status(status, after)) => return refused(*status, after.as_deref()),
        (_, Act::Forget) => return plain(404, "", ""),
        (_, Act::Redirect(to)) => {
            return plain(307, &format!("Location: {}\r\n", to.replace("{path}", path)), "");
        }
        (Some(from), _) if from >= bytes.len() => return plain(416, "", ""),
        (Some(_), _) => "206 Partial Content",
        (None, _) => "200 OK",
    };
    let mut head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nETag: \"{digest}\"\r\n");
    if let Some(from) = from {
        let begin = if matches!(act, Act::WrongRange) { from + 1 } else { from };
        head += &format!("Content-Range: bytes {begin}-{}/{}\r\n", bytes.len() - 1, bytes.len());
    }
    let mut then = Then::Close;
    let mut length = Some(body.len() as u64);
    match act {
        Act::Cut(after) => body.truncate(*after),
        Act::Stall(after) => {
            body.truncate(*after);
            then = Then::Stall;
        }
        Act::Length(lie) => length = Some(*lie),
        Act::Flip(at) => {
            if let Some(byte) = body.get_mut(*at) {
                *byte ^= 1;
            }
        }
        Act::Endless => {
            (length, then) = (None, Then::GoOn);
            body.clear();
        }
        _ => {}
    }
    head +=
        &length.map_or("Transfer-Encoding: chunked\r\n".to_owned(), |length| format!("Content-Length: {length}\r\n"));
    Reply { head: head + "\r\n", body, blob, then }
}

fn base64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// What keeps a request out, if anything does; the token server too.
fn guarded(state: &State, port: u16, asked: &Asked) -> Option<Reply> {
    let shown = asked.authorization.as_deref().unwrap_or_default();
    let token = format!("token-{}", state.tokens);
    match state.guard.as_ref()? {
        Guard::Basic(credentials) => (shown != format!("Basic {}", base64(credentials)))
            .then(|| plain(401, "WWW-Authenticate: Basic realm=\"scripted\"\r\n", "")),
        Guard::Token(credentials) if asked.path.starts_with("/token") => {
            let known = credentials.as_ref().is_none_or(|known| shown == format!("Basic {}", base64(known)));
            let scoped = asked.path.contains("scope=repository%3A") && asked.path.contains("service=scripted");
            Some(match (known, scoped) {
                (true, true) => {
                    let padding = " ".repeat(state.padding);
                    plain(200, "", &format!("{{\"token\":\"{token}\"{padding}}}"))
                }
                (false, _) => plain(401, "", ""),
                (_, false) => plain(400, "", ""),
            })
        }
        Guard::Refresh(refresh) if asked.path.starts_with("/token") => {
            let known = asked.method == "POST" && asked.body.contains(&format!("refresh_token={refresh}"));
            let scoped = asked.body.contains("scope=repository%3A") && asked.body.contains("grant_type=refresh_token");
            Some(match known && scoped {
                true => plain(200, "", &format!("{{\"access_token\":\"{token}\"}}")),
                false => plain(401, "", ""),
            })
        }
        Guard::Token(_) | Guard::Refresh(_) => (shown != format!("Bearer {token}")).then(|| {
            let realm = format!("realm=\"http://127.0.0.1:{port}/token\",service=\"scripted\"");
            plain(401, &format!("WWW-Authenticate: Bearer {realm}\r\n"), "")
        }),
    }
}
