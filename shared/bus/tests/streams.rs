//! Stories of byte streams: two processes that see each other only through NATS.

use std::time::Duration;

use bus::{Bus, BusConfig, ByteStream};
use contract::{SessionId, stream::Packet};
use futures::StreamExt;
use rand::RngExt;
use testkit::Nats;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

/// Emulated disks and two busy cores: no story takes this long.
const BOUND: Duration = Duration::from_secs(60);

async fn pair(nats: &Nats) -> (ByteStream, ByteStream) {
    let session = SessionId::new();
    let near = Bus::connect(&BusConfig::new(nats.url(), "opener")).await.unwrap();
    let far = Bus::connect(&BusConfig::new(nats.url(), "acceptor")).await.unwrap();
    let opener = ByteStream::open(&near, session).await.unwrap();
    let acceptor = ByteStream::accept(&far, session).await.unwrap();
    (opener, acceptor)
}

fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rand::rng().fill(&mut bytes[..]);
    bytes
}

#[tokio::test]
async fn a_question_and_its_answer_both_end_cleanly() {
    let nats = Nats::start().await;
    let (mut opener, mut acceptor) = pair(&nats).await;
    let echo = tokio::spawn(async move {
        let mut all = Vec::new();
        acceptor.read_to_end(&mut all).await.unwrap();
        acceptor.write_all(&all).await.unwrap();
        acceptor.shutdown().await.unwrap();
        acceptor.closed().await;
    });
    let sent = random(3 * 1024 * 1024);
    let (mut reader, mut writer) = tokio::io::split(opener);
    let copy = sent.clone();
    let write = tokio::spawn(async move {
        writer.write_all(&copy).await.unwrap();
        writer.shutdown().await.unwrap();
        writer
    });
    let mut received = Vec::new();
    timeout(BOUND, reader.read_to_end(&mut received)).await.unwrap().unwrap();
    assert!(received == sent);
    opener = reader.unsplit(write.await.unwrap());
    timeout(BOUND, opener.closed()).await.unwrap();
    echo.await.unwrap();
}

#[tokio::test]
async fn a_peer_that_said_all_and_left_is_heard_to_the_end() {
    let nats = Nats::start().await;
    let (session, bus) = (SessionId::new(), Bus::connect(&BusConfig::new(nats.url(), "both")).await.unwrap());
    let mut wire = bus.subscribe(contract::subject::stream_to_opener(session)).await.unwrap();
    let mut opener = ByteStream::open(&bus, session).await.unwrap();
    let mut acceptor = ByteStream::accept(&bus, session).await.unwrap();
    let said = random(300 * 1024);
    acceptor.write_all(&said).await.unwrap();
    acceptor.shutdown().await.unwrap();
    drop(acceptor);
    // The first read comes after the reset.
    let reset = async {
        loop {
            let packet = Packet::decode(wire.next().await.unwrap().payload);
            if matches!(packet, Some(Packet::Reset { .. })) {
                return;
            }
        }
    };
    timeout(BOUND, reset).await.unwrap();
    let mut heard = Vec::new();
    timeout(BOUND, opener.read_to_end(&mut heard)).await.unwrap().unwrap();
    assert!(heard == said);
    let refused = opener.write_all(b"too late").await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_restart_of_nats_in_the_middle_loses_no_byte() {
    let mut nats = Nats::start().await;
    let (mut opener, mut acceptor) = pair(&nats).await;
    let sent = random(8 * 1024 * 1024);
    let copy = sent.clone();
    let write = tokio::spawn(async move {
        opener.write_all(&copy).await.unwrap();
        opener.shutdown().await.unwrap();
        opener.closed().await;
    });
    let mut received = vec![0; 1024 * 1024];
    acceptor.read_exact(&mut received).await.unwrap();
    nats.restart().await;
    timeout(BOUND, acceptor.read_to_end(&mut received)).await.unwrap().unwrap();
    acceptor.shutdown().await.unwrap();
    assert!(received == sent);
    timeout(BOUND, write).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stalled_reader_stops_its_own_sender_after_a_window() {
    let nats = Nats::start().await;
    let (mut opener, mut acceptor) = pair(&nats).await;
    let sent = random(4 * 1024 * 1024);
    let copy = sent.clone();
    let mut write = tokio::spawn(async move {
        opener.write_all(&copy).await.unwrap();
        opener.shutdown().await.unwrap();
        opener.closed().await;
    });
    assert!(timeout(Duration::from_secs(2), &mut write).await.is_err(), "nobody reads, so the writer must wait");
    let mut received = Vec::new();
    timeout(BOUND, acceptor.read_to_end(&mut received)).await.unwrap().unwrap();
    acceptor.shutdown().await.unwrap();
    assert!(received == sent);
    timeout(BOUND, write).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_reset_tells_the_other_end_why() {
    let nats = Nats::start().await;
    let (mut opener, acceptor) = pair(&nats).await;
    acceptor.reset("vm stopped").await;
    let error = timeout(BOUND, opener.read_to_end(&mut Vec::new())).await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "vm stopped");
}

#[tokio::test]
async fn a_dropped_end_is_a_reset_but_what_was_shut_down_before_arrives() {
    let nats = Nats::start().await;
    let (opener, mut acceptor) = pair(&nats).await;
    drop(opener);
    assert!(timeout(BOUND, acceptor.read_to_end(&mut Vec::new())).await.unwrap().is_err());

    let (mut opener, mut acceptor) = pair(&nats).await;
    opener.write_all(b"last words").await.unwrap();
    opener.shutdown().await.unwrap();
    drop(opener);
    let mut words = vec![0; 10];
    timeout(BOUND, acceptor.read_exact(&mut words)).await.unwrap().unwrap();
    assert_eq!(words, b"last words");
}

#[tokio::test]
async fn an_acceptor_that_begins_late_gets_all_and_one_that_never_does_is_given_up() {
    let nats = Nats::start().await;
    let (session, bus) = (SessionId::new(), Bus::connect(&BusConfig::new(nats.url(), "both")).await.unwrap());
    let mut wire = bus.subscribe(contract::subject::stream_to_acceptor(session)).await.unwrap();
    let mut opener = ByteStream::open_within(&bus, session, BOUND).await.unwrap();
    let sent = random(600 * 1024);
    let copy = sent.clone();
    let write = tokio::spawn(async move {
        opener.write_all(&copy).await.unwrap();
        opener.shutdown().await.unwrap();
        opener.closed().await;
    });
    // A window was said to nobody: each byte of it once, although more than a resend's time passes.
    let mut said = 0;
    let mut acknowledgements = 0;
    while acknowledgements < 2 {
        match Packet::decode(timeout(BOUND, wire.next()).await.unwrap().unwrap().payload) {
            Some(Packet::Data { data, .. }) => said += data.len() as u64,
            Some(Packet::Ack { .. }) => acknowledgements += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(said, contract::stream::WINDOW);
    let mut acceptor = ByteStream::accept(&bus, session).await.unwrap();
    let mut received = Vec::new();
    timeout(BOUND, acceptor.read_to_end(&mut received)).await.unwrap().unwrap();
    acceptor.shutdown().await.unwrap();
    assert!(received == sent);
    timeout(BOUND, write).await.unwrap().unwrap();

    let mut alone = ByteStream::open_within(&bus, SessionId::new(), Duration::from_millis(200)).await.unwrap();
    let gone = timeout(BOUND, alone.read_to_end(&mut Vec::new())).await.unwrap().unwrap_err();
    assert!(gone.to_string().contains("silent for 0 s"), "{gone}");
}

#[tokio::test]
async fn an_end_that_was_reset_before_the_other_began_is_heard_of_at_once() {
    let nats = Nats::start().await;
    let bus = Bus::connect(&BusConfig::new(nats.url(), "both")).await.unwrap();
    for dropped in [false, true] {
        let session = SessionId::new();
        let opener = ByteStream::open_within(&bus, session, BOUND).await.unwrap();
        if dropped {
            drop(opener)
        } else {
            opener.reset("the file is gone").await
        }
        // Nobody listened when it was said.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut acceptor = ByteStream::accept(&bus, session).await.unwrap();
        let heard = timeout(Duration::from_secs(5), acceptor.read_to_end(&mut Vec::new())).await;
        let error = heard.expect("it is not waited for a peer that is gone").unwrap_err();
        assert_eq!(error.to_string(), if dropped { "closed" } else { "the file is gone" });
    }
}

#[tokio::test]
async fn a_bus_that_stays_away_for_longer_than_a_stream_waits_is_said_to_be_why() {
    let nats = Nats::start().await;
    let bus = Bus::connect(&BusConfig::new(nats.url(), "opener")).await.unwrap();
    let mut opener = ByteStream::open_within(&bus, SessionId::new(), Duration::from_secs(1)).await.unwrap();
    drop(nats);
    let error = timeout(BOUND, opener.read_to_end(&mut Vec::new())).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("the connection to the bus was lost for 1 s"), "{error}");
}
