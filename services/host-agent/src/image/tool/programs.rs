//! The **programs** that images need of the host, the packages that bring them, and what `doctor` says where one is missing.

use std::path::{Path, PathBuf};

use contract::doctor::Check;

use super::PATH;

/// A package, its programs that are run, and what there is not without them.
struct Needed {
    package: &'static str,
    programs: &'static [&'static str],
    without: &'static str,
}

/// Pulls are not among them: layers are unpacked and file systems written by the host-agent itself.
const NEEDED: [Needed; 4] = [
    Needed {
        package: "e2fsprogs",
        programs: &["e2fsck", "debugfs", "dumpe2fs", "tune2fs", "resize2fs"],
        without: "no file system can be registered and no VM promoted or built in",
    },
    Needed {
        package: "tar",
        programs: &["tar"],
        without: "no directory of the host and no erofs file can be registered",
    },
    Needed { package: "squashfs-tools-ng", programs: &["sqfs2tar"], without: "no squashfs file can be registered" },
    Needed { package: "erofs-utils", programs: &["fsck.erofs"], without: "no erofs file can be registered" },
];

/// The package that brings a program.
pub(super) fn package(program: &str) -> &'static str {
    let found = NEEDED.iter().find(|needed| needed.programs.contains(&program));
    found.map_or("e2fsprogs", |needed| needed.package)
}

/// What `doctor` says of the programs, and of what the kernel has to read. Blocking.
pub(in crate::image) fn checks(docker_config: Option<&Path>) -> Vec<Check> {
    const NAME: &str = "image tools";
    let mut checks = missing(PATH);
    if !kernel_knows("erofs") {
        checks.push(
            Check::warn(NAME, "the machine's kernel knows no erofs: no erofs file can be registered")
                .mend("modprobe erofs, or install a kernel that has it: apt-get install linux-image-amd64"),
        );
    }
    if !Path::new("/dev/loop-control").exists() {
        checks.push(
            Check::warn(NAME, "there are no loop devices: no erofs file can be registered").mend("modprobe loop"),
        );
    }
    checks.extend(helpers(docker_config));
    if checks.is_empty() {
        checks.push(Check::pass(NAME, "what promote, build and register run is installed"));
    }
    checks
}

/// A check for each package that is missing in part.
fn missing(path: &str) -> Vec<Check> {
    let lacks = |needed: &Needed| {
        let absent: Vec<_> = needed.programs.iter().copied().filter(|program| !is_in(path, program)).collect();
        (!absent.is_empty()).then(|| {
            let detail = format!("the host lacks {}: {}", absent.join(", "), needed.without);
            let check = match needed.package {
                "e2fsprogs" => Check::fail("image tools", detail),
                _ => Check::warn("image tools", detail),
            };
            check.mend(format!("apt-get install {}", needed.package))
        })
    };
    NEEDED.iter().filter_map(lacks).collect()
}

fn is_in(path: &str, program: &str) -> bool {
    std::env::split_paths(path).any(|dir| dir.join(program).is_file())
}

/// Whether a file system's driver is there or comes when it is asked for.
fn kernel_knows(filesystem: &str) -> bool {
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let loaded = read("/proc/filesystems".into());
    let release = read("/proc/sys/kernel/osrelease".into());
    let modules = Path::new("/lib/modules").join(release.trim());
    let file = format!("/{filesystem}.ko");
    loaded.split_whitespace().any(|word| word == filesystem)
        || ["modules.dep", "modules.builtin"].into_iter().any(|list| read(modules.join(list)).contains(&file))
}

/// The programs that docker's configuration names for credentials, and that are not there.
fn helpers(docker_config: Option<&Path>) -> Vec<Check> {
    let dir =
        docker_config.map(Path::to_owned).or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker")));
    let text = dir.and_then(|dir| std::fs::read(dir.join("config.json")).ok());
    let config: serde_json::Value = text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let each = config["credHelpers"].as_object().into_iter().flat_map(|all| all.values());
    let mut names: Vec<_> = each.chain([&config["credsStore"]]).filter_map(serde_json::Value::as_str).collect();
    names.sort_unstable();
    names.dedup();
    let path = std::env::var("PATH").unwrap_or_default();
    let absent = names.into_iter().map(|name| format!("docker-credential-{name}")).filter(|name| !is_in(&path, name));
    absent
        .map(|name| {
            Check::warn("image tools", format!("docker's config.json asks {name} for credentials, which is not there"))
                .mend(format!("install {name} in a directory of the host-agent's PATH, or take it out of config.json"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use contract::doctor::Verdict;

    use super::*;

    #[test]
    fn what_is_missing_is_told_with_the_package_that_brings_it() {
        let dir = tempfile::tempdir().unwrap();
        for program in ["e2fsck", "debugfs", "dumpe2fs", "tune2fs", "tar", "sqfs2tar"] {
            std::fs::write(dir.path().join(program), "").unwrap();
        }
        let checks = missing(dir.path().to_str().unwrap());
        let told: Vec<_> = checks.iter().map(|check| (check.verdict, check.mend.as_deref().unwrap())).collect();
        assert_eq!(
            told,
            [(Verdict::Fail, "apt-get install e2fsprogs"), (Verdict::Warn, "apt-get install erofs-utils")]
        );
        assert!(checks[0].message.contains("lacks resize2fs:"), "{:?}", checks[0]);
        assert_eq!(missing(PATH), []);
        assert_eq!(package("sqfs2tar"), "squashfs-tools-ng");
    }

    #[test]
    fn a_credential_helper_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let config = r#"{"credsStore":"none-such","credHelpers":{"a.example":"none-such","b.example":"other"}}"#;
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let told: Vec<_> = helpers(Some(dir.path())).into_iter().map(|check| check.message).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains("docker-credential-none-such"), "{told:?}");
        assert!(helpers(Some(&dir.path().join("nothing"))).is_empty());
    }
}
