//! The lab's private nats-server, with JetStream, on the loopback interface only.

use std::path::{Path, PathBuf};

use contract::ApiError;

use super::{
    layout::{self, Layout},
    postgres::Identity,
};

/// Who nats-server runs as; it needs no privilege.
///
/// # Errors
/// There is no such user.
pub fn identity() -> Result<Option<Identity>, ApiError> {
    Identity::find(&["nats", "nobody"])
}

/// Writes the server's configuration and makes its directory.
///
/// # Errors
/// They cannot be written.
pub fn create(layout: &Layout, port: u16) -> Result<(), ApiError> {
    Identity::own_dir(identity()?, &layout.nats_data())?;
    let store = layout.nats_data();
    let text = format!(
        "# Written by `warren dev up`.\nlisten: \"127.0.0.1:{port}\"\nserver_name: warren-dev\n\
         jetstream {{\n  store_dir: {}\n  max_memory_store: 64MB\n  max_file_store: 1GB\n}}\n",
        serde_json::Value::from(store.to_string_lossy().into_owned())
    );
    let path = layout.nats_config();
    // Its reader is another user.
    layout::write_atomically(&path, text.as_bytes(), 0o644).map_err(|error| layout::at(&path, "written", &error))
}

/// The command line of the server.
pub fn command(layout: &Layout, program: &Path) -> (PathBuf, Vec<String>) {
    (program.to_owned(), vec!["-c".to_owned(), layout.nats_config().display().to_string()])
}
