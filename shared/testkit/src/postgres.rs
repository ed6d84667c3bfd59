//! A private PostgreSQL on a unix socket.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::Signal,
    unistd::{Gid, Uid, User, chown},
};
use tokio_postgres::NoTls;

use crate::{Engine, program, scratch::Scratch, wait_until};

/// A private PostgreSQL; ends when dropped.
pub struct Postgres {
    engine: Engine,
    dir: Scratch,
    settings: Vec<String>,
}

/// The unprivileged user PostgreSQL runs as when the test is root, as it refuses root.
fn unprivileged() -> Option<(Uid, Gid)> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let user = ["postgres", "nobody"].iter().find_map(|name| User::from_name(name).ok().flatten());
    user.map(|user| (user.uid, user.gid))
}

fn tool(name: &str) -> Command {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut bins: Vec<PathBuf> = installed.map(|version| version.path().join("bin")).collect();
    bins.sort();
    let bins: Vec<&str> = bins.iter().rev().filter_map(|path| path.to_str()).collect();
    // The packages' own directory first: a wrapper elsewhere may choose another version.
    let path = bins.iter().map(|bin| Path::new(bin).join(name)).find(|path| path.exists());
    let path = path.or_else(|| program(name, &[])).expect("PostgreSQL is installed (deploy/check installs it)");
    let mut command = Command::new(path);
    if let Some((uid, gid)) = unprivileged() {
        command.uid(uid.as_raw()).gid(gid.as_raw());
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

impl Postgres {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// PostgreSQL is not installed, or does not start.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts one with settings (`name=value`) of the caller's own, which win over those that make tests fast: benchmarks want
    /// commits that last.
    ///
    /// # Panics
    /// As [`Postgres::start`].
    pub async fn start_with(settings: &[&str]) -> Self {
        let dir = Scratch::new("wpg-");
        if let Some((uid, gid)) = unprivileged() {
            chown(dir.path(), Some(uid), Some(gid)).expect("root may give a directory away");
        }
        let data = dir.path().join("data");
        let made = tool("initdb")
            .args(["-A", "trust", "--no-sync", "-U", "warren", "-D"])
            .arg(&data)
            .current_dir("/")
            .status();
        assert!(made.expect("initdb starts").success(), "initdb failed");
        let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
        let mut postgres = Self { engine: spawn(dir.path(), &settings), dir, settings };
        postgres.answers().await;
        postgres
    }

    /// How to connect to its `postgres` database.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    fn url_of(&self, database: &str) -> String {
        format!("host={} user=warren dbname={database}", self.dir.path().display())
    }

    /// Makes an empty database of that name; how to connect to it.
    pub async fn create_database(&self, name: &str) -> String {
        let (client, connection) = tokio_postgres::connect(&self.url(), NoTls).await.expect("PostgreSQL answers");
        let connection = tokio::spawn(connection);
        client.batch_execute(&format!("create database {name}")).await.expect("the name is free");
        drop(client);
        connection.await.expect("the connection ends").expect("it ends well");
        self.url_of(name)
    }

    /// Kills it as `kill -9` does and starts it again.
    pub async fn restart(&mut self) {
        self.engine.stop(Signal::SIGQUIT);
        self.engine = spawn(self.dir.path(), &self.settings);
        self.answers().await;
    }

    async fn answers(&mut self) {
        let url = self.url();
        let dir = self.dir.path().to_owned();
        let (engine, settings) = (&mut self.engine, &self.settings);
        wait_until("PostgreSQL", Duration::from_secs(60), async || {
            if !matches!(engine.0.try_wait(), Ok(None)) {
                // Right after a kill the old one's lock file can still be in the way.
                *engine = spawn(&dir, settings);
            }
            tokio_postgres::connect(&url, NoTls).await.ok().map(drop)
        })
        .await;
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // An immediate shutdown ends its children too, which a kill would leave behind for a moment.
        self.engine.stop(Signal::SIGQUIT);
    }
}

fn spawn(dir: &Path, settings: &[String]) -> Engine {
    let mut command = tool("postgres");
    command.arg("-D").arg(dir.join("data")).arg("-k").arg(dir).current_dir("/");
    let fast = ["listen_addresses=", "fsync=off", "full_page_writes=off", "max_connections=200", "shared_buffers=64MB"];
    // Of two of one name PostgreSQL takes the last.
    for setting in fast.into_iter().chain(settings.iter().map(String::as_str)) {
        command.args(["-c", setting]);
    }
    Engine::spawn(&mut command).expect("postgres starts")
}
