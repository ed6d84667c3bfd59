//! The options of `warren image export`.

use clap::Args;

/// `warren image export`
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Name, id or digest, or how one of these two begins
    pub image: String,
    /// The archive's file; - for standard output [default: the image's name with .oci.tar]
    pub file: Option<String>,
}
