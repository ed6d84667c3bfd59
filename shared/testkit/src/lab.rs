//! A whole lab for one test: private PostgreSQL and NATS, the real service binaries as child processes, a
//! host-agent with a network namespace of its own, and the means to kill and restart each of them.
//!
//! A lab leaves nothing behind: dropping it ends everything it started, and [`Lab::residue`] says what a finished
//! story left in it.

use std::{
    collections::BTreeMap,
    fs::File,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, SystemTime},
};

use self::{
    needs::guest_files,
    residue::{clean_up, sweep_dead_labs},
};
pub use self::{
    needs::{binaries, missing_for_vms},
    residue::{entries, taps, vmms},
};
use crate::{Nats, Postgres, scratch::Scratch};

mod needs;
mod residue;

/// How long a lab may take until every service answers. Emulated and with four labs at once it takes seconds.
const START_BOUND: Duration = Duration::from_secs(60);
/// How long a process gets to end after SIGTERM before it is killed.
const STOP_BOUND: Duration = Duration::from_secs(10);

/// The services of a lab, in the order in which they start.
pub const SERVICES: [&str; 3] = ["image-service", "vm-lifecycle", "workspace-service"];

/// What a lab is to be like.
#[derive(Clone, Debug)]
pub struct LabOptions {
    /// How many host-agents.
    pub hosts: usize,
    /// More environment for every process, e.g. `WARREN_HOST_PREFIX`.
    pub env: Vec<(String, String)>,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self { hosts: 1, env: Vec::new() }
    }
}

/// A running lab.
pub struct Lab {
    /// Its database engine.
    pub postgres: Postgres,
    /// Its message bus.
    pub nats: Nats,
    bins: PathBuf,
    dir: Scratch,
    env: BTreeMap<String, String>,
    hosts: Vec<String>,
    children: BTreeMap<String, Child>,
    /// When each of them was started last.
    started: BTreeMap<String, SystemTime>,
}

impl Lab {
    /// Starts a lab and waits until all of it answers.
    ///
    /// # Panics
    /// Anything does not start; the message holds the logs' ends.
    pub async fn start(options: LabOptions) -> Self {
        let files = guest_files().unwrap_or_else(|why| panic!("a lab needs a guest: {why}"));
        let bins = binaries().unwrap_or_else(|error| panic!("{error}"));
        sweep_dead_labs(&bins);
        let (postgres, nats) = (Postgres::start().await, Nats::start().await);
        let dir = Scratch::new("wlab-");
        let tag = dir.path().file_name().and_then(|name| name.to_str()).unwrap_or("wlab").to_lowercase();
        let tag: String = tag.chars().filter(char::is_ascii_alphanumeric).collect();
        let hosts = (1..=options.hosts).map(|n| format!("{tag}-{n}")).collect();
        let mut env: BTreeMap<String, String> = BTreeMap::from([
            ("WARREN_NATS_URL".to_owned(), nats.url()),
            ("WARREN_DATABASE_URL".to_owned(), postgres.url()),
            ("WARREN_KERNEL".to_owned(), files.kernel.display().to_string()),
            ("WARREN_KERNEL_MODULES".to_owned(), files.modules.display().to_string()),
            ("WARREN_GUEST_AGENT".to_owned(), files.agent.display().to_string()),
            // A test never probes KVM: where it is there but hangs, the probe's deadline would be paid by each lab.
            ("WARREN_ACCEL".to_owned(), std::env::var("WARREN_TEST_ACCEL").unwrap_or_else(|_| "tcg".to_owned())),
            // A test's VMs ask nobody outside of it.
            ("WARREN_DNS_FORWARD".to_owned(), "none".to_owned()),
            // How full the machine's own disk is decides nothing here.
            ("WARREN_DISK_HIGH_WATER".to_owned(), "100".to_owned()),
        ]);
        env.insert("WARREN_GIT_CACHE".to_owned(), dir.path().join("fetched").display().to_string());
        env.extend(options.env);
        let mut lab =
            Self { postgres, nats, bins, dir, env, hosts, children: BTreeMap::new(), started: BTreeMap::new() };
        for service in SERVICES {
            lab.start_process(service, &[]);
        }
        for host in lab.hosts.clone() {
            lab.start_process(&host, &[]);
        }
        lab.wait_ready().await;
        lab
    }

    /// The ids of its hosts.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// The state directory of a host.
    pub fn state_dir(&self, host: &str) -> PathBuf {
        self.dir.path().join(host)
    }

    /// A directory for the test's own files, removed with the lab.
    pub fn scratch(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// Starts a service by name or a host-agent by host id, with more environment.
    pub fn start_process(&mut self, name: &str, env: &[(&str, &str)]) {
        let is_host = self.hosts.iter().any(|host| host == name);
        let log = File::options().create(true).append(true).open(self.log(name)).expect("a log file");
        let mut command = Command::new(self.bins.join(if is_host { "host-agent" } else { name }));
        command.envs(&self.env).envs(env.iter().copied());
        if is_host {
            command.env("WARREN_HOST_ID", name).env("WARREN_STATE_DIR", self.state_dir(name));
        }
        let errors = log.try_clone().expect("a second handle of the log");
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        self.started.insert(name.to_owned(), SystemTime::now());
        let child = command.spawn().unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        self.children.insert(name.to_owned(), child);
    }

    /// The path of a process's log.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    /// Kills a process as `kill -9` does and reaps it.
    pub fn kill(&mut self, name: &str) {
        let mut child = self.children.remove(name).unwrap_or_else(|| panic!("{name} does not run"));
        child.kill().unwrap_or_else(|error| panic!("{name} cannot be killed: {error}"));
        child.wait().unwrap_or_else(|error| panic!("{name} cannot be reaped: {error}"));
    }

    /// Waits until a process has ended by itself, e.g. at a crash point.
    ///
    /// # Panics
    /// It still runs after `bound`.
    pub async fn wait_exit(&mut self, name: &str, bound: Duration) {
        let mut child = self.children.remove(name).unwrap_or_else(|| panic!("{name} does not run"));
        let gone = tokio::time::timeout(bound, async {
            while child.try_wait().expect("a child of ours").is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        if gone.await.is_err() {
            let tail = self.tail(name);
            child.kill().expect("a child of ours");
            child.wait().expect("a child of ours");
            panic!("{name} still runs after {bound:?}; its log ends:\n{tail}");
        }
    }

    /// Whether a process runs.
    pub fn runs(&mut self, name: &str) -> bool {
        self.children.get_mut(name).is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// The process id of one that was started.
    pub fn pid(&self, name: &str) -> Option<u32> {
        self.children.get(name).map(std::process::Child::id)
    }

    /// Runs the CLI against this lab.
    pub async fn warren(&self, args: &[&str]) -> Output {
        self.command(args).await
    }

    /// The path of one of this workspace's binaries.
    pub fn binary(&self, name: &str) -> String {
        self.bins.join(name).display().to_string()
    }

    /// A program of the machine's that finds this lab as its user would.
    pub fn outside(&self, program: &str) -> std::process::Command {
        let mut command = std::process::Command::new(program);
        command.envs(&self.env).env("HOME", self.dir.path());
        command
    }

    /// Starts the CLI against this lab; it is killed when dropped.
    pub fn spawn(&self, args: &[&str]) -> tokio::process::Child {
        let mut command = tokio::process::Command::new(self.bins.join("warren"));
        command.args(args).envs(&self.env).env("HOME", self.dir.path()).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.spawn().expect("the CLI starts")
    }

    /// Runs the CLI against this lab, which may be changed meanwhile.
    pub fn command(&self, args: &[&str]) -> impl Future<Output = Output> + Send + 'static {
        let mut command = tokio::process::Command::new(self.bins.join("warren"));
        command.args(args).envs(&self.env).env("HOME", self.dir.path()).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        async move { command.output().await.expect("the CLI starts") }
    }

    /// Runs the CLI, which must succeed, and gives its standard output.
    pub async fn must(&self, args: &[&str]) -> String {
        let output = self.warren(args).await;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "warren {args:?}: {}\n{out}\n{err}\n{}", output.status, self.tails());
        out.into_owned()
    }

    /// A database connection of the test's own.
    pub async fn sql(&self) -> tokio_postgres::Client {
        let (client, connection) = tokio_postgres::connect(&self.postgres.url(), tokio_postgres::NoTls)
            .await
            .expect("the lab's database answers");
        tokio::spawn(connection);
        client
    }

    /// Waits until every service and host that was started, and not killed since, answers: a host only once it has been heard of
    /// after that, as the lab takes one for up for a while that was killed.
    pub async fn wait_ready(&self) {
        let ended = tokio::time::timeout(START_BOUND, async {
            while !self.is_ready().await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        assert!(ended.await.is_ok(), "the lab is not ready after {START_BOUND:?}\n{}", self.tails());
    }

    async fn is_ready(&self) -> bool {
        for (service, list) in
            [("vm-lifecycle", "host"), ("image-service", "image"), ("workspace-service", "workspace")]
        {
            if self.children.contains_key(service) && !self.warren(&[list, "ls"]).await.status.success() {
                return false;
            }
        }
        let sql = self.sql().await;
        for host in self.hosts.iter().filter(|host| self.children.contains_key(*host)) {
            let query = "select 1 from vm.host where id = $1 and last_seen > $2";
            // Before the migrations there is no such table.
            let heard = sql.query_opt(query, &[host, &self.started[host]]).await;
            if !matches!(heard, Ok(Some(_))) {
                return false;
            }
        }
        true
    }

    /// The last lines of every log.
    pub fn tails(&self) -> String {
        let names = SERVICES.iter().map(|name| (*name).to_owned()).chain(self.hosts.iter().cloned());
        names.map(|name| format!("--- {name}\n{}\n", self.tail(&name))).collect()
    }

    fn tail(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.log(name)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for child in self.children.values() {
            // The id is of a child not yet reaped, so it cannot be anybody else's.
            let ended = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
            if let Err(error) = ended {
                eprintln!("a process of the lab cannot be ended: {error}");
            }
        }
        let give_up = std::time::Instant::now() + STOP_BOUND;
        for child in self.children.values_mut() {
            while matches!(child.try_wait(), Ok(None)) && std::time::Instant::now() < give_up {
                std::thread::sleep(Duration::from_millis(10));
            }
            if matches!(child.try_wait(), Ok(None))
                && let Err(error) = child.kill().and_then(|()| child.wait())
            {
                eprintln!("a process of the lab cannot be killed: {error}");
            }
        }
        for host in &self.hosts {
            clean_up(&self.bins, host, &self.state_dir(host), &self.env);
        }
    }
}
