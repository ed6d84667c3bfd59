//! The **sweeper** tells, once, of each host that came up or went silent. It takes no input: each round looks at all
//! hosts, so a lost round costs its interval.

use std::time::Duration;

use store::Store;
use tokio_util::sync::CancellationToken;

use crate::db::host::host_announce;

/// How often hosts are looked at: well within the time that makes a host count as down.
const EVERY: Duration = Duration::from_secs(1);

/// Sweeps until told to stop.
pub async fn run(store: Store, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
        match host_announce(&store).await {
            Ok(changed) => {
                for (host, up) in changed {
                    tracing::info!(host.id = %host, up, "a host changed");
                }
            }
            Err(error) => tracing::debug!(%error, "hosts cannot be looked at now"),
        }
    }
}
