//! `warren ssh`: the system's ssh client, with the VM's host key known already and its bytes carried over the bus by
//! `warren proxy`, so that no route to the VM is needed.

use std::{
    ffi::OsString,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use contract::{
    ApiError,
    vm::{self, Vm, VmRef, VmState},
    workspace::SessionKind,
};
use runtime::telemetry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    args::{Global, SshArgs},
    client::Client,
    failure::{Failure, Outcome},
    locate,
};

/// Becomes an ssh client connected to the VM.
///
/// # Errors
/// There is no such VM, or it does not run.
pub async fn run(global: &Global, args: SshArgs) -> Result<Outcome, Failure> {
    let vm = Client::connect(global).await?.ask::<vm::Get>(&VmRef { vm: args.vm.clone() }).await?;
    if vm.state != VmState::Running {
        let message = format!("{} is {}, not running", vm.name, vm.state.as_str());
        return Err(ApiError::failed_precondition(message)
            .hint(format!("`warren vm start {}` starts it", vm.name))
            .into());
    }
    let key = vm.ssh_host_key.as_deref().ok_or_else(|| {
        ApiError::failed_precondition(format!("{} has no ssh host key yet", vm.name)).hint("has its create ended?")
    })?;
    let known_hosts = write_known_host(&vm, key).map_err(|error| {
        ApiError::internal(format!("the VM's host key cannot be written down: {error}"))
            .hint("HOME or XDG_CACHE_HOME must name a directory that can be written")
    })?;
    let own = std::env::current_exe()
        .map_err(|error| ApiError::internal(format!("the path of warren itself is not known: {error}")))?;
    let mut command = std::process::Command::new("ssh");
    command.args(arguments(&vm, &own, &known_hosts, &args)?);
    // The proxy finds the lab and the trace in its environment: a URL may hold a password, and arguments are public.
    command.env("WARREN_NATS_URL", locate::nats_url(global)?);
    if let Some(credentials) = &global.nats_credentials {
        command.env("WARREN_NATS_CREDENTIALS", credentials);
    }
    if let Some(traceparent) = telemetry::current_traceparent() {
        command.env("TRACEPARENT", traceparent);
    }
    Ok(Outcome::Become(command))
}

fn alias(vm: &Vm) -> String {
    format!("warren-{}", vm.id)
}

/// The ssh client's arguments.
fn arguments(vm: &Vm, own: &Path, known_hosts: &Path, args: &SshArgs) -> Result<Vec<OsString>, ApiError> {
    let proxy = format!("ProxyCommand={} proxy {}", shell_word(own)?, vm.id);
    let options = [
        proxy,
        format!("UserKnownHostsFile={}", config_word(known_hosts)?),
        "GlobalKnownHostsFile=/dev/null".to_owned(),
        format!("HostKeyAlias={}", alias(vm)),
        "StrictHostKeyChecking=yes".to_owned(),
        "UpdateHostKeys=no".to_owned(),
        // A master connection of another VM that had this name must not be taken for this one.
        "ControlPath=none".to_owned(),
    ];
    let mut all = Vec::new();
    for option in options {
        all.extend(["-o".into(), option.into()]);
    }
    all.extend(["-l".into(), OsString::from(&args.user)]);
    all.extend(args.ssh_arg.iter().map(OsString::from));
    all.extend(["--".into(), vm.name.as_str().into()]);
    all.extend(args.command.iter().map(OsString::from));
    Ok(all)
}

fn plain_path(path: &Path) -> Result<&str, ApiError> {
    let text = path.to_str().filter(|text| !text.contains(['\n', '\0', '\r']));
    text.ok_or_else(|| ApiError::failed_precondition(format!("the path {path:?} cannot be given to ssh")))
}

/// A path as one word of ProxyCommand, which ssh expands (`%`) and gives to the user's shell.
pub(super) fn shell_word(path: &Path) -> Result<String, ApiError> {
    let text = plain_path(path)?.replace('%', "%%");
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}

/// A path as one word of an ssh option, which ssh splits at blanks and expands (`%`, `${…}`).
fn config_word(path: &Path) -> Result<String, ApiError> {
    let text = plain_path(path)?;
    if text.contains(['"', '\\']) || text.contains("${") {
        return Err(ApiError::failed_precondition(format!("the path {path:?} cannot be given to ssh"))
            .hint("let XDG_CACHE_HOME name a directory without quotes in its path"));
    }
    Ok(format!("\"{}\"", text.replace('%', "%%")))
}

/// Writes the VM's host key where only this user can write; a file a VM, because its key never changes.
fn write_known_host(vm: &Vm, key: &str) -> io::Result<PathBuf> {
    let cache = match std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => {
            PathBuf::from(std::env::var_os("HOME").ok_or_else(|| io::Error::other("HOME is not set"))?).join(".cache")
        }
    };
    let dir = cache.join("warren/known_hosts");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let (path, fresh) = (dir.join(vm.id.to_string()), dir.join(format!(".{}.{}", vm.id, std::process::id())));
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    // One line, whatever the service says.
    let key: String = key.chars().filter(|c| !c.is_control()).collect();
    writeln!(file, "{} {key}", alias(vm))?;
    std::fs::rename(&fresh, &path)?;
    Ok(path)
}

/// A VM's name as ssh may say it: names of VMs have no dots.
pub(super) fn without_domain(name: &str) -> &str {
    name.split('.').next().unwrap_or_default()
}

/// Carries ssh's bytes between standard input and output and the VM.
///
/// # Errors
/// There is no such VM, or the stream was cut.
pub async fn proxy(global: &Global, vm: String) -> Result<Outcome, Failure> {
    let stream = Client::connect(global).await?.open(without_domain(&vm), SessionKind::Ssh {}).await?;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let sending = tokio::spawn(async move {
        let sent = tokio::io::copy(&mut tokio::io::stdin(), &mut writer).await;
        if let Err(error) = sent {
            tracing::debug!(%error, "ssh's bytes could not be sent");
        }
        if let Err(error) = writer.shutdown().await {
            tracing::debug!(%error, "the stream has ended already");
        }
    });
    let mut out = tokio::io::stdout();
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let read = reader.read(&mut buffer).await;
        let n = read.map_err(|error| ApiError::unavailable(format!("the connection was cut: {error}")))?;
        if n == 0 {
            sending.abort();
            return Ok(Outcome::Done);
        }
        let written = async {
            out.write_all(&buffer[..n]).await?;
            out.flush().await
        };
        written.await.map_err(|error| Failure::writing(&error))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm() -> Vm {
        serde_json::from_value(serde_json::json!({
            "id": "0190a1b2-0000-7000-8000-000000000001", "name": "web", "state": "running", "host": "local",
            "host_down": false, "image": "0190a1b2-0000-7000-8000-000000000002", "image_name": "debian", "cpus": 1,
            "memory": 256, "disk": 2048, "address": "10.77.0.2", "mac": "02:00:00:00:00:01", "fqdn": "web.warren",
            "created_at": "2026-01-01T00:00:00Z", "ready_at": null,
        }))
        .unwrap()
    }

    #[test]
    fn ssh_gets_the_key_the_proxy_and_the_command() {
        let args = SshArgs {
            vm: "web".into(),
            user: "root".into(),
            ssh_arg: vec!["-L8080:localhost:80".into()],
            command: vec!["uname -a; hostname".into()],
        };
        let arguments = arguments(&vm(), "/opt/it's 100%/warren".as_ref(), "/home/a b/kh".as_ref(), &args).unwrap();
        let text: Vec<_> = arguments.iter().map(|a| a.to_str().unwrap()).collect();
        assert_eq!(text[1], r"ProxyCommand='/opt/it'\''s 100%%/warren' proxy 0190a1b2-0000-7000-8000-000000000001");
        assert_eq!(text[3], "UserKnownHostsFile=\"/home/a b/kh\"");
        assert!(text.contains(&"StrictHostKeyChecking=yes"));
        assert!(text.contains(&"HostKeyAlias=warren-0190a1b2-0000-7000-8000-000000000001"));
        assert_eq!(text[text.len() - 6..], ["-l", "root", "-L8080:localhost:80", "--", "web", "uname -a; hostname"]);
    }

    #[test]
    fn a_path_ssh_would_misread_is_refused() {
        assert!(shell_word("/a\nb".as_ref()).is_err());
        assert!(config_word("/a\"b".as_ref()).is_err());
        assert!(config_word("/a/${HOME}".as_ref()).is_err());
    }
}
