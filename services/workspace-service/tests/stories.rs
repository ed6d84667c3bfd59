//! Stories of ways into VMs, as a client on NATS sees them.

mod common;

use bus::ByteStream;
use common::{BOUND, Lab, call, exec};
use contract::{
    ErrorCode, SessionId,
    job::JobAsk,
    vm::VmState,
    workspace::{EXEC_OUTPUT_MAX, Exec, KillJob, ListJobs, Open, SessionKind},
};
use serde_json::json;
use testkit::wait_until;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_command_gets_its_input_and_gives_its_output_and_exit_code() {
    let lab = Lab::start().await;
    let stdin = "é\n".repeat(100_000);
    let reply = lab.exec(&["cat", "7"], json!({ "stdin": stdin })).await.unwrap();
    assert_eq!((reply.exit_code, reply.stderr.as_str(), reply.truncated), (7, "done\n", true));
    assert!(stdin.starts_with(&reply.stdout) && reply.stdout.len() > EXEC_OUTPUT_MAX - 4);
    let quiet = lab.exec(&["cat"], json!({})).await.unwrap();
    assert_eq!((quiet.exit_code, quiet.stdout.as_str(), quiet.truncated), (0, "", false));
    let by_id = call::<Exec>(&lab.bus, json!({ "vm": lab.id("web"), "command": { "argv": ["cat"] } })).await;
    assert_eq!(by_id.unwrap().exit_code, 0);
    let opened = lab.agent.opened();
    assert!(opened.iter().all(|open| open.vm == lab.id("web")));
    assert_ne!(opened[0].session, opened[1].session);
}

#[tokio::test]
async fn a_program_that_cannot_be_started_says_why() {
    let lab = Lab::start().await;
    let reply = lab.exec(&["missing"], json!({})).await.unwrap();
    assert_eq!((reply.exit_code, reply.stderr.as_str()), (127, "no program `missing` in PATH\n"));
    let refused = lab.exec(&["refused"], json!({})).await.unwrap_err();
    assert_eq!((refused.code, refused.hint.as_deref()), (ErrorCode::InvalidArgument, Some("name a user of the image")));
}

#[tokio::test]
async fn a_flood_is_read_to_its_end_and_its_beginning_fits_into_the_reply() {
    let lab = Lab::start().await;
    for (stream, byte) in [("stdout", "120"), ("stderr", "120"), ("stdout", "0"), ("stdout", "255")] {
        let reply = lab.exec(&["flood", stream, "3000000", byte], json!({})).await.unwrap();
        assert_eq!((reply.exit_code, reply.truncated), (0, true), "{stream} {byte}");
        let (full, empty) =
            if stream == "stdout" { (reply.stdout, reply.stderr) } else { (reply.stderr, reply.stdout) };
        assert!(empty.is_empty());
        if byte == "120" {
            assert_eq!(full.len(), EXEC_OUTPUT_MAX);
        } else {
            assert!(full.chars().count() > 50_000, "{byte}");
        }
    }
    let exact = EXEC_OUTPUT_MAX.to_string();
    let whole = lab.exec(&["flood", "stdout", &exact, "120"], json!({})).await.unwrap();
    assert_eq!((whole.stdout.len(), whole.truncated), (EXEC_OUTPUT_MAX, false));
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_killed() {
    let lab = Lab::start().await;
    let error = lab.exec(&["sleep"], json!({ "timeout_ms": 300 })).await.unwrap_err();
    assert_eq!((error.code, error.retryable), (ErrorCode::DeadlineExceeded, false));
    assert!(error.message.contains("300 ms and was killed"), "{}", error.message);
    assert_eq!(error.details.unwrap()["stdout"], "so far\n");
    assert_eq!(lab.agent.signals(), [9]);
}

#[tokio::test]
async fn a_command_that_reads_nothing_is_ended_by_its_streams_end() {
    let lab = Lab::start().await;
    // More than the stream's window: the input cannot be sent, so no signal can follow it.
    let more = json!({ "stdin": "x".repeat(900_000), "timeout_ms": 300 });
    let error = lab.exec(&["deaf"], more).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    assert!(error.message.contains("told to kill it"), "{}", error.message);
    lab.agent.release.notify_one();
    wait_until("the reset", BOUND, async || (lab.agent.resets() == ["the command's time ran out"]).then_some(())).await;
    assert!(lab.agent.signals().is_empty());
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_not_waited_for_longer_than_asked() {
    let lab = Lab::start().await;
    let error = lab.exec(&["silent"], json!({ "timeout_ms": 300 })).await.unwrap_err();
    assert_eq!((error.code, error.retryable), (ErrorCode::DeadlineExceeded, false));
    assert!(error.message.contains("300 ms"), "{}", error.message);
}

#[tokio::test]
async fn a_vm_that_goes_away_takes_its_command_with_it() {
    let lab = Lab::start().await;
    let error = lab.exec(&["vanish"], json!({})).await.unwrap_err();
    assert_eq!((error.code, error.retryable), (ErrorCode::Unavailable, false));
    assert!(error.message.contains("the VM stopped") && error.hint.is_some(), "{}", error.message);
    let error = lab.exec(&["garbage"], json!({})).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Internal);
    wait_until("the reset", BOUND, async || (!lab.agent.resets().is_empty()).then_some(())).await;
}

#[tokio::test]
async fn only_a_running_vm_is_entered_but_a_stopped_one_has_a_log() {
    let lab = Lab::start().await;
    lab.put("off", VmState::Stopped, "h1");
    lab.put("far", VmState::Running, "h2");
    let exec = call::<Exec>(&lab.bus, json!({ "vm": "off", "command": { "argv": ["cat"] } })).await.unwrap_err();
    assert_eq!(
        (exec.code, exec.hint.as_deref()),
        (ErrorCode::FailedPrecondition, Some("`warren vm start off` starts it"))
    );
    for (vm, kind, code) in [
        ("off", json!({ "ssh": {} }), ErrorCode::FailedPrecondition),
        ("off", json!({ "exec": { "argv": ["cat"] } }), ErrorCode::FailedPrecondition),
        ("web", json!({ "exec": { "argv": [] } }), ErrorCode::InvalidArgument),
        ("nope", json!({ "ssh": {} }), ErrorCode::NotFound),
        ("far", json!({ "logs": {} }), ErrorCode::Unavailable),
    ] {
        let request = json!({ "vm": vm, "session": SessionId::new(), "kind": kind });
        let error = lab.call::<Open>(request).await.unwrap_err();
        assert_eq!(error.code, code, "{vm} {kind}");
        assert!(error.hint.is_some() || code == ErrorCode::NotFound, "{error:?}");
    }
    assert!(lab.agent.opened().is_empty(), "no host was asked");

    let session = SessionId::new();
    let mut stream = ByteStream::open(&lab.bus, session).await.unwrap();
    lab.call::<Open>(json!({ "vm": "off", "session": session, "kind": { "logs": { "tail_bytes": 100 } } }))
        .await
        .unwrap();
    let mut log = String::new();
    stream.read_to_string(&mut log).await.unwrap();
    assert_eq!(log, "Linux version 6.1\n");
    assert_eq!(lab.agent.opened()[0].kind, SessionKind::Logs { follow: false, tail_bytes: Some(100) });
}

#[tokio::test]
async fn an_opened_stream_goes_straight_to_the_host() {
    let lab = Lab::start().await;
    let session = SessionId::new();
    let mut stream = ByteStream::open(&lab.bus, session).await.unwrap();
    lab.call::<Open>(json!({ "vm": "web", "session": session, "kind": { "ssh": {} } })).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "HELLO");
    let opened = lab.agent.opened();
    assert_eq!((opened[0].vm, opened[0].session), (lab.id("web"), session));
}

#[tokio::test]
async fn wrong_commands_are_refused_before_anybody_is_asked() {
    let lab = Lab::start().await;
    for (command, more, word) in [
        (json!({ "argv": [] }), json!({}), "argv"),
        (json!({ "argv": ["sh", "a\u{0}b"] }), json!({}), "NUL"),
        (json!({ "argv": ["sh"], "env": ["A"] }), json!({}), "NAME=value"),
        (json!({ "argv": ["sh"], "tty": { "columns": 80, "rows": 24 } }), json!({}), "terminal"),
        (json!({ "argv": ["sh", "x".repeat(300_000)] }), json!({}), "bytes"),
        (json!({ "argv": ["sh"] }), json!({ "timeout_ms": 0 }), "timeout_ms"),
        (json!({ "argv": ["sh"] }), json!({ "timeout_ms": 600_001 }), "timeout_ms"),
    ] {
        let mut request = json!({ "vm": "web", "command": command });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let error = call::<Exec>(&lab.bus, request).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
        assert!(error.message.contains(word), "{}", error.message);
    }
    assert!(lab.agent.opened().is_empty());
}

#[tokio::test]
async fn a_command_outlives_a_restart_of_nats() {
    let mut lab = Lab::start().await;
    let bus = lab.bus.clone();
    let held = tokio::spawn(async move { exec(&bus, &["hold"], json!({})).await });
    wait_until("the command", BOUND, async || (!lab.agent.opened().is_empty()).then_some(())).await;
    lab.nats.restart().await;
    wait_until("everybody's reconnect", BOUND, async || {
        let unknown =
            lab.call::<Open>(json!({ "vm": "nope", "session": SessionId::new(), "kind": { "ssh": {} } })).await;
        (unknown.unwrap_err().code == ErrorCode::NotFound).then_some(())
    })
    .await;
    lab.agent.release.notify_one();
    let reply = held.await.unwrap().unwrap();
    assert_eq!((reply.exit_code, reply.stdout.as_str()), (0, "held\n"));
}

#[tokio::test]
async fn a_detached_command_is_a_job_that_is_listed_and_told_to_end() {
    let lab = Lab::start().await;
    let detached = json!({ "vm": "web", "command": { "argv": ["make"], "detach": true, "timeout_ms": 60_000 } });
    let reply = call::<Exec>(&lab.bus, detached).await.unwrap();
    let job = reply.job.expect("the job's name");
    assert_eq!((reply.exit_code, job.as_str().len()), (0, 8));
    let list = lab.call::<ListJobs>(json!({ "vm": "web" })).await.unwrap();
    assert_eq!(list.jobs[0].name.as_str(), "build");
    let killed = lab.call::<KillJob>(json!({ "vm": "web", "job": "build", "signal": "SIGINT" })).await.unwrap();
    assert_eq!(killed.name.as_str(), "build");
    lab.call::<KillJob>(json!({ "vm": "web", "job": "build" })).await.unwrap();
    let asks = lab.agent.asks();
    let JobAsk::Start(command) = &asks[0] else { panic!("{asks:?}") };
    assert_eq!((command.job.as_ref(), command.detach, command.timeout_ms), (Some(&job), true, Some(60_000)));
    let signal = |number| JobAsk::Signal { job: "build".parse().unwrap(), number };
    assert_eq!(asks[1..], [JobAsk::List {}, signal(2), signal(15)]);

    lab.put("off", VmState::Stopped, "h1");
    lab.put("far", VmState::Running, "h2");
    for (vm, code) in
        [("off", ErrorCode::FailedPrecondition), ("far", ErrorCode::Unavailable), ("nope", ErrorCode::NotFound)]
    {
        assert_eq!(lab.call::<ListJobs>(json!({ "vm": vm })).await.unwrap_err().code, code, "{vm}");
    }
    let kill = |job: &str, signal: &str| json!({ "vm": "web", "job": job, "signal": signal });
    assert_eq!(lab.call::<KillJob>(kill("none", "TERM")).await.unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(lab.call::<KillJob>(kill("build", "NOPE")).await.unwrap_err().code, ErrorCode::InvalidArgument);
    for (command, stdin, word) in [
        (json!({ "argv": ["x"], "detach": true }), "text", "standard input"),
        (json!({ "argv": ["x"], "open_stdin": true }), "", "open_stdin"),
        (json!({ "argv": ["x"], "timeout_ms": 0 }), "", "timeout_ms"),
    ] {
        let request = json!({ "vm": "web", "command": command, "stdin": stdin });
        let error = call::<Exec>(&lab.bus, request).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
        assert!(error.message.contains(word), "{}", error.message);
    }
    let session = SessionId::new();
    let kind = json!({ "exec": { "argv": ["x"], "detach": true } });
    let error = lab.call::<Open>(json!({ "vm": "web", "session": session, "kind": kind })).await.unwrap_err();
    assert!(error.message.contains("no stream"), "{}", error.message);
}
