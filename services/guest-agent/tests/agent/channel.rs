//! The channel from end to end, with a host made of yamux alone and an agent without a VM.

use std::time::{Duration, Instant};

use crate::support::{BOUND, Host, agent, make_ready, shake_hands, shared, shell};
use bytes::Bytes;
use contract::{
    ErrorCode,
    frame::Frame,
    guest::{MESSAGE_MAX, Reply, Request},
    workspace::{Command, TerminalSize},
};
use tokio::io::AsyncWriteExt;

#[tokio::test]
async fn ready_waits_until_it_is_true_and_ping_does_not() {
    let shared = shared();
    let host = Host::connect(agent(&shared)).await;
    assert_eq!(host.ask(&Request::Ping).await.1, Reply::Ok);
    assert_eq!(host.ask(&Request::Sessions).await.1, Reply::Sessions(0));
    let (answered, ()) = tokio::join!(host.ask(&Request::Ready), async {
        assert_eq!(host.ask(&Request::Ping).await.1, Reply::Ok);
        make_ready(&shared);
    });
    assert!(matches!(answered.1, Reply::Ready(facts) if facts.kernel == "test"));
}

#[tokio::test]
async fn output_streams_stay_apart_and_come_before_the_exit() {
    let host = Host::connect(agent(&shared())).await;
    let mut command = shell("echo $FROM_IMAGE $MINE; pwd; echo wrong >&2; exit 3");
    command.env = vec!["MINE=too".into()];
    command.cwd = Some("/tmp".into());
    let (out, err, exit) = host.exec(command).await.finish().await;
    assert_eq!(String::from_utf8_lossy(&out), "yes too\n/tmp\n");
    assert_eq!(String::from_utf8_lossy(&err), "wrong\n");
    assert_eq!((exit.code, exit.message), (3, None));
    let (_, _, killed) = host.exec(shell("kill -9 $$")).await.finish().await;
    assert_eq!(killed.code, 137);
}

#[tokio::test]
async fn a_lot_goes_in_and_comes_out_unharmed_while_another_stream_answers() {
    let host = Host::connect(agent(&shared())).await;
    let mut cat = host.exec(shell("cat")).await;
    let data: Bytes = (0..8_000_000u32).map(|n| (n % 251) as u8).collect();
    // Far more than all windows hold, and nobody reads yet: the agent must neither stall others nor buffer it all.
    let (mut sink, mut received) = (Vec::new(), 0);
    let stuck = tokio::time::timeout(Duration::from_millis(300), async {
        for chunk in data.chunks(64 * 1024) {
            cat.send(Frame::Stdin(Bytes::copy_from_slice(chunk))).await;
            received += chunk.len();
        }
    });
    assert!(stuck.await.is_err(), "8 MB fitted into windows and pipes");
    assert_eq!(host.ask(&Request::Ping).await.1, Reply::Ok);
    drop(cat);
    let mut cat = host.exec(shell("cat")).await;
    let mut sent = data.chunks(48 * 1024);
    // One chunk in, one chunk out, so that one task can do both.
    while sink.len() < data.len() {
        match sent.next() {
            Some(chunk) => cat.send(Frame::Stdin(Bytes::copy_from_slice(chunk))).await,
            None => cat.send(Frame::Stdin(Bytes::new())).await,
        }
        let goal = (sink.len() + 48 * 1024).min(data.len());
        while sink.len() < goal {
            match cat.next().await {
                Frame::Stdout(bytes) => sink.extend_from_slice(&bytes),
                other => panic!("unexpected {other:?}"),
            }
        }
    }
    assert!(sink == data, "the bytes came back changed");
    cat.send(Frame::Stdin(Bytes::new())).await;
    assert_eq!(cat.finish().await.2.code, 0);
}

#[tokio::test]
async fn a_terminal_has_its_size_and_takes_another() {
    let host = Host::connect(agent(&shared())).await;
    let mut command = shell("stty size; trap 'stty size; exit 4' WINCH; echo waiting; while :; do read x; done");
    command.tty = Some(TerminalSize { columns: 80, rows: 24 });
    let mut exec = host.exec(command).await;
    let mut seen = String::new();
    while !seen.contains("waiting") {
        let Frame::Stdout(bytes) = exec.next().await else { panic!("an exit before the resize: {seen}") };
        seen.push_str(&String::from_utf8_lossy(&bytes));
    }
    assert!(seen.starts_with("24 80"), "{seen}");
    exec.send(Frame::Resize(TerminalSize { columns: 100, rows: 30 })).await;
    exec.send(Frame::Stdin(Bytes::from_static(b"\n"))).await;
    let (out, err, exit) = exec.finish().await;
    assert!(String::from_utf8_lossy(&out).contains("30 100"), "{out:?}");
    assert!(err.is_empty());
    assert_eq!(exit.code, 4);
}

#[tokio::test]
async fn what_cannot_be_started_is_said_with_a_shells_exit_codes() {
    let host = Host::connect(agent(&shared())).await;
    let run = |name: &str, cwd: &str| Command { argv: vec![name.into()], cwd: Some(cwd.into()), ..Command::default() };
    let (_, _, exit) = host.exec(run("no-such-program", "/")).await.finish().await;
    assert_eq!((exit.code, exit.message.as_deref()), (127, Some("no-such-program: not found in the guest")));
    let (_, _, exit) = host.exec(run("/etc/passwd", "/")).await.finish().await;
    assert_eq!(exit.code, 126);
    let (_, _, exit) = host.exec(run("true", "/no/such/directory")).await.finish().await;
    assert_eq!(exit.code, 126);
    assert!(exit.message.unwrap().contains("/no/such/directory"));
}

#[tokio::test]
async fn a_signal_reaches_the_whole_group() {
    let host = Host::connect(agent(&shared())).await;
    let mut exec = host.exec(shell("sleep 1000 | sleep 1000 & echo up; wait")).await;
    assert_eq!(exec.next().await, Frame::Stdout(Bytes::from_static(b"up\n")));
    exec.send(Frame::Signal(libc::SIGTERM as u8)).await;
    assert_eq!(exec.finish().await.2.code, 128 + libc::SIGTERM);
}

#[tokio::test]
async fn a_host_that_goes_takes_its_process_along() {
    let host = Host::connect(agent(&shared())).await;
    let mut exec = host.exec(shell("echo $$; exec sleep 1000")).await;
    let Frame::Stdout(bytes) = exec.next().await else { panic!("no process id") };
    let process = format!("/proc/{}", String::from_utf8_lossy(&bytes).trim());
    assert!(std::path::Path::new(&process).exists());
    drop(exec);
    let begun = Instant::now();
    while std::path::Path::new(&process).exists() {
        assert!(begun.elapsed() < BOUND, "the process outlived its caller");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_background_child_does_not_hold_the_exit_for_ever() {
    let host = Host::connect(agent(&shared())).await;
    let (out, _, exit) = host.exec(shell("sleep 60 & echo started $!")).await.finish().await;
    assert_eq!(exit.code, 0);
    let child = String::from_utf8_lossy(&out).trim().rsplit(' ').next().unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn wrong_requests_are_refused_and_leave_the_channel_well() {
    let host = Host::connect(agent(&shared())).await;
    let refused = |reply: Reply| match reply {
        Reply::Error(error) => error.code,
        other => panic!("not refused: {other:?}"),
    };
    assert_eq!(refused(host.ask_raw(14, b"{\"nonsense\":1}").await.1), ErrorCode::InvalidArgument);
    assert_eq!(refused(host.ask_raw(0, b"").await.1), ErrorCode::InvalidArgument);
    assert_eq!(refused(host.ask_raw(MESSAGE_MAX + 1, b"").await.1), ErrorCode::InvalidArgument);
    assert_eq!(refused(host.ask(&Request::Exec(Command::default())).await.1), ErrorCode::InvalidArgument);
    let stranger = Command { user: Some("no-such-user".into()), ..shell("true") };
    assert_eq!(refused(host.ask(&Request::Exec(stranger)).await.1), ErrorCode::InvalidArgument);
    // A frame that lies about its length ends its process, and nothing else.
    let mut liar = host.exec(shell("exec sleep 1000")).await;
    futures::AsyncWriteExt::write_all(&mut liar.stream, &[0, 0xff, 0xff, 0xff, 0xff]).await.unwrap();
    assert_eq!(host.ask(&Request::Ping).await.1, Reply::Ok);
}

#[tokio::test]
async fn a_new_host_takes_over_from_one_that_died_in_mid_sentence() {
    for left_over in
        [&b""[..], b"garbage", b"\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x40\x00half a frame", b"\x00WARREN\x01"]
    {
        let shared = shared();
        let mut pipe = agent(&shared);
        shake_hands(&mut pipe, 1).await;
        pipe.write_all(left_over).await.unwrap();
        // The pipe stays open: the guest has no other sign of the new host than its preamble.
        shake_hands(&mut pipe, 2).await;
        let host = Host::connect(pipe).await;
        assert_eq!(host.ask(&Request::Ping).await.1, Reply::Ok, "after {left_over:?}");
    }
}

#[tokio::test]
async fn one_stream_too_many_is_refused_politely() {
    let shared = shared();
    let host = Host::connect(agent(&shared)).await;
    let mut held = Vec::new();
    for _ in 0..128 {
        held.push(host.exec(Command { argv: vec!["sleep".into(), "1000".into()], ..Command::default() }).await);
    }
    let (_, reply) = host.ask(&Request::Ping).await;
    assert!(matches!(reply, Reply::Error(error) if error.code == ErrorCode::ResourceExhausted));
    drop(held);
    let begun = Instant::now();
    while host.ask(&Request::Ping).await.1 != Reply::Ok {
        assert!(begun.elapsed() < BOUND, "no stream became free");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
