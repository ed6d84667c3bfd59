//! `warren image register`

use std::path::Path;

use contract::{
    ApiError, deadline,
    image::{self, FileSource, ImageConfig, RegisterRequest},
};
use serde::Deserialize;

use super::made;
use crate::{
    args::{Global, image::RegisterArgs},
    client::Client,
    commands::{parse, parse_some},
    failure::{Failure, Outcome},
    output::Format,
    upload::{Opened, Upload},
};

/// The most bytes of a configuration that are read.
const CONFIG_MAX: u64 = 4 << 20;

/// Registers, sending what is of this machine, and shows what is here now.
pub(super) async fn run(global: &Global, format: Format, args: RegisterArgs) -> Result<Outcome, Failure> {
    let (name, host) = (parse(&args.name)?, parse_some(args.host.as_deref())?);
    let config = config(&args)?;
    let given = Given::of(&args.source)?;
    let client = Client::connect(global).await?;
    let (source, upload) = given.open(&client).await?;
    let (kernel, replace, timeout_ms) = (args.kernel, args.replace, deadline::WAIT_DEFAULT_MS);
    let request = RegisterRequest { source, name, host, config, kernel, replace, wait: false, timeout_ms };
    let operation = client.change::<image::Register>(&request, deadline::QUICK).await?;
    made(&client, operation, upload, format, args.waiting.no_wait).await
}

/// A file, where it is.
pub(super) enum Given {
    Here(Upload),
    There(FileSource),
}

impl Given {
    /// By how it is written.
    ///
    /// # Errors
    /// It is of this machine, and cannot be read.
    pub(super) fn of(text: &str) -> Result<Self, ApiError> {
        if let Some(path) = text.strip_prefix("host:") {
            return Ok(Self::There(FileSource::Path(path.to_owned())));
        }
        if let Some(name) = text.strip_prefix("object:") {
            return Ok(Self::There(FileSource::Object(name.to_owned())));
        }
        Upload::of(Path::new(text)).map(Self::Here)
    }

    /// Opens the stream of what is of this machine.
    ///
    /// # Errors
    /// The connection is closed.
    pub(super) async fn open(self, client: &Client) -> Result<(FileSource, Option<Opened>), ApiError> {
        match self {
            Self::Here(upload) => {
                let (opened, session, label) = upload.open(client).await?;
                Ok((FileSource::Upload { session, label }, Some(opened)))
            }
            Self::There(source) => Ok((source, None)),
        }
    }
}

/// An OCI image's configuration (image-spec, `config.md`), or the part of it that says what is run.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Execution {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    #[serde(rename = "config")]
    inner: Option<Box<Execution>>,
}

fn config(args: &RegisterArgs) -> Result<ImageConfig, ApiError> {
    let read = args.config.as_deref().map(read).transpose()?.unwrap_or_default();
    let base = read.inner.map_or_else(|| Execution { inner: None, ..read }, |inner| *inner);
    let words = |text: &String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let entrypoint = args.entrypoint.as_ref().map(words);
    // As with `docker run`: the image's command are arguments of its own entrypoint only.
    let command = if entrypoint.is_some() { None } else { base.cmd };
    let mut env = base.env.unwrap_or_default();
    env.extend(args.env.iter().cloned());
    Ok(ImageConfig {
        entrypoint: entrypoint.or(base.entrypoint).unwrap_or_default(),
        cmd: args.cmd.as_ref().map(words).or(command).unwrap_or_default(),
        env,
        working_dir: args.workdir.clone().or(base.working_dir).unwrap_or_default(),
        user: args.user.clone().or(base.user).unwrap_or_default(),
    })
}

fn read(path: &Path) -> Result<Execution, ApiError> {
    let wrong = |why: String| ApiError::invalid_argument(format!("{} {why}", path.display()));
    let length = std::fs::metadata(path).map_err(|error| wrong(format!("cannot be read: {error}")))?.len();
    if length > CONFIG_MAX {
        return Err(wrong(format!("is larger than the configuration of any image: {length} bytes")));
    }
    let bytes = std::fs::read(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    serde_json::from_slice(&bytes).map_err(|error| {
        wrong(format!("is no configuration of an image: {error}"))
            .hint("it looks like {\"Entrypoint\":[\"/app\"],\"Env\":[\"A=b\"]}, or has that as its `config`")
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command, ImageCommand};

    fn asked(more: &[&str]) -> ImageConfig {
        let cli = Cli::try_parse_from(["warren", "image", "register", "web", "/srv/web"].iter().chain(more)).unwrap();
        let Command::Image { command: ImageCommand::Register(args) } = cli.command else { panic!() };
        config(&args).unwrap()
    }

    #[test]
    fn options_go_before_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        let inner = r#"{"Entrypoint":["/app"],"Cmd":["--all"],"Env":["A=1"],"WorkingDir":"/srv","User":null}"#;
        std::fs::write(&file, format!(r#"{{"architecture":"amd64","config":{inner},"rootfs":{{}}}}"#)).unwrap();
        let file = file.to_str().unwrap();
        let whole = asked(&["--config", file]);
        assert_eq!((whole.entrypoint, whole.cmd), (vec!["/app".to_owned()], vec!["--all".to_owned()]));
        assert_eq!((whole.env, whole.working_dir, whole.user), (vec!["A=1".to_owned()], "/srv".into(), String::new()));
        let other = asked(&["--config", file, "--entrypoint", "/bin/sh -c", "--env", "B=2", "--user", "web"]);
        assert_eq!((other.entrypoint, other.cmd), (vec!["/bin/sh".to_owned(), "-c".into()], vec![]));
        assert_eq!((other.env, other.user), (vec!["A=1".to_owned(), "B=2".into()], "web".into()));
        std::fs::write(file, inner).unwrap();
        assert_eq!(asked(&["--config", file, "--cmd", "x"]).cmd, ["x"]);
        assert_eq!(asked(&[]), ImageConfig::default());
    }

    #[test]
    fn what_a_source_is_shows_in_how_it_is_written() {
        let there = |text: &str| match Given::of(text) {
            Ok(Given::There(source)) => source.to_string(),
            Ok(Given::Here(_)) => "here".to_owned(),
            Err(error) => error.message,
        };
        assert_eq!(there("host:/srv/web.ext4"), "file:/srv/web.ext4");
        assert_eq!(there("object:images/web"), "object:images/web");
        assert_eq!(there("/"), "here");
        assert!(there("/nowhere/at/all").contains("/nowhere/at/all"));
        assert!(there("/dev/null").contains("neither"));
    }
}
