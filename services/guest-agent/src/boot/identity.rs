//! The VM's identity inside its root filesystem: host name, `/etc/hosts`, `/etc/resolv.conf`.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use contract::config_drive::{Network, Settings};

use super::{BootError, During};

/// The most bytes of an image's own file that are read to be amended.
const FILE_MAX: u64 = 1024 * 1024;

/// Applies the settings to the root filesystem at `root`; says of each step what it was and how it went.
pub fn apply(root: &Path, settings: &Settings) -> Vec<(&'static str, Result<(), BootError>)> {
    let name = settings.name.as_str();
    let etc = root.join("etc");
    let mut outcomes = vec![
        ("set the host name", nix::unistd::sethostname(name).during("set it")),
        ("create /etc", fs::create_dir_all(&etc).during("create it")),
        ("write /etc/hostname", replace(&etc.join("hostname"), &format!("{name}\n")).during("write it")),
        ("amend /etc/hosts", amend_hosts(&etc.join("hosts"), settings).during("write it")),
    ];
    if let Some(network) = &settings.network {
        let text = resolv_conf(network, &settings.domain);
        outcomes.push(("write /etc/resolv.conf", replace(&etc.join("resolv.conf"), &text).during("write it")));
    }
    outcomes
}

/// Makes `path` a regular file with that text. A symlink is replaced, never followed: it would lead out of the
/// new root, or into `/run`, where a resolver of the image has not put anything yet. Unchanged text is left alone.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let plain = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file());
    if plain && fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(());
    }
    let fresh: PathBuf = path.with_extension("warren-new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&fresh)
        .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()))?;
    fs::rename(&fresh, path)
}

fn resolv_conf(network: &Network, domain: &str) -> String {
    let mut text = String::from("# Written by guest-agent at each boot.\n");
    if !domain.is_empty() {
        text.push_str(&format!("search {domain}\n"));
    }
    for server in &network.dns {
        text.push_str(&format!("nameserver {server}\n"));
    }
    text
}

fn amend_hosts(path: &Path, settings: &Settings) -> io::Result<()> {
    let mut old = String::new();
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => {
            let bytes = fs::File::open(path)?.take(FILE_MAX + 1).read_to_string(&mut old)?;
            if bytes as u64 > FILE_MAX {
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the image's own is over 1 MiB"));
            }
        }
        _ => {}
    }
    replace(path, &hosts(&old, settings))
}

/// The image's own hosts, with what is missing added, and an earlier boot's own line renewed.
fn hosts(old: &str, settings: &Settings) -> String {
    const OURS: &str = "# warren";
    let mut text: String = old.lines().filter(|line| !line.ends_with(OURS)).flat_map(|line| [line, "\n"]).collect();
    let knows = |text: &str, name: &str| {
        text.lines().any(|line| {
            let line = line.split('#').next().unwrap_or_default();
            line.split_whitespace().skip(1).any(|known| known == name)
        })
    };
    if !knows(&text, "localhost") {
        text.push_str("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    }
    let name = settings.name.as_str();
    if !knows(&text, name) {
        let address = settings.network.as_ref().map_or_else(|| "127.0.1.1".into(), |n| n.address.addr().to_string());
        let domain = &settings.domain;
        let long = if domain.is_empty() { String::new() } else { format!("{name}.{domain} ") };
        text.push_str(&format!("{address} {long}{name} {OURS}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        let json = r#"{"vm_id":"x","name":"web","domain":"warren","network":{"mac":"52:54:00:00:00:01",
            "address":"10.77.0.5/24","gateway":"10.77.0.1","dns":["10.77.0.1"]},"ssh_keys":[],"ssh_host_key":"","image":{}}"#;
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn hosts_gain_only_what_is_missing_and_a_second_boot_changes_nothing() {
        let once = hosts("127.0.0.1 localhost box\n10.0.0.9 db # mine\n", &settings());
        assert_eq!(once, "127.0.0.1 localhost box\n10.0.0.9 db # mine\n10.77.0.5 web.warren web # warren\n");
        assert_eq!(hosts(&once, &settings()), once);
        assert!(hosts("", &settings()).starts_with("127.0.0.1 localhost\n"));
    }

    #[test]
    fn a_link_to_somewhere_else_is_replaced_and_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (outside, link) = (directory.path().join("outside"), directory.path().join("resolv.conf"));
        fs::write(&outside, "keep").unwrap();
        std::os::unix::fs::symlink(&outside, &link).unwrap();
        replace(&link, "nameserver 10.77.0.1\n").unwrap();
        assert_eq!(fs::read_to_string(&outside).unwrap(), "keep");
        assert_eq!(fs::read_to_string(&link).unwrap(), "nameserver 10.77.0.1\n");
        assert!(fs::symlink_metadata(&link).unwrap().is_file());
    }

    #[test]
    fn resolv_conf_names_domain_and_servers() {
        let settings = settings();
        let text = resolv_conf(settings.network.as_ref().unwrap(), "warren");
        assert!(text.ends_with("search warren\nnameserver 10.77.0.1\n"));
    }
}
