//! `warren image build`: sends scripts and files, and shows what the scripts print.

mod files;

use std::{collections::BTreeMap, path::Path};

use contract::{
    ApiError, deadline,
    image::{self, BuildFiles, BuildRequest, BuildStep, Built, INLINE_MAX, TITLE_MAX},
    operation::{self, Operation, OperationRef, OperationState},
};

use self::files::{Files, Stored};
use super::log;
use crate::{
    args::{
        Global,
        image::{BuildArgs, Part, Parts},
    },
    client::Client,
    commands::{parse, parse_some},
    failure::{Failure, Outcome, SIGINT_EXIT},
    output::{self, Format},
    wait,
};

/// Builds, and shows what is here now.
pub(super) async fn run(global: &Global, format: Format, args: BuildArgs) -> Result<Outcome, Failure> {
    let (mut request, files) = request(&args)?;
    let client = Client::connect(global).await?;
    let stored = place(&client, &mut request, files).await?;
    let operation = client.change::<image::Build>(&request, deadline::QUICK).await;
    if args.waiting.no_wait && operation.is_ok() {
        // What was stored for it goes by itself, once it is a day old.
        return wait::settle(&client, operation?, format, true, async |_| Ok(())).await;
    }
    let ended = match operation {
        Ok(operation) => follow(&client, operation, format).await,
        Err(error) => Err(error.into()),
    };
    if needs_no_files(&ended) {
        for object in stored {
            object.remove(&client).await;
        }
    }
    let Watched::Ended(operation) = ended? else { return Ok(Outcome::Exit(SIGINT_EXIT)) };
    let operation = wait::succeeded(*operation)?;
    match format {
        Format::Json => output::json(&operation)?,
        Format::Table => tell(&operation)?,
    }
    Ok(Outcome::Done)
}

fn tell(operation: &Operation) -> Result<(), Failure> {
    let result = operation.result.clone().unwrap_or_default();
    let built: Built = serde_json::from_value(result)
        .map_err(|error| ApiError::internal(format!("the result of the build cannot be read: {error}")))?;
    let size = indicatif::BinaryBytes(built.image.rootfs_bytes);
    output::text(&format!("image {} is here: {} ({size})\n", built.image.name, built.image.digest))
}

/// How the watching of a build ended.
#[derive(Debug)]
enum Watched {
    /// With the build.
    Ended(Box<Operation>),
    /// With the build, which was called off here.
    CalledOff,
    /// Before it: the build goes on.
    Left,
}

/// Whether the files that were stored for it are of no use any more. A build whose watcher ended badly goes on, and one whose acceptance
/// is not known may: what these need goes by itself once it is old.
fn needs_no_files(ended: &Result<Watched, Failure>) -> bool {
    matches!(ended, Ok(Watched::Ended(_) | Watched::CalledOff))
}

/// Shows the log until the build has ended. Ctrl-C cancels it, and its undo is waited for; once more leaves it.
async fn follow(client: &Client, operation: Operation, format: Format) -> Result<Watched, Failure> {
    let id = operation.id;
    let build = id.to_string();
    let shown = async {
        match format {
            Format::Table => log::print(client, &build, true, format).await?,
            Format::Json => {}
        }
        wait::follow(client, operation, None, |_| Ok(())).await
    };
    tokio::pin!(shown);
    let mut cancelled = false;
    loop {
        tokio::select! {
            ended = &mut shown => {
                let operation = ended?;
                let called_off = cancelled && operation.state == OperationState::Cancelled;
                return Ok(if called_off { Watched::CalledOff } else { Watched::Ended(Box::new(operation)) });
            }
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.map_err(|error| ApiError::internal(format!("Ctrl-C cannot be seen: {error}")))?;
                if cancelled {
                    output::note(&format!("the build is left to be cancelled: `warren op wait {id}` waits for that"));
                    return Ok(Watched::Left);
                }
                cancelled = true;
                output::note("the build is being cancelled");
                client.change::<operation::Cancel>(&OperationRef { id }, deadline::QUICK).await?;
            }
        }
    }
}

/// What is asked for, and the files of each step, which are not in it yet.
fn request(args: &BuildArgs) -> Result<(BuildRequest, Vec<Option<Files>>), Failure> {
    let env = environment(&args.env)?;
    let (mut steps, mut files) = (Vec::new(), Vec::new());
    for (script, given) in grouped(&args.parts)? {
        steps.push(BuildStep { title: title(script), script: read(script)?, env: env.clone(), files: None });
        files.push(if given.is_empty() { None } else { Some(Files::pack(&given)?) });
    }
    // The defaults are the service's.
    let least =
        serde_json::json!({ "name": parse::<contract::ImageName>(&args.name)?, "base": args.from, "steps": steps });
    let mut request: BuildRequest = serde_json::from_value(least)
        .map_err(|error| ApiError::internal(format!("the request cannot be made: {error}")))?;
    (request.replace, request.no_cache) = (args.replace, args.no_cache);
    request.cpus = args.cpus.unwrap_or(request.cpus);
    request.memory = parse_some(args.memory.as_deref())?.unwrap_or(request.memory);
    request.disk = parse_some(args.disk.as_deref())?.unwrap_or(request.disk);
    request.network = parse_some(args.network.as_deref())?.unwrap_or(request.network);
    if let Some(text) = &args.timeout {
        let time = humantime::parse_duration(text).map_err(|error| {
            ApiError::invalid_argument(format!("{text:?} is no time: {error}")).hint("write 90s, 30m or 2h")
        })?;
        request.script_seconds = time.as_secs();
    }
    Ok((request, files))
}

/// Each script with the files that were given for it: those before it, and with the last one also those after it.
fn grouped(parts: &Parts) -> Result<Vec<(&Path, Vec<&str>)>, ApiError> {
    let mut steps: Vec<(&Path, Vec<&str>)> = Vec::new();
    let mut files = Vec::new();
    for part in &parts.0 {
        match part {
            Part::File(file) => files.push(file.as_str()),
            Part::Script(script) => steps.push((script.as_path(), std::mem::take(&mut files))),
        }
    }
    let last = steps
        .last_mut()
        .ok_or_else(|| ApiError::invalid_argument("no script is given").hint("give one with --script"))?;
    last.1.append(&mut files);
    Ok(steps)
}

fn title(script: &Path) -> String {
    let name = script.file_name().unwrap_or_default().to_string_lossy();
    name.chars().map(|c| if c.is_control() { '?' } else { c }).take(TITLE_MAX).collect()
}

fn read(script: &Path) -> Result<String, ApiError> {
    let bytes = std::fs::read(script)
        .map_err(|error| ApiError::invalid_argument(format!("{} cannot be read: {error}", script.display())))?;
    String::from_utf8(bytes).map_err(|_| {
        ApiError::invalid_argument(format!("{} is no text", script.display()))
            .hint("a program goes into --file, and the script runs it")
    })
}

fn environment(texts: &[String]) -> Result<BTreeMap<String, String>, ApiError> {
    let read = |text: &String| {
        let (name, value) = text.split_once('=').ok_or_else(|| {
            ApiError::invalid_argument(format!("{text:?} is no environment variable")).hint("write NAME=VALUE")
        })?;
        Ok((name.to_owned(), value.to_owned()))
    };
    texts.iter().map(read).collect()
}

/// Puts files into the request where there is room, else into an object store; what was stored.
async fn place(client: &Client, request: &mut BuildRequest, files: Vec<Option<Files>>) -> Result<Vec<Stored>, Failure> {
    let scripts = |step: &BuildStep| step.script.len() + step.env.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>();
    let mut room = INLINE_MAX.saturating_sub(request.steps.iter().map(scripts).sum());
    // References to objects are in it too.
    room = room.saturating_sub(request.steps.len() * 256);
    let mut stored = Vec::new();
    for (step, files) in request.steps.iter_mut().zip(files) {
        let Some(files) = files else { continue };
        if files.encoded() <= room {
            room -= files.encoded();
            step.files = Some(BuildFiles::Inline(files.inline()?));
            continue;
        }
        let object = Stored::put(client, files).await?;
        step.files = Some(object.files());
        stored.push(object);
    }
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_belong_to_the_script_after_them() {
        let script = |name: &str| Part::Script(name.into());
        let file = |name: &str| Part::File(name.into());
        let parts = Parts(vec![file("a"), script("1"), file("b"), file("c"), script("2"), file("d")]);
        let grouped = grouped(&parts).unwrap();
        let shown: Vec<_> = grouped.iter().map(|(script, files)| (script.to_str().unwrap(), files.clone())).collect();
        assert_eq!(shown, [("1", vec!["a"]), ("2", vec!["b", "c", "d"])]);
        assert!(super::grouped(&Parts(vec![file("a")])).is_err());
    }

    #[test]
    fn files_stay_while_a_build_may_need_them() {
        assert!(needs_no_files(&Ok(Watched::CalledOff)));
        assert!(!needs_no_files(&Ok(Watched::Left)));
        // `warren image build … | head`: nobody reads any more.
        let closed = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert!(!needs_no_files(&Err(ApiError::unavailable(closed.to_string()).into())));
    }

    #[test]
    fn a_title_is_a_line() {
        assert_eq!(title(Path::new("dir/set\nup.sh")), "set?up.sh");
        assert_eq!(title(Path::new("..")), "");
    }
}
