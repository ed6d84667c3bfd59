//! The first-boot script: run once a VM, as root, when the VM is ready. A VM that went down in its middle runs it again.

use std::{
    fs::{self, OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    process::{ExitStatus, Stdio},
};

use contract::config_drive::Settings;

use crate::process::{Environment, Launch, Program, user};

/// Where the script lies while it runs, and where it is noted that it ran, and for which VM.
const DIR: &str = "/var/lib/warren";
/// What it prints.
const LOG: &str = "/var/log/warren-user-data.log";

/// Runs the script, unless this VM ran it already. Blocking until its end.
pub fn run(settings: &Settings) {
    let Some(script) = &settings.user_data else { return };
    match run_in(Path::new(DIR), Path::new(LOG), &settings.vm_id, script, &settings.image.env) {
        Ok(None) => {}
        Ok(Some(status)) if status.success() => tracing::info!("user_data ended well; {LOG} has its output"),
        Ok(Some(status)) => tracing::error!("user_data failed with {status}; {LOG} has its output"),
        Err(error) => tracing::error!("user_data could not be run: {error}"),
    }
}

fn run_in(dir: &Path, log: &Path, vm: &str, script: &str, env: &[String]) -> io::Result<Option<ExitStatus>> {
    let (done, path) = (dir.join("user-data.done"), dir.join("user-data"));
    // The note names the VM: a disk that became another VM's image runs that VM's script.
    if fs::read_to_string(&done).is_ok_and(|text| text.trim() == vm) {
        return Ok(None);
    }
    for directory in [Some(dir), log.parent()].into_iter().flatten() {
        fs::create_dir_all(directory)?;
    }
    // Scripts hold secrets: nobody else reads it, and it goes when it has run.
    fs::set_permissions(dir, Permissions::from_mode(0o700))?;
    fs::write(&path, script)?;
    fs::set_permissions(&path, Permissions::from_mode(0o700))?;
    let output = OpenOptions::new().create(true).append(true).mode(0o600).open(log)?;
    let account = user::find("").map_err(io::Error::other)?;
    let environment = Environment::new(env, &account);
    let name = path.to_string_lossy().into_owned();
    let program = Program::find(&name, environment.path(), "/").map_err(io::Error::other)?;
    let launch = Launch { program, argv: vec![name], environment, cwd: "/".to_owned(), account, terminal: false };
    let mut command = launch.command().map_err(io::Error::other)?;
    command.stdin(Stdio::null()).stderr(output.try_clone()?).stdout(output);
    let status = command.spawn()?.wait()?;
    fs::write(&done, vm)?;
    fs::remove_file(&path)?;
    Ok(Some(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_once_a_vm_with_its_output_kept() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: scripts run as root");
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let (dir, log) = (root.path().join("lib"), root.path().join("log/user-data.log"));
        let script = "#!/bin/sh\necho \"hello $WHO\"\nexit 3\n";
        let env = ["WHO=you".to_owned()];
        let run = |vm| run_in(&dir, &log, vm, script, &env).unwrap().and_then(|status| status.code());
        assert_eq!((run("a"), run("a"), run("b")), (Some(3), None, Some(3)));
        assert_eq!(fs::read_to_string(&log).unwrap(), "hello you\nhello you\n");
        assert!(!dir.join("user-data").exists());
    }
}
