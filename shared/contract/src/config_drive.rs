//! The config drive: a small read-only disk that carries one VM's settings into its guest.
//!
//! Its bytes are [`MAGIC`], the length of the JSON (four bytes, big endian), the SHA-256 of the
//! JSON, the JSON, and zeros up to a multiple of 4096 bytes.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{image::ImageConfig, name::VmName};

/// The first bytes of a config drive.
pub const MAGIC: [u8; 8] = *b"WARRENC1";
/// The longest JSON, in bytes.
pub const JSON_MAX: usize = 1024 * 1024;
const HEADER: usize = 8 + 4 + 32;
const SECTOR: usize = 4096;

/// The serial number of the root filesystem's disk.
pub const ROOT_SERIAL: &str = "warren-root";
/// The serial number of this drive.
pub const CONFIG_SERIAL: &str = "warren-config";

/// One VM's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The VM's id, for logs.
    pub vm_id: String,
    /// The host name.
    pub name: VmName,
    /// The lab's DNS domain.
    pub domain: String,
    /// The network interface; absent for a VM without one.
    pub network: Option<Network>,
    /// OpenSSH public keys that may log in as root over the network.
    pub ssh_keys: Vec<String>,
    /// The ssh host key, OpenSSH private key format.
    pub ssh_host_key: String,
    /// What the image's author asked to be run, for images without an init.
    pub image: ImageConfig,
    /// A program that runs once, at the first boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// Disks to be mounted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<DiskMount>,
}

/// A data disk and where it belongs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMount {
    /// The virtio disk's serial number.
    pub serial: String,
    /// An absolute path.
    pub path: String,
}

/// The network interface's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Which interface.
    pub mac: String,
    /// Its address with the prefix length.
    pub address: Ipv4Net,
    /// The default route.
    pub gateway: Ipv4Addr,
    /// Name servers for `/etc/resolv.conf`.
    pub dns: Vec<Ipv4Addr>,
}

/// Why bytes are no config drive.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// Not one at all.
    #[error("not a config drive: the magic number is missing")]
    Magic,
    /// Cut short, too long or damaged.
    #[error("the config drive is damaged: {0}")]
    Damaged(&'static str),
    /// Not the JSON expected.
    #[error("the config drive's settings cannot be read")]
    Json(#[from] serde_json::Error),
}

impl Settings {
    /// The drive's bytes.
    ///
    /// # Errors
    /// The JSON is over [`JSON_MAX`].
    pub fn to_drive(&self) -> Result<Vec<u8>, DriveError> {
        let json = serde_json::to_vec(self)?;
        if json.len() > JSON_MAX {
            return Err(DriveError::Damaged("its settings are over 1 MiB"));
        }
        let mut drive = Vec::with_capacity((HEADER + json.len()).next_multiple_of(SECTOR));
        drive.extend_from_slice(&MAGIC);
        drive.extend_from_slice(&(json.len() as u32).to_be_bytes());
        drive.extend_from_slice(&Sha256::digest(&json));
        drive.extend_from_slice(&json);
        drive.resize(drive.len().next_multiple_of(SECTOR), 0);
        Ok(drive)
    }

    /// Reads a drive's bytes.
    ///
    /// # Errors
    /// They are no config drive, or a damaged one.
    pub fn from_drive(drive: &[u8]) -> Result<Self, DriveError> {
        if drive.get(..8) != Some(&MAGIC[..]) {
            return Err(DriveError::Magic);
        }
        let header = drive.get(8..HEADER).ok_or(DriveError::Damaged("its header is cut short"))?;
        let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
        if length > JSON_MAX {
            return Err(DriveError::Damaged("its length is over 1 MiB"));
        }
        let json = drive.get(HEADER..HEADER + length).ok_or(DriveError::Damaged("it is cut short"))?;
        if Sha256::digest(json)[..] != header[4..36] {
            return Err(DriveError::Damaged("its checksum is wrong"));
        }
        Ok(serde_json::from_slice(json)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            vm_id: "x".into(),
            name: "web".parse().unwrap(),
            domain: "warren".into(),
            network: None,
            ssh_keys: vec![],
            ssh_host_key: String::new(),
            image: ImageConfig::default(),
            user_data: None,
            mounts: vec![],
        }
    }

    #[test]
    fn a_drive_is_read_back() {
        let drive = settings().to_drive().unwrap();
        assert_eq!(drive.len() % 4096, 0);
        assert_eq!(Settings::from_drive(&drive).unwrap(), settings());
    }

    #[test]
    fn a_damaged_drive_is_refused() {
        let mut drive = settings().to_drive().unwrap();
        drive[60] ^= 1;
        assert!(matches!(Settings::from_drive(&drive), Err(DriveError::Damaged(_))));
        assert!(matches!(Settings::from_drive(&[0; 4096]), Err(DriveError::Magic)));
        assert!(matches!(Settings::from_drive(&drive[..20]), Err(DriveError::Damaged(_))));
    }
}
