//! Jobs: commands that outlive who started them, and who comes back to them.

use std::time::Duration;

use crate::support::{BOUND, Exec, Host, agent, shared, shell};
use bytes::Bytes;
use contract::{
    ErrorCode,
    frame::Frame,
    guest::{Reply, Request},
    job::{Attach, Job, JobAsk, JobState, KEPT_OUTPUT, RUNNING_MAX, TIMED_OUT},
    workspace::{Command, TerminalSize},
};

async fn ask(host: &Host, ask: JobAsk) -> Vec<Job> {
    match host.ask(&Request::Jobs(ask)).await.1 {
        Reply::Jobs(jobs) => jobs,
        other => panic!("no jobs: {other:?}"),
    }
}

async fn refused(host: &Host, request: Request) -> ErrorCode {
    match host.ask(&request).await.1 {
        Reply::Error(error) => error.code,
        other => panic!("not refused: {other:?}"),
    }
}

async fn start(host: &Host, name: &str, command: Command) -> Job {
    let command = Command { job: Some(name.parse().unwrap()), ..command };
    ask(host, JobAsk::Start(Box::new(command))).await.remove(0)
}

fn to(name: &str, write: bool) -> Attach {
    Attach { job: name.parse().unwrap(), write, follow: true, tail_bytes: None, size: None }
}

async fn attach(host: &Host, attach: Attach) -> Exec {
    let (stream, reply) = host.ask(&Request::Attach(attach)).await;
    assert_eq!(reply, Reply::Ok);
    Exec::over(stream)
}

/// Waits until the list says what is wanted of a job.
async fn wait_for(host: &Host, name: &str, wanted: impl Fn(&Job) -> bool) -> Job {
    let seen = async {
        loop {
            let jobs = ask(host, JobAsk::List {}).await;
            if let Some(job) = jobs.into_iter().find(|job| job.name.as_str() == name && wanted(job)) {
                return job;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(BOUND, seen).await.expect("the job becomes so")
}

#[tokio::test]
async fn a_detached_command_runs_on_without_its_host_and_is_read_by_the_next() {
    let shared = shared();
    let first = Host::connect(agent(&shared)).await;
    let job = start(&first, "build", shell("echo begun; read line; echo got $line; exit 7")).await;
    assert_eq!((job.state, job.kept, job.attached, job.user.as_str()), (JobState::Running, true, 0, "root"));
    // Its input was at its end from the start.
    drop(first);
    let host = Host::connect(agent(&shared)).await;
    let job = wait_for(&host, "build", |job| job.state == JobState::Ended).await;
    assert_eq!((job.exit_code, job.output_bytes, job.dropped_bytes), (Some(7), 10, 0));
    for write in [false, true] {
        let (out, err, exit) = attach(&host, to("build", write)).await.finish().await;
        assert_eq!((String::from_utf8_lossy(&out).as_ref(), err.len(), exit.code), ("begun\ngot\n", 0, 7));
    }
    let tail = Attach { tail_bytes: Some(4), ..to("build", false) };
    assert_eq!(attach(&host, tail).await.finish().await.0, b"got\n");
    assert_eq!(refused(&host, Request::Attach(to("none", true))).await, ErrorCode::NotFound);
    let signal = JobAsk::Signal { job: "build".parse().unwrap(), number: 15 };
    assert_eq!(refused(&host, Request::Jobs(signal)).await, ErrorCode::FailedPrecondition);
    // The name of one that has ended is free.
    assert_eq!(start(&host, "build", shell("true")).await.age_ms / 1000, 0);
}

#[tokio::test]
async fn several_listen_one_writes_and_the_last_to_come_does() {
    let host = Host::connect(agent(&shared())).await;
    let open = Command { open_stdin: true, ..shell("while read line; do echo =$line; done; echo over") };
    start(&host, "talk", open).await;
    let mut listener = attach(&host, to("talk", false)).await;
    let mut first = attach(&host, to("talk", true)).await;
    first.send(Frame::Stdin(Bytes::from_static(b"one\n"))).await;
    assert_eq!(first.next().await, Frame::Stdout(Bytes::from_static(b"=one\n")));
    // A listener's words count for nothing.
    listener.send(Frame::Stdin(Bytes::from_static(b"nonsense\n"))).await;
    listener.send(Frame::Signal(9)).await;
    assert_eq!(listener.next().await, Frame::Stdout(Bytes::from_static(b"=one\n")));
    let mut second = attach(&host, to("talk", true)).await;
    assert!(matches!(first.next().await, Frame::Left(reason) if reason.contains("another client")));
    assert_eq!(second.next().await, Frame::Stdout(Bytes::from_static(b"=one\n")));
    second.send(Frame::Stdin(Bytes::from_static(b"two\n"))).await;
    assert_eq!(second.next().await, Frame::Stdout(Bytes::from_static(b"=two\n")));
    // Leaving ends nothing; coming back goes on.
    drop(second);
    let mut third = attach(&host, to("talk", true)).await;
    third.send(Frame::Stdin(Bytes::new())).await;
    let (out, _, exit) = third.finish().await;
    assert_eq!((String::from_utf8_lossy(&out).as_ref(), exit.code), ("=one\n=two\nover\n", 0));
    assert_eq!(listener.finish().await.0, b"=two\nover\n");
}

#[tokio::test]
async fn output_that_nobody_takes_is_bounded_and_the_reader_is_told_what_is_missing() {
    let host = Host::connect(agent(&shared())).await;
    start(&host, "flood", shell("yes | head -c 5000000; echo end")).await;
    let job = wait_for(&host, "flood", |job| job.state == JobState::Ended).await;
    assert_eq!(job.output_bytes, 5_000_004);
    let kept = job.output_bytes - job.dropped_bytes;
    assert!(kept <= KEPT_OUTPUT as u64 && kept > KEPT_OUTPUT as u64 / 2, "{kept}");
    let mut reader = attach(&host, to("flood", false)).await;
    assert_eq!(reader.next().await, Frame::Missed(job.dropped_bytes));
    let (out, ..) = reader.finish().await;
    assert_eq!(out.len() as u64, kept);
    assert!(out.ends_with(b"y\nend\n"));
}

#[tokio::test]
async fn whoever_holds_a_job_misses_nothing_and_a_listener_that_stalls_holds_up_nobody() {
    let host = Host::connect(agent(&shared())).await;
    let named = Command { job: Some("all".parse().unwrap()), ..shell("read x; head -c 8000000 /dev/zero; exit 3") };
    let mut owner = host.exec(named).await;
    let mut stalled = attach(&host, to("all", false)).await;
    owner.send(Frame::Stdin(Bytes::from_static(b"go\n"))).await;
    let (out, _, exit) = owner.finish().await;
    assert_eq!((out.len(), exit.code), (8_000_000, 3));
    let (mut missed, mut got) = (0, 0);
    loop {
        match stalled.next().await {
            Frame::Missed(bytes) => missed += bytes,
            Frame::Stdout(bytes) => got += bytes.len() as u64,
            Frame::Exit(exit) => break assert_eq!(exit.code, 3),
            other => panic!("unexpected {other:?}"),
        }
    }
    assert!(missed > 0);
    assert_eq!(missed + got, 8_000_000);
}

#[tokio::test]
async fn a_named_command_whose_host_is_cut_off_runs_on_and_an_unnamed_one_does_not() {
    let host = Host::connect(agent(&shared())).await;
    let named = Command { job: Some("kept".parse().unwrap()), ..shell("echo up; read x; echo $x") };
    let mut exec = host.exec(named.clone()).await;
    assert_eq!(exec.next().await, Frame::Stdout(Bytes::from_static(b"up\n")));
    assert_eq!(refused(&host, Request::Exec(named)).await, ErrorCode::AlreadyExists);
    let mut plain = host.exec(shell("echo up; exec sleep 1000")).await;
    assert_eq!(plain.next().await, Frame::Stdout(Bytes::from_static(b"up\n")));
    let jobs = ask(&host, JobAsk::List {}).await;
    assert_eq!(jobs.iter().map(|job| (job.kept, job.attached)).collect::<Vec<_>>(), [(true, 1), (false, 1)]);
    let unnamed = jobs[1].name.to_string();
    assert_eq!(refused(&host, Request::Attach(to(&unnamed, true))).await, ErrorCode::FailedPrecondition);
    drop((exec, plain));
    wait_for(&host, "kept", |job| job.attached == 0 && job.state == JobState::Running).await;
    let gone = async {
        while ask(&host, JobAsk::List {}).await.len() > 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(BOUND, gone).await.expect("the unnamed one ends");
    let mut back = attach(&host, to("kept", true)).await;
    back.send(Frame::Stdin(Bytes::from_static(b"still\n"))).await;
    assert_eq!(back.finish().await.0, b"up\nstill\n");
}

#[tokio::test]
async fn time_that_is_up_ends_the_whole_group_whoever_is_there() {
    let host = Host::connect(agent(&shared())).await;
    let timed = |line: &str| Command { timeout_ms: Some(300), ..shell(line) };
    let (out, _, exit) = host.exec(timed("trap 'echo bye; exit 0' TERM; sleep 1000 & wait")).await.finish().await;
    assert_eq!((out.as_slice(), exit.code), (&b"bye\n"[..], TIMED_OUT));
    assert!(exit.message.unwrap().contains("300ms"));
    // Nobody is attached, and a terminal's foreground is another group than the shell's.
    let tty = Some(TerminalSize { columns: 80, rows: 24 });
    start(&host, "terminal", Command { tty, ..timed("sleep 1000") }).await;
    let job = wait_for(&host, "terminal", |job| job.state == JobState::Ended).await;
    assert_eq!(job.exit_code, Some(TIMED_OUT));
    // One that is quicker is as it is.
    assert_eq!(host.exec(timed("exit 5")).await.finish().await.2.code, 5);
    assert_eq!(
        refused(&host, Request::Exec(Command { timeout_ms: Some(0), ..shell("true") })).await,
        ErrorCode::InvalidArgument
    );
}

#[tokio::test]
async fn time_is_up_for_a_job_whose_holder_reads_nothing() {
    let host = Host::connect(agent(&shared())).await;
    let endless = Command { timeout_ms: Some(500), job: Some("endless".parse().unwrap()), ..shell("exec yes") };
    let _stalled = host.exec(endless).await;
    let job = wait_for(&host, "endless", |job| job.state == JobState::Ended).await;
    assert_eq!((job.exit_code, job.attached), (Some(TIMED_OUT), 1));
}

#[tokio::test]
async fn children_that_print_on_hold_up_neither_a_limit_nor_an_end_for_long() {
    let host = Host::connect(agent(&shared())).await;
    // What has left the process group and the session does not count.
    let timed = Command { timeout_ms: Some(300), ..shell("trap '' TERM; yes & setsid yes & sleep 1000; wait") };
    let mut exec = host.exec(timed).await;
    let ended = async {
        loop {
            match exec.next().await {
                Frame::Exit(exit) => return exit,
                Frame::Stdout(_) | Frame::Missed(_) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    };
    let exit = tokio::time::timeout(BOUND, ended).await.expect("the command ends");
    assert_eq!(exit.code, TIMED_OUT);
    // One that ends by itself has its own code, and what it printed last, although a child prints on; even past its time.
    let left = Command { timeout_ms: Some(1000), ..shell("(while printf x; do sleep 0.2; done) & echo last; exit 5") };
    let (out, _, exit) = host.exec(left).await.finish().await;
    assert_eq!((exit.code, exit.message), (5, None));
    assert!(String::from_utf8_lossy(&out).contains("last"));
}

#[tokio::test]
async fn a_kill_takes_what_the_command_put_into_groups_of_their_own() {
    let host = Host::connect(agent(&shared())).await;
    // In a terminal a shell can do so; no control group is made here, so it is the session that counts.
    let command = shell("set -m; sleep 1000 & echo $!; exec sleep 1000");
    let tty = Some(TerminalSize { columns: 80, rows: 24 });
    let mut exec = host.exec(Command { tty, job: Some("groups".parse().unwrap()), ..command }).await;
    let mut said = String::new();
    while !said.contains('\n') {
        match exec.next().await {
            Frame::Stdout(bytes) => said.push_str(&String::from_utf8_lossy(&bytes)),
            other => panic!("unexpected {other:?}"),
        }
    }
    let child: u32 = said.trim().parse().expect("the shell says the number of its child");
    let runs = || {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
    };
    assert!(runs());
    ask(&host, JobAsk::Signal { job: "groups".parse().unwrap(), number: 9 }).await;
    wait_for(&host, "groups", |job| job.exit_code == Some(137)).await;
    let gone = async {
        while runs() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(BOUND, gone).await.expect("the child in another group is gone, too");
}

#[tokio::test]
async fn a_slow_reader_gets_all_that_a_command_printed_before_its_end() {
    let host = Host::connect(agent(&shared())).await;
    let named = Command { job: Some("slow".parse().unwrap()), ..shell("yes & head -c 1000000 /dev/zero >&2; kill $!") };
    let mut reader = host.exec(named).await;
    wait_for(&host, "slow", |job| job.output_bytes > 0).await;
    let (_, err, exit) = reader.finish().await;
    assert_eq!((err.len(), exit.code), (1_000_000, 0));
}

#[tokio::test]
async fn a_start_that_fails_takes_nothing_from_an_ended_job_of_its_name() {
    let host = Host::connect(agent(&shared())).await;
    start(&host, "build", shell("echo result; exit 4")).await;
    wait_for(&host, "build", |job| job.state == JobState::Ended).await;
    let job = Some("build".parse().unwrap());
    let missing = Command { argv: vec!["/no/such/program".to_owned()], job, ..Command::default() };
    let again = Request::Jobs(JobAsk::Start(Box::new(missing)));
    assert_eq!(refused(&host, again).await, ErrorCode::FailedPrecondition);
    let (out, _, exit) = attach(&host, to("build", false)).await.finish().await;
    assert_eq!((out.as_slice(), exit.code), (&b"result\n"[..], 4));
}

#[tokio::test]
async fn jobs_are_bounded_in_number_and_killed_by_name() {
    let host = Host::connect(agent(&shared())).await;
    for n in 0..RUNNING_MAX {
        start(&host, &format!("job-{n}"), shell("exec sleep 1000")).await;
    }
    let one_more = Request::Jobs(JobAsk::Start(Box::new(shell("true"))));
    assert_eq!(refused(&host, one_more).await, ErrorCode::ResourceExhausted);
    for n in 0..RUNNING_MAX {
        ask(&host, JobAsk::Signal { job: format!("job-{n}").parse().unwrap(), number: 9 }).await;
    }
    wait_for(&host, "job-31", |job| job.exit_code == Some(137)).await;
    for n in 0..40 {
        let name = format!("again-{n}");
        start(&host, &name, shell("true")).await;
        wait_for(&host, &name, |job| job.state == JobState::Ended).await;
    }
    let jobs = ask(&host, JobAsk::List {}).await;
    assert_eq!((jobs.len(), jobs.last().unwrap().name.as_str()), (32, "again-39"));
}
