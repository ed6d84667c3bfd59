//! What people use without Warren: programs over OpenSSH, to guest-agent's ssh server on the VM's own address.

use std::{
    io::Read,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};

/// How the VM is reached.
pub struct Ssh {
    /// The host's network namespace.
    pub namespace: String,
    /// The operator's key.
    pub key: PathBuf,
    /// The VM's address.
    pub address: String,
    /// Its ssh port.
    pub port: u64,
}

/// Makes a key for one measurement.
pub fn make_key(dir: &Path) -> anyhow::Result<PathBuf> {
    let path = dir.join("key");
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path).status()?;
    ensure!(made.success(), "ssh-keygen failed: {made}");
    Ok(path)
}

impl Ssh {
    /// ssh and its options, in the host's network. `-v` has it say how many bytes it moved.
    fn words(&self) -> Vec<String> {
        let key = self.key.display().to_string();
        let fixed = [
            "nsenter",
            &format!("--net={}", self.namespace),
            "ssh",
            "-v",
            "-F",
            "/dev/null",
            "-i",
            &key,
            "-p",
            &self.port.to_string(),
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "IdentitiesOnly=yes",
            "-l",
            "root",
        ]
        .map(str::to_owned);
        fixed.into()
    }

    fn command(&self, script: &str) -> Command {
        let words = self.words();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(&self.address).arg(script).stderr(Stdio::piped());
        command
    }

    /// Runs a script in the VM.
    pub fn run(&self, script: &str) -> anyhow::Result<u64> {
        moved(&self.command(script).stdin(Stdio::null()).stdout(Stdio::null()).output()?)
    }

    /// `git clone`, or `git fetch` where it was cloned: the far git speaks to `git upload-pack` here through the connection, as with an ssh URL.
    pub fn clone_git(&self, source: &Path, place: &str, again: bool) -> anyhow::Result<u64> {
        // git's helper has other standard streams than git itself: the connection goes to it under other numbers.
        let streams = "exec 3<&0 4>&1 </dev/null >/dev/null";
        let script = match again {
            false => format!("{streams}; git clone -q fd::3,4 {place}"),
            true => format!("{streams}; git -C {place} fetch -q fd::3,4"),
        };
        let (here, there) = UnixStream::pair()?;
        let mut serving = Command::new("git")
            .args(["-c", "safe.directory=*", "upload-pack", "--strict"])
            .arg(source.join(".git"))
            .stdin(OwnedFd::from(here.try_clone()?))
            .stdout(OwnedFd::from(here))
            .spawn()?;
        let cloning =
            self.command(&script).stdin(OwnedFd::from(there.try_clone()?)).stdout(OwnedFd::from(there)).spawn()?;
        let output = cloning.wait_with_output()?;
        serving.wait()?;
        moved(&output)
    }

    /// `tar | ssh tar`, which is the same each time.
    pub fn tar(&self, source: &Path, place: &str, _again: bool) -> anyhow::Result<u64> {
        let mut packing =
            Command::new("tar").arg("-C").arg(source).args(["-cf", "-", "."]).stdout(Stdio::piped()).spawn()?;
        let archive = packing.stdout.take().context("tar has no output")?;
        let unpacking = self
            .command(&format!("mkdir -p {place} && tar -C {place} -xf -"))
            .stdin(archive)
            .stdout(Stdio::null())
            .spawn()?;
        let output = unpacking.wait_with_output()?;
        ensure!(packing.wait()?.success(), "tar failed");
        moved(&output)
    }

    /// `rsync -a`.
    pub fn rsync(&self, source: &Path, place: &str, _again: bool) -> anyhow::Result<u64> {
        let mut command = Command::new("rsync");
        command.args(["-a", "--delete", "-e", &self.words().join(" ")]).arg(format!("{}/", source.display()));
        command.arg(format!("{}:{place}/", self.address)).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let mut said = Vec::new();
        child.stderr.take().context("rsync has no error output")?.read_to_end(&mut said)?;
        moved(&std::process::Output { status: child.wait()?, stdout: Vec::new(), stderr: said })
    }
}

/// The bytes that ssh says it moved, both ways.
fn moved(output: &std::process::Output) -> anyhow::Result<u64> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{}: {}",
        output.status,
        said.lines().filter(|line| !line.starts_with("debug1")).collect::<Vec<_>>().join("\n")
    );
    // "Transferred: sent 3460, received 3244 bytes, in 0.1 seconds"
    let line =
        said.lines().find(|line| line.starts_with("Transferred: sent ")).context("ssh did not say what it moved")?;
    let numbers = line.split([' ', ',']).filter_map(|word| word.parse::<u64>().ok());
    Ok(numbers.take(2).sum())
}
