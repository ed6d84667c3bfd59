//! `warren exec` and `warren job`.

use std::ffi::{OsStr, OsString};

use clap::{Args, Subcommand};

use super::CommandArgs;

const JOBS: &str = "\
A command that is detached (-d) or has a name (--name) is a job: it goes on when nobody is attached, and what it prints is
remembered (the last 512 KiB). Jobs outlive this client and the host-agent, not the VM.
  warren exec ls VM              the commands that run in a VM, and jobs that have ended
  warren exec attach VM JOB      come back to a job: what is remembered, then what it prints, and its input
  warren exec logs VM JOB [-f]   only what it prints
  warren exec kill VM JOB        send it a signal
A VM that is called `ls` is meant where `--` follows: warren exec ls -- uname

Ctrl-C reaches the command; pressed a third time it leaves it, which ends a command that is no job. On a job's terminal Ctrl-C is
typed into it, and Ctrl-P Ctrl-Q leaves it.";

/// `warren exec`
#[derive(Debug, Args)]
#[command(after_help = JOBS)]
pub struct ExecArgs {
    /// Name or id of the VM
    pub vm: String,
    /// Print the job's name and let it run; see below
    #[arg(short, long)]
    pub detach: bool,
    /// Keep it as a job of this name when this client is cut off or leaves
    #[arg(long)]
    pub name: Option<String>,
    /// The command.
    #[command(flatten)]
    pub command: CommandArgs,
}

/// `warren job …`
#[derive(Debug, Subcommand)]
pub enum JobCommand {
    /// List the commands that run in a VM, and jobs that have ended; those in parentheses end with their client
    #[command(visible_alias = "list")]
    Ls {
        /// Name or id of the VM
        vm: String,
    },
    /// Come back to a job; ends with its exit code. Whoever was attached before is left without
    Attach {
        /// Name or id of the VM
        vm: String,
        /// The job's name
        job: String,
        /// Leave the job's standard input alone
        #[arg(long)]
        no_stdin: bool,
    },
    /// Print what is remembered of a job's output
    Logs {
        /// Name or id of the VM
        vm: String,
        /// The job's name
        job: String,
        /// Go on with what it prints until it has ended
        #[arg(short, long)]
        follow: bool,
        /// Only the last so many bytes
        #[arg(long, value_name = "BYTES")]
        tail: Option<u64>,
    },
    /// Send a signal to a job's processes
    Kill {
        /// Name or id of the VM
        vm: String,
        /// The job's name
        job: String,
        /// Its name or number
        #[arg(short, long, default_value = "TERM")]
        signal: String,
    },
}

/// Reads `warren exec ls …` as `warren job ls …` where no `--` follows, so that VMs may be called anything.
pub fn without_exec(mut arguments: Vec<OsString>) -> Vec<OsString> {
    const WORDS: [&str; 5] = ["ls", "list", "attach", "logs", "kill"];
    let at = arguments
        .windows(2)
        .position(|pair| pair[0] == OsStr::new("exec") && WORDS.iter().any(|word| pair[1] == OsStr::new(word)));
    if let Some(at) = at
        && arguments.iter().all(|argument| argument != OsStr::new("--"))
    {
        arguments[at] = "job".into();
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_found_below_exec_and_a_vm_may_be_called_like_a_verb() {
        let read = |line: &str| {
            let words = without_exec(line.split(' ').map(OsString::from).collect());
            words.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(read("warren -o json exec ls web"), "warren -o json job ls web");
        assert_eq!(read("warren exec kill web j -s INT"), "warren job kill web j -s INT");
        for same in ["warren exec ls -- true", "warren exec web -- exec ls", "warren exec -d ls -- x", "warren vm ls"] {
            assert_eq!(read(same), same);
        }
    }
}
