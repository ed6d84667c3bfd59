//! A private nats-server with JetStream on a port of loopback.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use crate::{Engine, free_port, program, scratch::Scratch, wait_until};

/// A private nats-server; ends when dropped.
pub struct Nats {
    engine: Engine,
    port: u16,
    dir: Scratch,
}

impl Nats {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// nats-server is not installed, or does not start.
    pub async fn start() -> Self {
        let dir = Scratch::new("wnats-");
        // Another process may take the port between the look and the bind: try again then.
        for _ in 0..5 {
            let port = free_port();
            let mut engine = spawn(port, dir.path());
            if answers(port, &mut engine).await {
                return Self { engine, port, dir };
            }
        }
        panic!("nats-server does not start");
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Kills it and starts it again on the same port with the same JetStream store.
    pub async fn restart(&mut self) {
        self.engine.kill();
        self.engine = spawn(self.port, self.dir.path());
        assert!(answers(self.port, &mut self.engine).await, "nats-server does not start again");
    }
}

fn spawn(port: u16, dir: &std::path::Path) -> Engine {
    let server = program("nats-server", &[]).expect("nats-server is installed (deploy/check installs it)");
    let mut command = Command::new(server);
    command.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"]).arg(dir);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Engine::spawn(&mut command).expect("nats-server starts")
}

async fn answers(port: u16, engine: &mut Engine) -> bool {
    wait_until("nats-server", Duration::from_secs(20), async || {
        if !matches!(engine.0.try_wait(), Ok(None)) {
            return Some(false);
        }
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok().then_some(true)
    })
    .await
}
