//! Where the programs and files are that a lab is made of.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{args::UpArgs, layout::Layout};

/// Where `deploy/quickstart` installs.
const INSTALLED: &str = "/usr/local/lib/warren";
/// Where Debian puts PostgreSQL's server programs, a directory a version.
const POSTGRES: &str = "/usr/lib/postgresql";

/// Warren's own programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Programs {
    /// `image-service`.
    pub image_service: PathBuf,
    /// `vm-lifecycle`.
    pub vm_lifecycle: PathBuf,
    /// `workspace-service`.
    pub workspace_service: PathBuf,
    /// `host-agent`.
    pub host_agent: PathBuf,
}

impl Programs {
    /// Finds them beside `warren` itself, where they are installed, or in `PATH`.
    pub fn find(missing: &mut Vec<String>) -> Option<Self> {
        let mut dirs = Vec::new();
        if let Ok(own) = std::env::current_exe() {
            dirs.extend(own.parent().map(Path::to_owned));
        }
        dirs.push(INSTALLED.into());
        let mut find = |name: &str| {
            let found = dirs.iter().map(|dir| dir.join(name)).find(|path| path.is_file()).or_else(|| in_path(name));
            if found.is_none() {
                missing.push(format!("{name} is neither beside warren, nor in {INSTALLED}, nor in PATH"));
            }
            found
        };
        let (image, vm) = (find("image-service"), find("vm-lifecycle"));
        let (workspace, agent) = (find("workspace-service"), find("host-agent"));
        Some(Self { image_service: image?, vm_lifecycle: vm?, workspace_service: workspace?, host_agent: agent? })
    }
}

/// PostgreSQL and NATS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engines {
    /// The directory of `initdb` and `postgres`, where a private one runs.
    pub postgres: Option<PathBuf>,
    /// `nats-server`, where a private one runs.
    pub nats: Option<PathBuf>,
}

impl Engines {
    /// Finds those that are needed.
    pub fn find(postgres: bool, nats: bool, missing: &mut Vec<String>) -> Option<Self> {
        let mut needed = |wanted: bool, found: Option<PathBuf>, text: &str| {
            if wanted && found.is_none() {
                missing.push(text.to_owned());
            }
            found.filter(|_| wanted)
        };
        let postgres = needed(postgres, postgres_dir(), "PostgreSQL is not installed (Debian package postgresql)");
        let nats = needed(nats, in_path("nats-server"), "nats-server is not installed (Debian package nats-server)");
        Some(Self { postgres, nats })
    }
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // sudo and cron leave these out.
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// The newest PostgreSQL: Debian keeps each version's programs in a directory of its own.
fn postgres_dir() -> Option<PathBuf> {
    let entries = std::fs::read_dir(POSTGRES).into_iter().flatten().flatten();
    let mut versions: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, bin)| bin.join("initdb").is_file() && bin.join("postgres").is_file())
        .collect();
    versions.sort();
    let newest = versions.pop().map(|(_, bin)| bin);
    newest.or_else(|| in_path("initdb")?.parent().map(Path::to_owned).filter(|bin| bin.join("postgres").is_file()))
}

/// What guests are booted with.
pub struct GuestFiles {
    /// The kernel.
    pub kernel: PathBuf,
    /// Its modules.
    pub modules: PathBuf,
    /// The static guest-agent.
    pub agent: PathBuf,
}

impl GuestFiles {
    /// Takes those named, else those beside the state directory, else those installed.
    pub fn find(args: &UpArgs, layout: &Layout, missing: &mut Vec<String>) -> Option<Self> {
        let places = [layout.dir().parent().unwrap_or(layout.dir()).to_owned(), INSTALLED.into()];
        let mut find = |named: &Option<PathBuf>, what: &str, option: &str, search: fn(&Path) -> Option<PathBuf>| {
            if let Some(path) = named {
                let absolute = std::path::absolute(path).ok().filter(|path| path.exists());
                if absolute.is_none() {
                    missing.push(format!("{what} {} does not exist ({option})", path.display()));
                }
                return absolute;
            }
            let found = places.iter().find_map(|dir| search(dir));
            if found.is_none() {
                missing.push(format!("{what} is not in {INSTALLED}: name it with {option}"));
            }
            found
        };
        let kernel =
            find(&args.kernel, "the guests' kernel", "--kernel", |dir| newest(&dir.join("kernel/boot"), "vmlinu"));
        let modules =
            find(&args.modules, "the kernel's modules", "--modules", |dir| newest(&dir.join("kernel/lib/modules"), ""));
        let agent = find(&args.guest_agent, "the static guest-agent", "--guest-agent", |dir| {
            Some(dir.join("guest-agent")).filter(|path| path.is_file())
        });
        Some(Self { kernel: kernel?, modules: modules?, agent: agent? })
    }
}

/// The last entry by name with that beginning.
fn newest(dir: &Path, beginning: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?.flatten();
    let found = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(beginning));
    found.map(|entry| entry.path()).max()
}
