//! `warren image build`

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};

use crate::args::Waiting;

/// What to build.
#[derive(Debug, Args)]
#[command(after_help = BUILD_HELP)]
pub struct BuildArgs {
    /// The name the image gets
    pub name: String,
    /// The image it begins with: its name, id or digest, or how one of these two begins
    #[arg(long, value_name = "IMAGE")]
    pub from: String,
    /// What is done to it.
    #[command(flatten)]
    pub parts: Parts,
    /// Environment of the scripts; may be given again
    #[arg(long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Take the name from the image that has it; VMs keep the image they have
    #[arg(long)]
    pub replace: bool,
    /// Run each script, also where it is known what it gives
    #[arg(long)]
    pub no_cache: bool,
    /// Virtual CPUs of the throw-away VM
    #[arg(long)]
    pub cpus: Option<u32>,
    /// Its memory, like 512M or 2G
    #[arg(long)]
    pub memory: Option<String>,
    /// Its disk, like 10G; never less than the image
    #[arg(long)]
    pub disk: Option<String>,
    /// Whom its network reaches: isolated, lab or internet
    #[arg(long)]
    pub network: Option<String>,
    /// How long each script may run, like 90s or 2h (an hour when left out)
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<String>,
    /// Whether to wait.
    #[command(flatten)]
    pub waiting: Waiting,
}

const BUILD_HELP: &str = "\
Each --script is a step: it runs as root in a VM made of what the step before gave, by /bin/sh -eu or by what its first line \
names after #!. A step is not run again while the image it begins with, its script, environment and files are the same.

Files given before a script (with the last one, also those after it) are in its VM when it begins: at DST, where that begins \
with /, else below the directory the script runs in, which is not part of the image.

Ctrl-C cancels the build. What was printed is kept: `warren image log`.";

/// Scripts and files, in the order they were given.
#[derive(Clone, Debug, Default)]
pub struct Parts(pub Vec<Part>);

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// `--script FILE`.
    Script(PathBuf),
    /// `--file SRC:DST`.
    File(String),
}

impl Args for Parts {
    fn augment_args(command: Command) -> Command {
        let script = Arg::new("script").long("script").value_name("FILE").help("A script to run; may be given again");
        let script = script.action(ArgAction::Append).required(true).value_parser(value_parser!(PathBuf));
        let file = Arg::new("file").long("file").value_name("SRC:DST");
        let file = file.help("A file or directory put into the VM; may be given again").action(ArgAction::Append);
        command.arg(script).arg(file)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Parts {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let scripts = matches.get_many::<PathBuf>("script").into_iter().flatten().cloned().map(Part::Script);
        let files = matches.get_many::<String>("file").into_iter().flatten().cloned().map(Part::File);
        let places = |id| matches.indices_of(id).into_iter().flatten();
        let mut parts: Vec<(usize, Part)> = places("script").zip(scripts).chain(places("file").zip(files)).collect();
        parts.sort_by_key(|(place, _)| *place);
        Ok(Self(parts.into_iter().map(|(_, part)| part).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
