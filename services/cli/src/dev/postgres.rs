//! The lab's private PostgreSQL: made once, run as an unprivileged user, reached through a unix socket only.

use std::{
    os::unix::{fs::DirBuilderExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use contract::ApiError;
use nix::unistd::{Gid, Uid, User};
use store::{Store, StoreConfig};

use super::layout::{self, Layout};

/// The lab's database.
pub const DATABASE: &str = "warren";
/// Its superuser, and the lab's user.
const ROLE: &str = "warren";
/// How long PostgreSQL may take to answer after a crash: it replays its log first.
const PATIENCE: Duration = Duration::from_secs(60);

/// Settings beside the defaults. fsync and synchronous_commit stay on: what was acknowledged stays.
const SETTINGS: &[&str] = &[
    "listen_addresses=",
    "unix_socket_permissions=0700",
    // Four services with up to 32 connections each, and room for people.
    "max_connections=200",
    "shared_buffers=128MB",
    "max_wal_size=1GB",
    "checkpoint_completion_target=0.9",
    "random_page_cost=1.1",
    "jit=off",
    // A client that vanished in a transaction must not hold its locks.
    "idle_in_transaction_session_timeout=60s",
    "autovacuum_naptime=10s",
    "log_min_duration_statement=500ms",
    "log_line_prefix=%m [%p] ",
];

/// Who an unprivileged process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Identity {
    /// The first of the named users that exists; nothing when this process is not root, and so can only be itself.
    ///
    /// # Errors
    /// The user database cannot be read, or has none of them.
    pub fn find(names: &[&str]) -> Result<Option<Self>, ApiError> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(None);
        }
        for name in names {
            let user = User::from_name(name)
                .map_err(|error| ApiError::internal(format!("the user {name} cannot be looked up: {error}")))?;
            if let Some(user) = user {
                return Ok(Some(Self { uid: user.uid.as_raw(), gid: user.gid.as_raw() }));
            }
        }
        Err(ApiError::failed_precondition(format!("none of the users {} exists", names.join(", "))))
    }

    /// Makes a directory of this identity's own, for it alone.
    ///
    /// # Errors
    /// It cannot be made or given away.
    pub fn own_dir(identity: Option<Self>, dir: &Path) -> Result<(), ApiError> {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|error| layout::at(dir, "made", &error))?;
        let Some(identity) = identity else { return Ok(()) };
        std::os::unix::fs::chown(dir, Some(identity.uid), Some(identity.gid))
            .map_err(|error| layout::at(dir, "given to its user", &error))
    }
}

/// Who PostgreSQL runs as: it refuses to be root.
///
/// # Errors
/// There is no such user.
pub fn identity() -> Result<Option<Identity>, ApiError> {
    Identity::find(&["postgres", "nobody"])
}

/// The URL of a database of the lab's PostgreSQL.
pub fn url(layout: &Layout, database: &str) -> String {
    let dir = layout.postgres_socket_dir();
    let host: String = dir
        .to_string_lossy()
        .bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(b).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect();
    format!("postgresql://{ROLE}@{host}/{database}")
}

/// Makes the data directory, unless it is there. It appears whole: a crash in between leaves nothing that counts.
///
/// # Errors
/// `initdb` failed; its output is in the error.
pub async fn create(layout: &Layout, bin: &Path) -> Result<(), ApiError> {
    let identity = identity()?;
    Identity::own_dir(identity, &layout.postgres())?;
    Identity::own_dir(identity, &layout.postgres_socket_dir())?;
    let data = layout.postgres_data();
    if data.join("PG_VERSION").exists() {
        return Ok(());
    }
    let fresh = layout.postgres().join("data.new");
    if fresh.exists() {
        std::fs::remove_dir_all(&fresh).map_err(|error| layout::at(&fresh, "removed", &error))?;
    }
    let mut command = Command::new(bin.join("initdb"));
    command.args(["--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--username", ROLE, "--pgdata"]).arg(&fresh);
    become_user(&mut command, identity).current_dir("/");
    let output = tokio::process::Command::from(command).kill_on_drop(true).output().await;
    let output = output.map_err(|error| ApiError::failed_precondition(format!("initdb cannot be run: {error}")))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(ApiError::failed_precondition(format!("PostgreSQL's data directory cannot be made: {text}"))
            .hint("may the user postgres enter the directories above the state directory?"));
    }
    std::fs::rename(&fresh, &data).map_err(|error| layout::at(&data, "made", &error))
}

fn become_user(command: &mut Command, identity: Option<Identity>) -> &mut Command {
    match identity {
        Some(identity) => command.uid(identity.uid).gid(identity.gid),
        None => command,
    }
}

/// The command line of the server.
pub fn command(layout: &Layout, bin: &Path) -> (PathBuf, Vec<String>) {
    let mut args = vec!["-D".to_owned(), layout.postgres_data().display().to_string()];
    args.extend(["-k".to_owned(), layout.postgres_socket_dir().display().to_string()]);
    for setting in SETTINGS {
        args.extend(["-c".to_owned(), (*setting).to_owned()]);
    }
    (bin.join("postgres"), args)
}

/// Waits until the server answers, and makes the lab's database, unless it is there.
///
/// # Errors
/// It did not answer in time.
pub async fn ensure_database(layout: &Layout) -> Result<(), ApiError> {
    let config = StoreConfig { max_connections: 1, patience: PATIENCE, ..StoreConfig::default() };
    let store = Store::connect(&url(layout, "postgres"), config).await?;
    let client = store.client().await?;
    let failed = |error| ApiError::from(store::StoreError::from(error));
    let found = client.query_opt("select 1 from pg_database where datname = $1", &[&DATABASE]).await;
    if found.map_err(failed)?.is_none() {
        client.batch_execute(&format!("create database {DATABASE}")).await.map_err(failed)?;
    }
    Ok(())
}

/// Whether the lab's PostgreSQL answers.
pub async fn answers(url: &str) -> bool {
    let config = StoreConfig { max_connections: 1, wait: Duration::from_secs(2), patience: Duration::from_millis(100) };
    Store::connect(url, config).await.is_ok()
}

/// The ids as nix knows them.
impl From<Identity> for (Uid, Gid) {
    fn from(identity: Identity) -> Self {
        (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid))
    }
}
