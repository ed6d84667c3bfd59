//! Stories of direct streams: two processes that reach each other, and some that should not.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bus::{
    ByteStream,
    direct::{Arrival, Doors, Listen, connect},
};
use contract::{
    SessionId,
    direct::{Direct, TOKEN_LIFE, Token, WINDOW},
};
use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Two busy cores: no story takes this long.
const BOUND: Duration = Duration::from_secs(60);

async fn doors() -> Doors {
    Doors::open(&Listen { address: ([127, 0, 0, 1], 0).into(), advertised: Vec::new() }).await.unwrap()
}

async fn pair(doors: &Doors) -> (ByteStream, ByteStream) {
    let session = SessionId::new();
    let (offer, mut arrival) = doors.expect(session).unwrap();
    let (client, host) = tokio::join!(connect(&offer, session), timeout(BOUND, arrival.stream()));
    (client.unwrap(), host.unwrap())
}

/// Whether the host has got a connection.
async fn arrives(arrival: &mut Arrival) -> bool {
    arrival.stream().now_or_never().is_some()
}

/// Waits until the host closes a connection.
async fn closed_by_host(mut connection: TcpStream) {
    drop(connection.read(&mut [0; 1]).await);
}

#[tokio::test]
async fn both_directions_carry_a_lot_and_end_each_by_itself() {
    let doors = doors().await;
    let (client, mut host) = pair(&doors).await;
    let sent: Vec<u8> = (0..9_000_000u32).map(|n| (n % 251) as u8).collect();
    let copy = sent.clone();
    let (mut reader, mut writer) = tokio::io::split(client);
    let write = tokio::spawn(async move {
        writer.write_all(&copy).await.unwrap();
        writer.shutdown().await.unwrap();
        writer
    });
    let echo = tokio::spawn(async move {
        let mut all = Vec::new();
        host.read_to_end(&mut all).await.unwrap();
        host.write_all(&all).await.unwrap();
        host.shutdown().await.unwrap();
        host.closed().await;
    });
    let mut received = Vec::new();
    timeout(BOUND, reader.read_to_end(&mut received)).await.unwrap().unwrap();
    assert!(received == sent);
    let client = reader.unsplit(write.await.unwrap());
    timeout(BOUND, client.closed()).await.unwrap();
    timeout(BOUND, echo).await.unwrap().unwrap();
}

#[tokio::test]
async fn ends_are_told_as_on_the_bus() {
    let doors = doors().await;
    let (mut client, host) = pair(&doors).await;
    host.reset("vm stopped").await;
    let error = timeout(BOUND, client.read_to_end(&mut Vec::new())).await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "vm stopped");

    let (client, mut host) = pair(&doors).await;
    drop(client);
    assert!(timeout(BOUND, host.read_to_end(&mut Vec::new())).await.unwrap().is_err());

    // What was said before a shutdown arrives although its speaker has gone, and only writing to it fails.
    let (mut client, mut host) = pair(&doors).await;
    client.write_all(b"last words").await.unwrap();
    client.shutdown().await.unwrap();
    drop(client);
    let mut words = Vec::new();
    timeout(BOUND, host.read_to_end(&mut words)).await.unwrap().unwrap();
    assert_eq!(words, b"last words");

    // A reader that stalls holds up its own writer only, and that one all the more.
    let (mut stalled, mut host) = pair(&doors).await;
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let write = tokio::spawn(async move {
        for _ in 0..1024 {
            stalled.write_all(&[1; 64 << 10]).await.unwrap();
            count.fetch_add(64 << 10, Ordering::SeqCst);
        }
        stalled
    });
    let (mut other, mut there) = pair(&doors).await;
    other.write_all(b"hello").await.unwrap();
    let mut hello = [0; 5];
    timeout(BOUND, there.read_exact(&mut hello)).await.unwrap().unwrap();
    let (mut all, mut read) = (vec![0; 4 << 20], 0);
    while read < 64 << 20 {
        // The reader's window and the writer's own buffer.
        let ahead = written.load(Ordering::SeqCst) - read;
        assert!(ahead <= 2 * WINDOW + (64 << 10), "{ahead} bytes were taken that nobody has read");
        read += timeout(BOUND, host.read(&mut all)).await.unwrap().unwrap();
    }
    timeout(BOUND, write).await.unwrap().unwrap();
}

#[tokio::test]
async fn whoever_leaves_is_heard_behind_a_peer_that_reads_nothing() {
    let doors = doors().await;
    for leaves in ["reset", "dropped"] {
        let (mut client, mut host) = pair(&doors).await;
        // As much as fits, in both directions; nobody reads.
        for end in [&mut client, &mut host] {
            while end.write(&[1; 64 << 10]).now_or_never().is_some() {
                tokio::task::yield_now().await;
            }
        }
        match leaves {
            "reset" => timeout(BOUND, client.reset("enough")).await.unwrap(),
            _ => drop(client),
        }
        timeout(BOUND, host.closed()).await.expect("the peer's end is known although nothing is read");
        let error = timeout(BOUND, host.read_to_end(&mut Vec::new())).await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), if leaves == "reset" { "enough" } else { "closed" });
    }
}

#[tokio::test]
async fn a_token_is_for_one_session_once_and_not_for_long() {
    let doors = doors().await;
    let (session, other) = (SessionId::new(), SessionId::new());
    let (offer, mut arrival) = doors.expect(session).unwrap();
    let (others_offer, mut others) = doors.expect(other).unwrap();
    assert!(doors.expect(session).is_none(), "a session has one token");
    assert!(!format!("{offer:?}").contains(&offer.token.0));
    // A wrong token, another session's, another certificate: refused, and the right one still works.
    let wrong = Direct { token: Token("00".repeat(32)), ..offer.clone() };
    assert!(connect(&wrong, session).await.is_err());
    assert!(connect(&offer, other).await.is_err());
    let elsewhere = Direct { fingerprint: "00".repeat(32), ..offer.clone() };
    assert!(connect(&elsewhere, session).await.unwrap_err().to_string().contains("another host"));
    let malformed = Direct { token: Token("x".to_owned()), ..offer.clone() };
    assert!(connect(&malformed, session).await.is_err());
    assert!(!arrives(&mut arrival).await);
    let (client, host) = tokio::join!(connect(&offer, session), timeout(BOUND, arrival.stream()));
    drop((client.unwrap(), host.unwrap()));
    assert!(connect(&offer, session).await.is_err(), "a token is used once");
    // Its session has ended: its token has, too.
    drop(others);
    assert!(connect(&others_offer, other).await.is_err());

    let late = SessionId::new();
    let (offer, arrival) = doors.expect(late).unwrap();
    tokio::time::pause();
    tokio::time::advance(TOKEN_LIFE + Duration::from_secs(1)).await;
    tokio::time::resume();
    assert!(connect(&offer, late).await.is_err(), "its time is over");
    others = arrival;
    assert!(!arrives(&mut others).await);
}

#[tokio::test]
async fn connections_that_say_nothing_or_nonsense_are_bounded_and_end() {
    let doors = doors().await;
    let session = SessionId::new();
    let (offer, _arrival) = doors.expect(session).unwrap();
    let address = offer.addresses[0].clone();
    // One that speaks no TLS is closed at once.
    let mut nonsense = TcpStream::connect(&address).await.unwrap();
    nonsense.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    drop(timeout(BOUND, nonsense.read_to_end(&mut rest)).await.unwrap());
    // As many silent ones as one machine may have: one more is closed, and the client takes the bus.
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(&address).await.unwrap());
    }
    let mut held: FuturesUnordered<_> = silent.into_iter().map(closed_by_host).collect();
    for _ in 0..24 {
        timeout(BOUND, held.next()).await.expect("one too many is closed at once");
    }
    assert!(held.next().now_or_never().is_none(), "16 of one address may try at once, for seconds");
    assert!(connect(&offer, session).await.is_err());
    // Whoever says nothing is closed after some seconds, and then others get in again.
    let let_in = async {
        loop {
            let session = SessionId::new();
            let (offer, mut arrival) = doors.expect(session).unwrap();
            if let (Ok(_), Ok(_)) =
                tokio::join!(connect(&offer, session), timeout(Duration::from_secs(2), arrival.stream()))
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(BOUND, let_in).await.expect("the silent ones are closed");
}
