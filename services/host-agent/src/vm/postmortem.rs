//! What this host knows of a VM, for a postmortem: text, bounded, without secrets. What is not there is said to be missing; nothing
//! here needs a VM that is well.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    path::Path,
    sync::Arc,
};

use contract::{
    VmId,
    postmortem::{EVIDENCE_MAX, Evidence, EvidenceFile, EvidenceRequest, redact},
};

use super::Vms;
use crate::{
    files,
    handles::Found,
    usage::Meter,
    vmm::{jail::open_untrusted, names},
};

/// The most bytes of the console's end.
const CONSOLE: usize = 160 * 1024;
/// The most bytes of the VMM's own log's end.
const VMM_LOG: usize = 64 * 1024;
/// The most bytes of the handles.
const HANDLES: usize = 96 * 1024;
/// The most bytes of any other file.
const OTHER: usize = 8 * 1024;

const _: () = assert!(CONSOLE + VMM_LOG + HANDLES + 8 * OTHER <= EVIDENCE_MAX);

/// Gathers it.
pub async fn gather(vms: Arc<Vms>, meter: Arc<Meter>, request: EvidenceRequest) -> Evidence {
    let vm = request.vm;
    let sample = meter.samples().await.into_iter().find(|sample| sample.vm == vm);
    let seen = vms.observations().into_iter().find(|seen| seen.vm == vm);
    let pid = seen.as_ref().and_then(|seen| seen.pid);
    let mut found = Gathered::default();
    found.json("observation.json", seen.as_ref(), "the host-agent has nothing of the VM");
    found.json("usage.json", sample.as_ref(), "the VM was not measured");
    let gathered = tokio::task::spawn_blocking(move || {
        of_files(&mut found, &vms, vm);
        of_process(&mut found, &vms, vm, pid);
        found.add("host.txt", OTHER, Ok(of_host(&vms)));
        found.0
    });
    gathered.await.unwrap_or_else(|error| Evidence {
        missing: vec![format!("all of the host's evidence: {error}")],
        files: Vec::new(),
    })
}

#[derive(Default)]
struct Gathered(Evidence);

impl Gathered {
    fn add(&mut self, name: &str, most: usize, text: io::Result<String>) {
        match text {
            Ok(text) => self.0.files.push(EvidenceFile { name: name.to_owned(), text: end_of(&text, most).to_owned() }),
            Err(error) => self.0.missing.push(format!("{name}: {error}")),
        }
    }

    fn json<T: serde::Serialize>(&mut self, name: &str, value: Option<&T>, otherwise: &str) {
        let text = match value {
            Some(value) => serde_json::to_string_pretty(value).map_err(io::Error::other),
            None => Err(io::Error::new(io::ErrorKind::NotFound, otherwise.to_owned())),
        };
        self.add(name, OTHER, text);
    }
}

/// The end of a text, from a character's beginning on.
fn end_of(text: &str, most: usize) -> &str {
    let mut from = text.len().saturating_sub(most);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

fn of_files(found: &mut Gathered, vms: &Vms, vm: VmId) {
    let dir = vms.dir(vm);
    found.add("handles.json", HANDLES, handles(vms, vm));
    found.add("console.log", CONSOLE, tail(&dir.join(names::CONSOLE), CONSOLE));
    found.add("vmm.log", VMM_LOG, tail(&dir.join(names::VMM_LOG), VMM_LOG));
    found.add("files.txt", OTHER, listing(&dir));
}

fn handles(vms: &Vms, vm: VmId) -> io::Result<String> {
    match vms.deps().dirs.load(vm)? {
        Found::Whole(handles) => {
            let mut value = serde_json::to_value(&handles)?;
            redact(&mut value);
            Ok(serde_json::to_string_pretty(&value)?)
        }
        Found::Nothing => Err(io::Error::new(io::ErrorKind::NotFound, "there are none")),
        // What cannot be parsed cannot be rid of its secrets either.
        Found::Damaged(why) => Err(io::Error::other(why)),
    }
}

/// The last bytes of a file that a guest may have written to, made safe to print.
fn tail(path: &Path, most: usize) -> io::Result<String> {
    let most = most as u64;
    let mut file = open_untrusted(path, OpenOptions::new().read(true))?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.chars().filter(|c| *c == '\n' || *c == '\t' || !c.is_control()).collect())
}

/// What is in the VM's directory, and how large.
fn listing(dir: &Path) -> io::Result<String> {
    use std::os::unix::fs::MetadataExt;
    let mut text = String::new();
    for dir in [dir.to_owned(), dir.join(names::RUN)] {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let (metadata, name) = (fs::symlink_metadata(entry.path())?, entry.file_name());
            let line = format!(
                "{:o} {} {} bytes, {} on disk, {}\n",
                metadata.mode(),
                metadata.uid(),
                metadata.len(),
                metadata.blocks() * 512,
                name.to_string_lossy().escape_default()
            );
            text.push_str(&line);
        }
    }
    Ok(text)
}

fn of_process(found: &mut Gathered, vms: &Vms, vm: VmId, pid: Option<u32>) {
    match pid {
        None => found.0.missing.push("vmm-command.txt, vmm-status.txt: no VMM runs".to_owned()),
        Some(pid) => {
            let command = fs::read(format!("/proc/{pid}/cmdline"));
            let words = command.map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', "\n"));
            found.add("vmm-command.txt", OTHER, words);
            let proc = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
            let status =
                proc("status").and_then(|status| Ok(format!("{status}\n{}\n{}", proc("limits")?, proc("stat")?)));
            found.add("vmm-status.txt", OTHER, status);
        }
    }
    let group = match &vms.deps().cgroups {
        None => Err(io::Error::other("the machine has no cgroup v2")),
        Some(cgroups) => Some(cgroups.describe(vm))
            .filter(|text| !text.is_empty())
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the VM has no control group")),
    };
    found.add("cgroup.txt", OTHER, group);
}

/// The host itself: versions, load, room.
fn of_host(vms: &Vms) -> String {
    let deps = vms.deps();
    let proc = |file: &str| fs::read_to_string(Path::new("/proc").join(file)).unwrap_or_else(|error| error.to_string());
    let free =
        files::free_bytes(&deps.state_dir).map_or_else(|error| error.to_string(), |free| format!("{} MiB", free >> 20));
    let memory: String = proc("meminfo").lines().take(5).map(|line| format!("  {line}\n")).collect();
    let lines = [
        ("host-agent", env!("CARGO_PKG_VERSION").to_owned()),
        ("vmm", deps.vmm.name().to_owned()),
        ("default guest kernel", deps.kernels.get(None, None).map_or_else(|error| error.message, |boot| boot.release)),
        ("host kernel", proc("version")),
        ("uptime in seconds", proc("uptime")),
        ("load", proc("loadavg")),
        ("free disk", free),
        ("vms here", vms.observations().len().to_string()),
    ];
    let text: String = lines.iter().map(|(name, value)| format!("{name}: {}\n", value.trim())).collect();
    text + "memory:\n" + &memory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_text_the_end_is_kept_whatever_its_characters_are() {
        assert_eq!(end_of("abc", 5), "abc");
        assert_eq!(end_of("abc", 2), "bc");
        assert_eq!(end_of("aäö", 3), "ö");
    }

    #[test]
    fn a_guests_bytes_are_bounded_and_made_safe() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        fs::write(&path, [&[b'x'; 100][..], b"\x1b[2J\xff\0end\n"].concat()).unwrap();
        assert_eq!(tail(&path, 10).unwrap(), "[2J\u{fffd}end\n");
        std::os::unix::fs::symlink("/etc/shadow", dir.path().join("link")).unwrap();
        assert!(tail(&dir.path().join("link"), 10).is_err());
    }
}
