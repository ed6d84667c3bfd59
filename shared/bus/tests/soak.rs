//! The soak of byte streams: many at once, a lot of bytes, nats-server killed under them, and one reader that stalls.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bus::{Bus, BusConfig, ByteStream};
use contract::{SessionId, stream::WINDOW};
use sha2::{Digest, Sha256};
use testkit::Nats;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
    task::JoinSet,
};

const SESSIONS: usize = 32;
/// Of each session; 1 GiB in all.
const EACH: u64 = 32 << 20;
/// The debug build of a machine with two busy cores takes a fraction of it.
const BOUND: Duration = Duration::from_secs(300);

#[derive(Default)]
struct Seen {
    received: AtomicU64,
    /// The reader of the first session goes on.
    release: Notify,
}

/// Writes what differs in each session and at each place, ends its half, and compares with what the reader answers.
async fn write(mut stream: ByteStream, session: usize) {
    let mut digest = Sha256::new();
    let mut block: Vec<u8> = (0..64 * 1024u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for n in 0..EACH / block.len() as u64 {
        block[..8].copy_from_slice(&n.to_be_bytes());
        block[8] = session as u8;
        digest.update(&block);
        stream.write_all(&block).await.unwrap();
    }
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, digest.finalize().to_vec(), "session {session}");
    stream.closed().await;
}

async fn read(mut stream: ByteStream, session: usize, seen: Arc<Seen>) {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    if session == 0 {
        seen.release.notified().await;
    }
    loop {
        let count = stream.read(&mut buffer).await.unwrap();
        if count == 0 {
            break;
        }
        digest.update(&buffer[..count]);
        seen.received.fetch_add(count as u64, Ordering::Relaxed);
    }
    stream.write_all(&digest.finalize()).await.unwrap();
    stream.shutdown().await.unwrap();
    stream.closed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gibibyte_in_many_streams_outlives_two_deaths_of_nats_and_a_stalled_reader() {
    let mut nats = Nats::start().await;
    let near = Bus::connect(&BusConfig::new(nats.url(), "openers")).await.unwrap();
    let far = Bus::connect(&BusConfig::new(nats.url(), "acceptors")).await.unwrap();
    let seen = Arc::<Seen>::default();
    let mut rest = JoinSet::new();
    let mut stalled = JoinSet::new();
    for session in 0..SESSIONS {
        let id = SessionId::new();
        let opener = ByteStream::open(&near, id).await.unwrap();
        let acceptor = ByteStream::accept(&far, id).await.unwrap();
        let tasks = if session == 0 { &mut stalled } else { &mut rest };
        tasks.spawn(write(opener, session));
        tasks.spawn(read(acceptor, session, seen.clone()));
    }
    let total = EACH * (SESSIONS as u64 - 1);
    for part in 1..=2 {
        testkit::wait_until("a third more", BOUND, async || {
            (seen.received.load(Ordering::Relaxed) >= total * part / 3).then_some(())
        })
        .await;
        nats.restart().await;
    }
    // All the others end while the one stalls.
    let ended = async {
        while let Some(ended) = rest.join_next().await.transpose().unwrap() {
            ended
        }
    };
    tokio::time::timeout(BOUND, ended).await.expect("the streams that are read end");
    assert_eq!(seen.received.load(Ordering::Relaxed), total);
    assert!(stalled.try_join_next().is_none(), "nobody has read it, and {WINDOW} bytes are far from all");
    seen.release.notify_one();
    let ended = async {
        while let Some(ended) = stalled.join_next().await.transpose().unwrap() {
            ended
        }
    };
    tokio::time::timeout(BOUND, ended).await.expect("the stalled stream ends once it is read");
    assert_eq!(seen.received.load(Ordering::Relaxed), total + EACH);
}
