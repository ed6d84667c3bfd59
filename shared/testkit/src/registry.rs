//! A registry on loopback (docker-registry).

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use oci_client::{
    Client, Reference,
    client::{ClientConfig, ClientProtocol},
    secrets::RegistryAuth,
};
use serde_json::Value;

use crate::{Engine, free_port, program, scratch::Scratch, wait_until};

/// A private registry; ends when dropped.
pub struct Registry {
    engine: Engine,
    port: u16,
    dir: Scratch,
}

impl Registry {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// docker-registry is not installed, or does not start.
    pub async fn start() -> Self {
        let dir = Scratch::new("wreg-");
        let port = free_port();
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            dir.path().join("data").display()
        );
        let path = dir.path().join("config.yml");
        fs::write(&path, config).expect("the configuration is written");
        let server = program("docker-registry", &[]).expect("docker-registry is installed (deploy/check installs it)");
        let mut command = Command::new(server);
        command.arg("serve").arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let engine = Engine::spawn(&mut command).expect("docker-registry starts");
        wait_until("docker-registry", Duration::from_secs(30), async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop)
        })
        .await;
        Self { engine, port, dir }
    }

    /// How an image there is called.
    pub fn reference(&self, repository: &str, tag: &str) -> String {
        format!("127.0.0.1:{}/{repository}:{tag}", self.port)
    }

    /// Pushes the image of an OCI layout for this machine; gives its reference.
    ///
    /// # Panics
    /// The layout is damaged, or the registry refuses it.
    pub async fn push_layout(&self, layout: &Path, repository: &str, tag: &str) -> String {
        let name = format!("127.0.0.1:{}/{repository}:{tag}", self.port);
        let reference: Reference = name.parse().expect("a reference");
        let client = Client::new(ClientConfig { protocol: ClientProtocol::Http, ..Default::default() });
        client
            .auth(&reference, &RegistryAuth::Anonymous, oci_client::RegistryOperation::Push)
            .await
            .expect("anonymous");
        let blob = |digest: &str| -> PathBuf { layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:")) };
        let index: Value =
            serde_json::from_slice(&fs::read(layout.join("index.json")).expect("index.json")).expect("JSON");
        let manifests = index["manifests"].as_array().expect("manifests");
        let digest = manifests.iter().filter_map(|entry| entry["digest"].as_str()).find(|digest| blob(digest).exists());
        let bytes = fs::read(blob(digest.expect("a manifest"))).expect("the manifest");
        let manifest: Value = serde_json::from_slice(&bytes).expect("JSON");
        let layers = manifest["layers"].as_array().expect("layers").iter().chain([&manifest["config"]]);
        for digest in layers.filter_map(|descriptor| descriptor["digest"].as_str()) {
            let content = fs::read(blob(digest)).expect("a blob");
            client.push_blob(&reference, content, digest).await.expect("the registry takes the blob");
        }
        let media = manifest["mediaType"].as_str().unwrap_or("application/vnd.oci.image.manifest.v1+json");
        let media = media.parse().expect("a media type");
        client.push_manifest_raw(&reference, bytes, media).await.expect("the registry takes the manifest");
        name
    }

    /// Damages the largest blob it holds, keeping its length.
    ///
    /// # Panics
    /// It holds none.
    pub fn corrupt_a_layer(&self) {
        let mut pending = vec![self.dir.path().join("data")];
        let mut largest: Option<(u64, PathBuf)> = None;
        while let Some(dir) = pending.pop() {
            for entry in fs::read_dir(dir).expect("the storage").flatten() {
                let (path, metadata) = (entry.path(), entry.metadata().expect("a file"));
                if metadata.is_dir() {
                    pending.push(path);
                } else if largest.as_ref().is_none_or(|(length, _)| metadata.len() > *length) {
                    largest = Some((metadata.len(), path));
                }
            }
        }
        let (_, path) = largest.expect("a blob");
        let mut bytes = fs::read(&path).expect("a blob");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::write(&path, bytes).expect("the storage can be written");
    }

    /// Ends it, as a registry that goes away.
    pub fn stop(mut self) {
        self.engine.kill();
    }
}
