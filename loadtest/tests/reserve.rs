//! The benchmark runs, and what it counts is there.

use clap::Parser;
use loadtest::reserve::{Options, run};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_paths_are_measured_on_engines_of_their_own() {
    let line = ["loadtest", "--clients", "8", "--seconds", "1", "--rounds", "1", "--hosts", "4"];
    let report = run(&Line::parse_from(line).options).await.unwrap();
    // A debug build on a busy machine reaches less than a release build; that it is not absurd is enough here.
    assert!(report.ratio() > 0.05 && report.good(), "{}", report.table());
    assert!(report.table().contains("bare SQL (pgbench)"));
}
