//! The plan: what a lab is to be like. `up` writes it, the supervisor carries it out, and the next `up` finds in it what was
//! chosen before.

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
};

use contract::{ApiError, ErrorCode, HostId};
use serde::{Deserialize, Serialize};

use super::{
    args::UpArgs,
    binaries::{self, Engines, Programs},
    layout::{self, Layout},
};
use crate::args::Global;

/// NATS' registered port.
const NATS_PORT: u16 = 4222;

fn default_name() -> String {
    "local".to_owned()
}

/// What a lab is to be like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What its first host is called; the others have numbers behind it.
    #[serde(default = "default_name")]
    pub name: String,
    /// How many host-agents.
    pub hosts: u8,
    /// The port of the private NATS.
    pub nats_port: u16,
    /// A NATS that is not ours.
    pub external_nats: Option<String>,
    /// A PostgreSQL that is not ours.
    pub external_database: Option<String>,
    /// The guests' kernel.
    pub kernel: PathBuf,
    /// Its modules.
    pub modules: PathBuf,
    /// The static guest-agent.
    pub guest_agent: PathBuf,
    /// Warren's programs.
    pub programs: Programs,
    /// PostgreSQL and NATS.
    pub engines: Engines,
}

impl Plan {
    /// Reads the plan; nothing where no lab was ever started.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(layout: &Layout) -> Result<Option<Self>, ApiError> {
        let path = layout.plan();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(layout::at(&path, "read", &error)),
        };
        toml::from_str(&text).map(Some).map_err(|error| {
            ApiError::failed_precondition(format!("{} is not a plan of this version: {error}", path.display()))
                .hint("remove the file: `warren dev up` writes it anew")
        })
    }

    /// Writes the plan.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, layout: &Layout) -> Result<(), ApiError> {
        let text = toml::to_string(self)
            .map_err(|error| ApiError::internal(format!("the plan cannot be written as TOML: {error}")))?;
        let path = layout.plan();
        layout::write_atomically(&path, text.as_bytes(), 0o600).map_err(|error| layout::at(&path, "written", &error))
    }

    /// Makes a plan of what was asked for and what was before; names everything that is missing at once.
    ///
    /// # Errors
    /// Something is missing.
    pub fn make(layout: &Layout, global: &Global, args: &UpArgs, before: Option<&Self>) -> Result<Self, ApiError> {
        let external_nats = global.nats.clone().filter(|_| args.external_nats);
        let mut missing = Vec::new();
        let programs = Programs::find(&mut missing);
        let engines = Engines::find(args.database_url.is_none(), external_nats.is_none(), &mut missing);
        let guest = binaries::GuestFiles::find(args, layout, &mut missing);
        if !nix::unistd::geteuid().is_root() {
            missing.push("host-agents need root (namespaces, taps, disks): run it with sudo".to_owned());
        }
        let (Some(programs), Some(engines), Some(guest), true) = (programs, engines, guest, missing.is_empty()) else {
            let text = format!("the lab cannot be started:\n  {}", missing.join("\n  "));
            return Err(ApiError::failed_precondition(text).hint("`deploy/quickstart` installs and builds all of it"));
        };
        Ok(Self {
            name: match &args.name {
                Some(name) => checked_name(name)?,
                None => before.map_or_else(default_name, |plan| plan.name.clone()),
            },
            hosts: args.hosts.or(before.map(|plan| plan.hosts)).unwrap_or(1),
            nats_port: nats_port(before.map(|plan| plan.nats_port))?,
            external_nats,
            external_database: args.database_url.clone(),
            kernel: guest.kernel,
            modules: guest.modules,
            guest_agent: guest.agent,
            programs,
            engines,
        })
    }

    /// How a running lab differs from what is asked for now, in words; nothing when it does not.
    pub fn differs(&self, global: &Global, args: &UpArgs) -> Option<String> {
        if let Some(hosts) = args.hosts.filter(|hosts| *hosts != self.hosts) {
            return Some(format!("it has {} hosts, not {hosts}", self.hosts));
        }
        if args.name.as_ref().is_some_and(|name| *name != self.name) {
            return Some(format!("its hosts are called {}", self.name));
        }
        if args.database_url.is_some() && args.database_url != self.external_database {
            return Some("it uses another database".to_owned());
        }
        if args.external_nats && global.nats != self.external_nats {
            return Some("it uses another NATS".to_owned());
        }
        None
    }

    /// The ids of its hosts.
    pub fn host_ids(&self) -> Vec<String> {
        // The first keeps its id, and with it its VMs, when others join.
        let others = (2..=self.hosts).map(|n| format!("{}-{n}", self.name));
        std::iter::once(self.name.clone()).chain(others).collect()
    }

    /// Where its NATS is.
    pub fn nats_url(&self) -> String {
        self.external_nats.clone().unwrap_or_else(|| format!("nats://127.0.0.1:{}", self.nats_port))
    }

    /// Where its database is.
    pub fn database_url(&self, layout: &Layout) -> String {
        self.external_database.clone().unwrap_or_else(|| super::postgres::url(layout, super::postgres::DATABASE))
    }
}

/// A name that is a host id, also with a number behind it.
fn checked_name(name: &str) -> Result<String, ApiError> {
    let parsed: Result<HostId, _> = format!("{name}-32").parse();
    parsed.map(|_| name.to_owned()).map_err(|error| ApiError::invalid_argument(format!("--name: {error}")))
}

/// The port chosen before or NATS' own where it is free, else any free one.
fn nats_port(before: Option<u16>) -> Result<u16, ApiError> {
    let bind = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|socket| socket.local_addr());
    let wanted = [before.unwrap_or(NATS_PORT), NATS_PORT, 0];
    let found = wanted.into_iter().find_map(|port| bind(port).ok());
    found.map(|address| address.port()).ok_or_else(|| {
        ApiError::new(ErrorCode::ResourceExhausted, "no TCP port is free on 127.0.0.1")
            .hint("is the loopback interface up?")
    })
}
