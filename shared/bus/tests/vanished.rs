//! The story of a network that goes away below a direct stream, in a network namespace of its own.

use std::{process::Command, time::Duration};

use bus::{
    ByteStream,
    direct::{Doors, Listen, connect},
};
use contract::SessionId;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout},
};

/// Two busy cores: no part of the story takes this long.
const BOUND: Duration = Duration::from_secs(60);
/// How long a peer may take nothing here.
const UNHEARD: Duration = Duration::from_secs(1);

#[test]
fn a_peer_that_vanished_is_noticed_and_one_that_stalls_is_not_cut() {
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: only root makes network namespaces");
    }
    // Sockets and programs are in the namespace of the thread that makes them.
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        run("ip link set lo up");
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(story());
    })
    .join()
    .unwrap();
}

fn run(command: &str) {
    let words: Vec<&str> = command.split(' ').collect();
    let done = Command::new(words[0]).args(&words[1..]).status().unwrap();
    assert!(done.success(), "{command}");
}

async fn pair(doors: &Doors) -> (ByteStream, ByteStream) {
    let session = SessionId::new();
    let (offer, mut arrival) = doors.expect(session).unwrap();
    let (client, host) = tokio::join!(connect(&offer, session), timeout(BOUND, arrival.stream()));
    (client.unwrap(), host.unwrap())
}

async fn story() {
    let listen = Listen { address: ([127, 0, 0, 1], 0).into(), advertised: Vec::new() };
    let doors = Doors::open_within(&listen, UNHEARD).await.unwrap();
    // A reader that stalls for many times as long: the writer waits, and then all arrives.
    let ((mut client, mut host), (mut other, mut there)) = (pair(&doors).await, pair(&doors).await);
    let all = vec![7; 8 << 20];
    let mut write = tokio::spawn(async move {
        host.write_all(&all).await.unwrap();
        host.shutdown().await.unwrap();
        host
    });
    let stall = timeout(4 * UNHEARD, &mut write).await;
    assert!(stall.is_err(), "8 MiB fitted into what nobody read");
    let mut received = Vec::new();
    timeout(BOUND, client.read_to_end(&mut received)).await.unwrap().unwrap();
    assert_eq!(received.len(), 8 << 20);
    drop((client, write.await.unwrap()));

    // Nothing comes through any more: what was written is taken by nobody.
    other.write_all(b"here").await.unwrap();
    there.read_exact(&mut [0; 4]).await.unwrap();
    run("ip link set lo down");
    let begun = Instant::now();
    there.write_all(b"are you there?").await.unwrap();
    let error = timeout(BOUND, there.read(&mut [0; 1])).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("was cut"), "{error}");
    assert!(begun.elapsed() >= UNHEARD, "a network that is away for a moment cuts nothing");
    // The client's own limit is longer; it knows nothing yet.
    assert!(timeout(Duration::ZERO, other.read(&mut [0; 1])).await.is_err());
}
