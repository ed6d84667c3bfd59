//! `warren port-forward`: listens here, and carries each connection over the bus to a port that the VM reaches. No route to
//! the VM and no network of it is needed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use contract::{ApiError, workspace::SessionKind, workspace::TcpTarget};
use tokio::net::{TcpListener, TcpStream};

use crate::{
    args::{Global, PortForwardArgs},
    client::Client,
    failure::{Failure, Outcome, SIGINT_EXIT},
    output,
};

/// How many connections one port carries at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 128;
/// The pause after a connection could not be accepted, e.g. for lack of descriptors.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(200);

/// Where one port leads.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Forward {
    listen: SocketAddr,
    port: u16,
}

impl std::str::FromStr for Forward {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            |why: &str| format!("{text:?} is no port to forward: {why}; write [[ADDRESS:]LOCAL:]PORT, like 8080:80");
        let port = |text: &str| text.parse::<u16>().map_err(|_| wrong("a port is 1 to 65535"));
        let mut parts = text.rsplitn(3, ':');
        let remote = port(parts.next().unwrap_or_default())?;
        if remote == 0 {
            return Err(wrong("a port is 1 to 65535"));
        }
        let local = parts.next().map(port).transpose()?.unwrap_or(remote);
        let address = match parts.next() {
            None => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Some(address) => address
                .trim_start_matches('[')
                .trim_end_matches(']')
                .parse()
                .map_err(|_| wrong("its address is no IP address"))?,
        };
        Ok(Self { listen: SocketAddr::new(address, local), port: remote })
    }
}

/// Forwards until it is interrupted.
///
/// # Errors
/// There is no such VM, it does not run, or a port is in use here.
pub async fn run(global: &Global, args: PortForwardArgs) -> Result<Outcome, Failure> {
    let forwards: Vec<Forward> = args.ports.iter().map(|text| super::parse(text)).collect::<Result<_, _>>()?;
    let client = Client::connect(global).await?;
    // Asked now, so that a wrong name is not found out by the first connection.
    client.ask::<contract::vm::Get>(&contract::vm::VmRef { vm: args.vm.clone() }).await?;
    let mut listening = Vec::new();
    for forward in &forwards {
        let listener = TcpListener::bind(forward.listen).await.map_err(|error| {
            ApiError::failed_precondition(format!("{} cannot be listened on: {error}", forward.listen))
                .hint("choose another port, or 0 for a free one")
        })?;
        let mut target = TcpTarget::own(forward.port);
        if let Some(host) = &args.to {
            target.host.clone_from(host);
        }
        let here = listener.local_addr().map_err(|error| ApiError::internal(error.to_string()))?;
        output::text(&format!("{here} leads to {}\n", described(&args, forward.port)))?;
        listening.push((listener, target));
    }
    for (listener, target) in listening {
        tokio::spawn(accept(client.clone(), args.vm.clone(), listener, target));
    }
    tokio::signal::ctrl_c().await.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(Outcome::Exit(SIGINT_EXIT))
}

fn described(args: &PortForwardArgs, port: u16) -> String {
    match &args.to {
        None => format!("{}:{port}", args.vm),
        Some(host) => format!("{host}:{port} from {}", args.vm),
    }
}

async fn accept(client: Client, vm: String, listener: TcpListener, target: TcpTarget) {
    let turns = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(turn) = turns.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((connection, _)) => {
                let (client, vm, target) = (client.clone(), vm.clone(), target.clone());
                tokio::spawn(async move {
                    if let Err(error) = carry(&client, &vm, connection, target).await {
                        output::note(&output::clean(&error.to_string()));
                    }
                    drop(turn);
                });
            }
            Err(error) => {
                output::note(&format!("a connection was not accepted: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Carries one connection; where the VM refuses it, dropping it tells who connected.
async fn carry(client: &Client, vm: &str, mut connection: TcpStream, target: TcpTarget) -> Result<(), ApiError> {
    let mut stream = client.open(vm, SessionKind::Tcp(target)).await?;
    // An end in the middle is both sides' own affair, as on any network.
    if let Err(error) = tokio::io::copy_bidirectional(&mut connection, &mut stream).await {
        tracing::debug!(%error, "a forwarded connection was cut");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read() {
        for (text, listen, port) in [
            ("80", "127.0.0.1:80", 80),
            ("8080:80", "127.0.0.1:8080", 80),
            ("0.0.0.0:0:80", "0.0.0.0:0", 80),
            ("[::1]:8080:80", "[::1]:8080", 80),
        ] {
            assert_eq!(text.parse(), Ok(Forward { listen: listen.parse().unwrap(), port }), "{text}");
        }
        for wrong in ["", "0", "80:0", "x:80", "1:2:3:4:x", "70000", "host:1:2"] {
            assert!(wrong.parse::<Forward>().unwrap_err().contains("port"), "{wrong}");
        }
    }
}
