//! `warren vm create`: a request from a file, the arguments, or both; one VM or several.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use contract::{
    ApiError, Labels, VmName, deadline,
    feature::{DataDisk, Features, PublishedPort},
    label,
    many::{CREATE_MANY_MAX, CreateMany, CreateManyRequest},
    vm::{self, CreateRequest, VmRef},
};

use super::many;
use crate::{
    args::{CreateArgs, FeatureArgs, Global, SizeArgs},
    client::Client,
    commands::{parse, parse_some},
    failure::{Failure, Outcome},
    output::{self, Format},
    wait,
};

/// Creates VMs.
///
/// # Errors
/// What the service answered; for several, the first error of one.
pub async fn run(global: &Global, format: Format, args: CreateArgs) -> Result<Outcome, Failure> {
    let no_wait = args.waiting.no_wait;
    let pattern = args.name.clone();
    let mut file = args.file.as_deref().map(read).transpose()?;
    let named = file.as_mut().and_then(|file| file.remove("name")).and_then(|name| name.as_str().map(str::to_owned));
    let Some(name) = pattern.or(named) else {
        return Err(ApiError::invalid_argument("the VM has no name")
            .hint("say it, or write `name` into the file")
            .into());
    };
    let names = names(&name)?;
    let request = request(&names[0], file, args)?;
    let client = Client::connect(global).await?;
    if names.len() > 1 {
        return several(&client, format, names, request, no_wait).await;
    }
    let operation = client.change::<vm::Create>(&request, deadline::QUICK).await?;
    wait::settle(&client, operation, format, no_wait, async |operation| {
        let vm = client.ask::<vm::Get>(&VmRef { vm: request.name.to_string() }).await?;
        let took = operation.finished_at.map(|end| end - operation.created_at);
        let took = took.map(|took| format!(" after {:.1} s", took.as_seconds_f64())).unwrap_or_default();
        output::text(&format!("{} runs on {} with address {}{took}\n", vm.name, vm.host, vm.address))?;
        output::note(&format!("try: warren ssh {}", vm.name));
        Ok(())
    })
    .await
}

async fn several(
    client: &Client,
    format: Format,
    names: Vec<VmName>,
    request: CreateRequest,
    no_wait: bool,
) -> Result<Outcome, Failure> {
    let mut create = match serde_json::to_value(&request) {
        Ok(serde_json::Value::Object(fields)) => fields,
        other => return Err(ApiError::internal(format!("a create is no object: {other:?}")).into()),
    };
    for field in ["name", "wait", "timeout_ms"] {
        create.remove(field);
    }
    let request = CreateManyRequest { names, create, wait: false, timeout_ms: deadline::WAIT_DEFAULT_MS };
    let reply = client.change::<CreateMany>(&request, deadline::QUICK).await?;
    many::settle(client, reply, format, no_wait, "runs").await
}

/// `web-{1..3}` is web-1, web-2 and web-3; `web-{08..10}` keeps the width of its first number.
fn names(pattern: &str) -> Result<Vec<VmName>, ApiError> {
    let wrong = |why: &str| {
        ApiError::invalid_argument(format!("{pattern:?} is no name or range of names: {why}"))
            .hint("write web, or web-{1..20}")
    };
    let Some((before, rest)) = pattern.split_once('{') else { return Ok(vec![parse(pattern)?]) };
    let (range, after) = rest.split_once('}').ok_or_else(|| wrong("a `}` is missing"))?;
    let (from, to) = range.split_once("..").ok_or_else(|| wrong("between the braces stand no two numbers"))?;
    let number = |text: &str| text.parse::<usize>().map_err(|_| wrong("between the braces stand no two numbers"));
    let (first, last) = (number(from)?, number(to)?);
    if last < first || last - first >= CREATE_MANY_MAX {
        return Err(wrong(&format!("it has to be 1 to {CREATE_MANY_MAX} names")));
    }
    let width = from.len();
    (first..=last).map(|n| parse(&format!("{before}{n:0width$}{after}"))).collect()
}

/// The fields of a file, not checked yet.
fn read(path: &Path) -> Result<toml::Table, ApiError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ApiError::invalid_argument(format!("{} cannot be read: {error}", path.display())))?;
    text.parse().map_err(|error| ApiError::invalid_argument(format!("{} is no TOML: {error}", path.display())))
}

/// What the file says, with what the arguments say in its place.
fn request(name: &VmName, file: Option<toml::Table>, args: CreateArgs) -> Result<CreateRequest, ApiError> {
    let mut request = match (file, args.image.as_ref()) {
        (None, image) => CreateRequest::new(name.clone(), image.cloned().unwrap_or_default()),
        (Some(table), image) => from_table(name, table, image)?,
    };
    if let Some(image) = args.image {
        request.image = image;
    }
    sized(&mut request, &args.size)?;
    if request.ssh_keys.is_empty() || !args.ssh_key.is_empty() {
        request.ssh_keys = ssh_keys(&args.ssh_key)?;
    }
    request.restart = parse_some(args.restart.as_deref())?.unwrap_or(request.restart);
    request.ttl_seconds = args.ttl.as_deref().map(seconds).transpose()?.or(request.ttl_seconds);
    request.idle_seconds = args.idle.as_deref().map(seconds).transpose()?.or(request.idle_seconds);
    request.idle_action = parse_some(args.idle_action.as_deref())?.or(request.idle_action);
    request.deletion_protection |= args.deletion_protection;
    features(&mut request.features, &args.features)?;
    Ok(request)
}

/// What the VM is given; where nothing is said of it, it stays as it is.
pub(crate) fn sized(request: &mut CreateRequest, args: &SizeArgs) -> Result<(), ApiError> {
    request.cpus = args.cpus.unwrap_or(request.cpus);
    request.memory = parse_some(args.memory.as_deref())?.unwrap_or(request.memory);
    request.disk = parse_some(args.disk.as_deref())?.unwrap_or(request.disk);
    if let Some(host) = parse_some(args.host.as_deref())? {
        request.host = Some(host);
    }
    request.labels.extend(labels(&args.label)?);
    request.features.network = parse_some(args.network.as_deref())?.unwrap_or(request.features.network);
    Ok(())
}

pub(crate) fn from_table(
    name: &VmName,
    mut table: toml::Table,
    image: Option<&String>,
) -> Result<CreateRequest, ApiError> {
    table.insert("name".to_owned(), name.to_string().into());
    if let (Some(image), false) = (image, table.contains_key("image")) {
        table.insert("image".to_owned(), image.clone().into());
    }
    table.try_into().map_err(|error: toml::de::Error| {
        ApiError::invalid_argument(format!("the file: {}", error.message()))
            .hint("its keys are the fields of warren.vm.create")
    })
}

fn features(features: &mut Features, args: &FeatureArgs) -> Result<(), ApiError> {
    let words = |text: &String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    features.env.extend(environment(&args.env)?);
    features.entrypoint = args.entrypoint.as_ref().map(words).or(features.entrypoint.take());
    features.cmd = args.cmd.as_ref().map(words).or(features.cmd.take());
    if let Some(text) = &args.kernel {
        features.kernel = Some(parse(text)?);
    }
    if let Some(text) = &args.kernel_args {
        features.kernel_args.clone_from(text);
    }
    if let Some(path) = &args.user_data {
        let script = std::fs::read_to_string(path)
            .map_err(|error| ApiError::invalid_argument(format!("{} cannot be read: {error}", path.display())))?;
        features.user_data = Some(script);
    }
    features.disks.extend(args.data_disk.iter().map(|text| parse(text)).collect::<Result<Vec<DataDisk>, _>>()?);
    features.ports.extend(args.publish.iter().map(|text| parse(text)).collect::<Result<Vec<PublishedPort>, _>>()?);
    Ok(())
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

pub(crate) fn labels(texts: &[String]) -> Result<Labels, ApiError> {
    let read = |text: &String| label::parse(text).map_err(|error| ApiError::invalid_argument(error.to_string()));
    texts.iter().map(read).collect()
}

/// A time such as `90m` or `7days`, in whole seconds.
pub(crate) fn seconds(text: &str) -> Result<u64, ApiError> {
    humantime::parse_duration(text).map(|time| time.as_secs()).map_err(|error| {
        ApiError::invalid_argument(format!("{text:?} is no time: {error}")).hint("write it like 90s, 15m, 2h or 7days")
    })
}

/// The keys in the named files, or in all `~/.ssh/*.pub` where none is named.
fn ssh_keys(files: &[PathBuf]) -> Result<Vec<String>, ApiError> {
    if files.is_empty() {
        return Ok(default_keys());
    }
    keys_in(files)
}

/// The public keys in those files.
pub(crate) fn keys_in(files: &[PathBuf]) -> Result<Vec<String>, ApiError> {
    let mut keys = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|error| {
            ApiError::invalid_argument(format!("the key {} cannot be read: {error}", file.display()))
        })?;
        if text.contains("PRIVATE KEY") {
            let message = format!("{} is a private key", file.display());
            return Err(ApiError::invalid_argument(message).hint("name the public one, which ends in .pub"));
        }
        keys.extend(lines(&text));
    }
    Ok(keys)
}

/// The keys in all `~/.ssh/*.pub`.
pub(crate) fn default_keys() -> Vec<String> {
    let Some(home) = std::env::var_os("HOME") else { return Vec::new() };
    let Ok(entries) = std::fs::read_dir(Path::new(&home).join(".ssh")) else { return Vec::new() };
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "pub"));
    files.sort();
    // What is there by chance must not make a create fail: certificates and oddities are left out.
    let texts = files.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    let keys = texts.flat_map(|text| lines(&text));
    let usable = keys.filter(|key| key.len() <= vm::SSH_KEY_BYTES_MAX && !key.contains("-cert-v01@"));
    usable.take(vm::SSH_KEYS_MAX).collect()
}

fn lines(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_names_is_unfolded() {
        let text =
            |pattern| names(pattern).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
        assert_eq!(text("web").unwrap(), "web");
        assert_eq!(text("web-{1..3}").unwrap(), "web-1 web-2 web-3");
        assert_eq!(text("a{08..10}b").unwrap(), "a08b a09b a10b");
        for wrong in ["web-{1..", "web-{1}", "web-{3..1}", "web-{1..101}", "web-{a..b}", "Web", "web-{1..2}_"] {
            assert!(text(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn unknown_keys_of_a_file_are_refused_and_known_ones_taken() {
        let name: VmName = "web".parse().unwrap();
        let table = |text: &str| text.parse::<toml::Table>().unwrap();
        let file = "image = 'debian'\nmemory = '512M'\nports = ['8080:80']\n[[disks]]\nname = 'work'\nsize = '1G'\n[env]\nA = 'b'\n";
        let request = from_table(&name, table(file), None).unwrap();
        assert_eq!((request.memory.0, request.features.ports.len(), request.features.disks.len()), (512, 1, 1));
        assert_eq!(request.features.env["A"], "b");
        for wrong in
            ["image = 'x'\nmemroy = '1G'", "image = 'x'\n[[disks]]\nname = 'w'\nsize = '1G'\nro = true", "cpus = 1"]
        {
            assert!(from_table(&name, table(wrong), None).is_err(), "{wrong}");
        }
    }
}
