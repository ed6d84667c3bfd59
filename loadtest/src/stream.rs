//! Scenario **stream**: what the roads of a session carry: byte streams over the bus (a nats-server of its own) and direct TLS
//! connections, beside the same bytes over a bare TCP connection, all on this machine.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bus::{
    Bus, BusConfig, ByteStream,
    direct::{Doors, Listen, connect},
};
use clap::Args;
use contract::SessionId;
use serde::Serialize;
use testkit::Nats;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::report::table;

/// How much is written and read at once, in bytes: as a host-agent and a client do.
const CHUNK: usize = 32 * 1024;
/// How many bytes go to and fro to measure how long one takes.
const PINGS: u32 = 200;

/// How to measure.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// How many MiB a run carries.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub mib: u32,
    /// How many runs of each.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub runs: u16,
}

/// One road: medians of its runs.
#[derive(Clone, Debug, Serialize)]
struct Road {
    name: &'static str,
    mib_per_second: f64,
    round_trip_us: f64,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    mib: u32,
    runs: u16,
    roads: Vec<Road>,
}

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        let bare = self.roads.last().map_or(1.0, |road| road.mib_per_second);
        let rows: Vec<_> = self
            .roads
            .iter()
            .map(|road| {
                let ratio = road.mib_per_second / bare;
                vec![
                    road.name.to_owned(),
                    format!("{:.0}", road.mib_per_second),
                    format!("{ratio:.2}"),
                    format!("{:.0}", road.round_trip_us),
                ]
            })
            .collect();
        let table = table(&["road", "MiB/s", "of bare TCP", "round trip µs"], &rows);
        format!("{table}\nmedians of {} runs with {} MiB each", self.runs, self.mib)
    }

    /// There is nothing that could be wrong but an error.
    pub fn good(&self) -> bool {
        true
    }
}

/// Measures each road in turn.
///
/// # Errors
/// NATS or the network does not work.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    let nats = Nats::start().await;
    let near = Bus::connect(&BusConfig::new(nats.url(), "near")).await?;
    let far = Bus::connect(&BusConfig::new(nats.url(), "far")).await?;
    let doors = Doors::open(&Listen { address: ([127, 0, 0, 1], 0).into(), advertised: Vec::new() }).await?;
    let mut all: [Vec<(f64, f64)>; 3] = Default::default();
    for _ in 0..options.runs {
        let session = SessionId::new();
        let ends = (ByteStream::open(&near, session).await?, ByteStream::accept(&far, session).await?);
        all[0].push(measure(ends.0, ends.1, options.mib).await?);
        let session = SessionId::new();
        let (offer, mut arrival) = doors.expect(session).context("no token")?;
        let (client, host) = tokio::join!(connect(&offer, session), arrival.stream());
        all[1].push(measure(client?, host, options.mib).await?);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (client, host) = tokio::join!(TcpStream::connect(listener.local_addr()?), listener.accept());
        let (client, (host, _)) = (client?, host?);
        client.set_nodelay(true)?;
        host.set_nodelay(true)?;
        all[2].push(measure(client, host, options.mib).await?);
    }
    let names = ["bus", "direct TLS", "bare TCP"];
    let roads = names.into_iter().zip(all).map(|(name, runs)| {
        let median = |of: fn(&(f64, f64)) -> f64| {
            let mut values: Vec<_> = runs.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        Road { name, mib_per_second: median(|run| run.0), round_trip_us: median(|run| run.1) }
    });
    Ok(Report { mib: options.mib, runs: options.runs, roads: roads.collect() })
}

/// MiB a second one way, and microseconds for one byte there and back.
async fn measure<S>(mut near: S, mut far: S, mib: u32) -> anyhow::Result<(f64, f64)>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let total = u64::from(mib) << 20;
    let reading = tokio::spawn(async move {
        let mut byte = [0; 1];
        for _ in 0..PINGS {
            far.read_exact(&mut byte).await?;
            far.write_all(&byte).await?;
            far.flush().await?;
        }
        let (mut buffer, mut read) = (vec![0; CHUNK], 0);
        while read < total {
            let count = far.read(&mut buffer).await?;
            ensure!(count > 0, "it ended after {read} bytes");
            read += count as u64;
        }
        far.write_all(&byte).await?;
        far.flush().await?;
        Ok(far)
    });
    let mut byte = [7; 1];
    let begun = Instant::now();
    for _ in 0..PINGS {
        near.write_all(&byte).await?;
        near.flush().await?;
        near.read_exact(&mut byte).await?;
    }
    let round_trip = begun.elapsed() / PINGS;
    let chunk = vec![0x5a; CHUNK];
    let begun = Instant::now();
    for _ in 0..total / CHUNK as u64 {
        near.write_all(&chunk).await?;
    }
    near.flush().await?;
    near.read_exact(&mut byte).await?;
    let took: Duration = begun.elapsed();
    drop(reading.await??);
    Ok((f64::from(mib) / took.as_secs_f64(), round_trip.as_secs_f64() * 1e6))
}
