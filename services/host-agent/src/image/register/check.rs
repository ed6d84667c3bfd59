//! What a root filesystem is **checked** for before it is an image: that it is whole, and that there is something in it to run.

use std::{collections::BTreeSet, path::Path};

use contract::{ApiError, OperationId, image::ImageConfig};
use tokio_util::sync::CancellationToken;

use super::super::{bundle::superblock, progress::Reporter, storage_error, tool::Patient};

/// What e2fsck takes for the present time: it writes nothing.
const NOW: u64 = 1;
/// What is run where nobody says what to run: an init that becomes PID 1, or a shell for whoever logs in.
const RUNNABLE: [&str; 8] = [
    "/sbin/init",
    "/usr/sbin/init",
    "/lib/systemd/systemd",
    "/usr/lib/systemd/systemd",
    "/bin/sh",
    "/usr/bin/sh",
    "/bin/busybox",
    "/bin/bash",
];

/// Looks at a root filesystem that anybody may have written, with tools in a cage.
///
/// # Errors
/// `invalid_argument` for what is no root filesystem, `failed_precondition` for one that has to be mended first.
pub(super) fn root(
    path: &Path,
    operation: OperationId,
    config: &ImageConfig,
    progress: &Reporter,
    cancel: &CancellationToken,
) -> Result<(), ApiError> {
    progress.phase("checking", 0);
    let patient = Patient::take(path, operation, NOW, cancel)?;
    let checked = looked_at(&patient, config);
    patient.give_back()?;
    checked
}

fn looked_at(patient: &Patient<'_>, config: &ImageConfig) -> Result<(), ApiError> {
    let path = patient.path();
    let size = patient.file().metadata().map_err(|error| storage_error(path, &error))?.len();
    superblock::check(path, size)?;
    superblock::check_unmounted(path)?;
    whole(patient)?;
    runnable(patient, config)
}

fn whole(patient: &Patient<'_>) -> Result<(), ApiError> {
    let said = patient.run("e2fsck", &["-f", "-n"], &[], b"", &[])?;
    if said.code() == Some(0) {
        return Ok(());
    }
    tracing::info!(code = ?said.code(), output = %String::from_utf8_lossy(&said.output), "a root filesystem is refused");
    let complaint = String::from_utf8_lossy(&said.output);
    let complaint = complaint.lines().find(|line| line.ends_with("no") || line.contains("No? ")).unwrap_or_default();
    let complaint: String = complaint.chars().filter(|c| !c.is_control()).take(160).collect();
    let why = if complaint.is_empty() { said.last_line() } else { complaint };
    Err(ApiError::failed_precondition(format!("the filesystem has errors: {why}"))
        .hint("mend it with `e2fsck -f FILE`, then do it again"))
}

fn runnable(patient: &Patient<'_>, config: &ImageConfig) -> Result<(), ApiError> {
    let asked = config.entrypoint.first().or(config.cmd.first());
    // A program without a slash is looked up in the VM's PATH.
    if let Some(program) = asked {
        if !program.starts_with('/') || !there(patient, &[program])?.is_empty() {
            return Ok(());
        }
        return Err(ApiError::invalid_argument(format!("the filesystem has no {program:?}, which is to be run"))
            .hint("the entrypoint is a path in the root filesystem, or a program found in the VM's PATH"));
    }
    if there(patient, &RUNNABLE)?.is_empty() {
        return Err(ApiError::invalid_argument("the filesystem is no root filesystem: it has no init and no shell")
            .hint(format!("one of {} has to be there; or say what to run with an entrypoint", RUNNABLE.join(", "))));
    }
    Ok(())
}

/// Which of some paths the filesystem has.
fn there(patient: &Patient<'_>, paths: &[&str]) -> Result<BTreeSet<usize>, ApiError> {
    let mut found = BTreeSet::new();
    for (n, path) in paths.iter().enumerate() {
        if path.contains(['"', '\\']) || path.contains(char::is_control) {
            continue;
        }
        let said = patient.run("debugfs", &["-R", &format!("stat \"{path}\"")], &[], b"", &[])?;
        if String::from_utf8_lossy(&said.output).lines().any(|line| line.starts_with("Inode: ")) {
            found.insert(n);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileExt, process::Command};

    use contract::ErrorCode;

    use super::*;

    fn filesystem(dir: &Path, files: &[&str]) -> std::path::PathBuf {
        let (tree, path) = (dir.join("tree"), dir.join("fs"));
        fs::create_dir_all(&tree).unwrap();
        for file in files {
            fs::create_dir_all(tree.join(file).parent().unwrap()).unwrap();
            fs::write(tree.join(file), "#!").unwrap();
        }
        let made = Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&tree).arg(&path).arg("8M").output();
        assert!(made.unwrap().status.success());
        path
    }

    fn checked(path: &Path, entrypoint: &[&str]) -> Result<(), ApiError> {
        let entrypoint = entrypoint.iter().map(ToString::to_string).collect();
        let config = ImageConfig { entrypoint, ..ImageConfig::default() };
        root(path, OperationId::new(), &config, &Reporter::default(), &CancellationToken::new())
    }

    #[test]
    fn a_root_filesystem_has_something_to_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = filesystem(dir.path(), &["bin/sh", "app"]);
        checked(&path, &[]).unwrap();
        checked(&path, &["/app"]).unwrap();
        checked(&path, &["app"]).unwrap();
        let error = checked(&path, &["/none"]).unwrap_err();
        assert!(error.message.contains("/none"), "{error}");
        let other = tempfile::tempdir().unwrap();
        let path = filesystem(other.path(), &["app"]);
        checked(&path, &["/app"]).unwrap();
        let error = checked(&path, &[]).unwrap_err();
        assert!(error.code == ErrorCode::InvalidArgument && error.message.contains("no init and no shell"), "{error}");
    }

    #[test]
    fn a_damaged_one_and_one_in_use_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = filesystem(dir.path(), &["bin/sh"]);
        let file = fs::OpenOptions::new().write(true).read(true).open(&path).unwrap();
        let whole = fs::read(&path).unwrap();
        // needs_recovery, as on a mounted one.
        file.write_all_at(&[whole[1024 + 0x60] | 4], 1024 + 0x60).unwrap();
        let error = checked(&path, &[]).unwrap_err();
        assert!(
            error.code == ErrorCode::FailedPrecondition && error.hint.unwrap().contains("unmount"),
            "{}",
            error.message
        );
        fs::write(&path, &whole).unwrap();
        checked(&path, &[]).unwrap();
        // The root directory's inode.
        let debugfs = Command::new("debugfs").args(["-w", "-R", "clri <2>"]).arg(&path).output().unwrap();
        assert!(debugfs.status.success());
        let error = checked(&path, &[]).unwrap_err();
        assert!(error.code == ErrorCode::FailedPrecondition && error.message.contains("has errors"), "{error}");
    }
}
