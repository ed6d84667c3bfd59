//! What somebody meets who types `warren` without a lab: help, completions, and errors that name what was wrong.

use std::{
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

fn warren(args: &[&str]) -> Output {
    let empty = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_warren"))
        .args(args)
        .env_remove("WARREN_NATS_URL")
        .env("WARREN_RUNTIME_DIR", empty.path())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn help_names_every_command_and_the_exit_codes() {
    let help = out(&warren(&["--help"]));
    for word in [
        "image",
        "vm",
        "ssh",
        "exec",
        "workspace",
        "op",
        "host",
        "dev",
        "completions",
        "Exit codes",
        "failed_precondition",
    ] {
        assert!(help.contains(word), "{word} is missing:\n{help}");
    }
    for (area, verbs) in [
        ("image", &["pull", "kernel", "ls", "show", "rm"][..]),
        ("kernel", &["import", "ls", "show", "rm", "default"]),
        ("vm", &["create", "ls", "show", "start", "stop", "restart", "rm", "logs"]),
        ("lab", &["up", "down", "ls", "show"]),
        ("op", &["ls", "show", "wait", "watch", "cancel", "upload"]),
        ("workspace", &["prepare", "export", "diff", "sync", "ls", "show", "rm", "log"]),
        ("dev", &["up", "status", "down", "migrate"]),
    ] {
        let help = out(&warren(&[area, "--help"]));
        for verb in verbs {
            assert!(help.contains(verb), "{area} {verb} is missing:\n{help}");
            assert!(warren(&[area, verb, "--help"]).status.success(), "{area} {verb} --help");
        }
    }
}

#[test]
fn completions_are_scripts_their_shells_read() {
    for (shell, check) in [("bash", Some("bash")), ("zsh", None), ("fish", None)] {
        let script = warren(&["completions", shell]);
        assert!(script.status.success() && out(&script).contains("warren"), "{shell}");
        if let Some(program) = check {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &script.stdout).unwrap();
            assert!(Command::new(program).arg("-n").arg(file.path()).status().unwrap().success());
        }
    }
}

#[test]
fn what_is_typed_wrong_is_named_and_ends_with_2() {
    let create = ["vm", "create", "web", "--image", "debian"];
    for (more, named) in [
        (&["--memory", "lots"][..], "lots"),
        (&["--disk", "1Q"], "1Q"),
        (&["--label", "a b=1"], "a b"),
        (&["--ttl", "soon"], "soon"),
        (&["--restart", "perhaps"], "perhaps"),
        (&["--colour"], "--colour"),
    ] {
        let output = warren(&[&create[..], more].concat());
        assert_eq!(output.status.code(), Some(2), "{more:?}: {}", err(&output));
        assert!(err(&output).contains(named), "{more:?}: {}", err(&output));
    }
    for (args, named) in [
        (&["vm", "create", "../../etc", "--image", "debian"][..], "../../etc"),
        (&["vm", "create", "web"], "--image"),
        (&["vm", "ls", "--state", "asleep"], "asleep"),
        (&["op", "show", "nonsense"], "nonsense"),
        (&["exec", "web"], "COMMAND"),
        (&["frobnicate"], "frobnicate"),
    ] {
        let output = warren(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", err(&output));
        assert!(err(&output).contains(named), "{args:?}: {}", err(&output));
    }
}

#[test]
fn options_that_would_be_passed_over_are_refused() {
    let plain = tempfile::tempdir().unwrap();
    let plain = plain.path().to_str().unwrap();
    for (args, named) in [
        (&["workspace", "sync", "web", "--from-vm", "--history", "1"][..], "--history"),
        (&["workspace", "sync", "web", "--from-vm", "--include-ignored", "*.o"], "--include-ignored"),
        (&["workspace", "sync", "web", "--from-vm", "--dirty", "no"], "--dirty"),
        (&["workspace", "sync", "web", "--interval", "5s"], "--watch"),
        (&["workspace", "prepare", "web", "-", "--history", "1"], "--history"),
        (&["workspace", "prepare", "web", "host:/srv/x", "--history", "full"], "--history"),
        (&["workspace", "prepare", "web", "https://example.org/x.git", "--dirty", "yes"], "--dirty"),
        (&["workspace", "prepare", "web", ".", "--ref", "main"], "--ref"),
        (&["workspace", "prepare", "web", plain, "--history", "3"], "--history"),
        (&["workspace", "prepare", "web", plain, "--include-ignored", "*.o"], "--include-ignored"),
        (&["workspace", "export", "web", "--format", "tar", "-f", "x.tar", "--into", "."], "--into"),
        (&["workspace", "export", "web", "--format", "commits", "--file", "x"], "--file"),
        (&["workspace", "export", "web", "--format", "tar", "--apply"], "--apply"),
        (&["workspace", "diff", "web", "--name-only", "--into", "."], "--into"),
        (&["-o", "json", "workspace", "diff", "web", "--stat"], "--stat"),
        (&["cp", "web:/etc/hostname", ".", "--owner", "ann"], "--owner"),
        (&["cp", "-", "web:/srv", "--follow"], "--follow"),
        (&["cp", "web:/etc", "-", "--archive"], "--archive"),
        (&["run", "debian", "--path", "/srv", "--", "true"], "--workspace"),
        (&["run", "debian", "--workspace", plain, "--history", "3", "--", "true"], "--history"),
        (&["run", "debian", "--workspace", plain, "--file", "x", "--", "true"], "--file"),
        (&["run", "debian", "--keep", "--rm", "--", "true"], "--rm"),
    ] {
        let output = warren(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", err(&output));
        assert!(err(&output).contains(named), "{args:?}: {}", err(&output));
    }
}

#[test]
fn a_lab_that_is_not_there_is_said_at_once_with_what_to_do() {
    let began = Instant::now();
    let nowhere = warren(&["vm", "ls"]);
    assert!(!nowhere.status.success() && err(&nowhere).contains("warren dev up"), "{}", err(&nowhere));
    // A port of loopback that nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("nats://127.0.0.1:{port}");
    let refused = warren(&["--nats", &url, "-o", "json", "vm", "ls"]);
    assert_eq!(refused.status.code(), Some(9), "{}", err(&refused));
    assert_eq!(out(&refused), "", "errors are on standard error");
    let body: Value = serde_json::from_str(&err(&refused)).unwrap();
    assert_eq!(body["error"]["code"], "unavailable");
    assert!(body["error"]["hint"].is_string(), "{body}");
    assert!(began.elapsed() < Duration::from_secs(20));
}
