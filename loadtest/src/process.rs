//! What a **process** takes of its machine, as `/proc/<pid>` tells (proc(5)).

use anyhow::Context;

/// A number of a file of `/proc/<pid>`, e.g. `VmRSS:` of `status`, in the unit it stands there with.
///
/// # Errors
/// The process is gone, or the file lacks the key.
pub fn number(pid: u32, file: &str, key: &str) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("{file} lacks {key}"))?;
    Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
}

/// Processor time so far in seconds, its children's that have ended included: fields 14 to 17 of `/proc/<pid>/stat`, in clock ticks
/// of 1/100 s.
///
/// # Errors
/// The process is gone.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit_once(')').context("a strange stat")?.1;
    let ticks: Vec<f64> =
        rest.split_whitespace().skip(11).take(4).map(str::parse).collect::<Result<_, _>>().context("a strange stat")?;
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

/// Bytes it has had written to storage so far, its ended children's included.
///
/// # Errors
/// The process is gone.
pub fn written_bytes(pid: u32) -> anyhow::Result<f64> {
    number(pid, "io", "write_bytes:")
}

/// Makes the peak of its resident memory (`VmHWM`) begin anew.
///
/// # Errors
/// The process is gone.
pub fn forget_peak(pid: u32) -> anyhow::Result<()> {
    Ok(std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

/// The peak of its resident memory, in MiB.
///
/// # Errors
/// The process is gone.
pub fn peak_mib(pid: u32) -> anyhow::Result<f64> {
    Ok(number(pid, "status", "VmHWM:")? / 1024.0)
}

/// What of its resident memory is no file's: what it has of its own and cannot be dropped, in MiB.
///
/// # Errors
/// The process is gone.
pub fn anonymous_mib(pid: u32) -> anyhow::Result<f64> {
    Ok(number(pid, "status", "RssAnon:")? / 1024.0)
}
