//! What a VM has beside its size: environment, ports, data disks, network, first-boot script.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    name::{KernelName, VmName},
    size::MebiBytes,
};

/// How many ports one VM may publish.
pub const PORTS_MAX: usize = 64;
/// How many data disks one VM may have.
pub const DATA_DISKS_MAX: usize = 8;
/// How many environment variables one VM may be given.
pub const ENV_MAX: usize = 256;
/// The longest environment in all, in bytes.
pub const ENV_BYTES_MAX: usize = 64 * 1024;
/// The longest first-boot script, in bytes; with everything else it has to fit the config drive.
pub const USER_DATA_MAX: usize = 256 * 1024;
/// The longest kernel arguments, in bytes: the kernel takes 2048 in all.
pub const KERNEL_ARGS_MAX: usize = 1024;
/// Whom a VM's network reaches. Published ports and `warren ssh` work in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// Nobody: no other VM, no name server, nothing outside.
    Isolated,
    /// The lab's other VMs and its name server.
    Lab,
    /// The lab, and through the host's uplink, where it has one, what is outside.
    #[default]
    Internet,
}

impl NetworkMode {
    /// The mode as it stands on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Isolated => "isolated",
            Self::Lab => "lab",
            Self::Internet => "internet",
        }
    }
}

impl FromStr for NetworkMode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Isolated, Self::Lab, Self::Internet]
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not one of isolated, lab, internet"))
    }
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// `tcp` or `udp`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A port of the host that leads to one of the VM: `[address:]port:guest-port[/tcp|/udp]`, for example `8080:80`. Without
/// an address it is the host's own choice (`WARREN_PUBLISH_ADDRESS`, loopback unless set).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct PublishedPort {
    /// The host's address.
    pub address: Option<Ipv4Addr>,
    /// The host's port.
    pub host: u16,
    /// The VM's port.
    pub guest: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl FromStr for PublishedPort {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!(
                "{text:?} is no published port: {why}; write [address:]host-port:guest-port[/tcp|/udp], like 8080:80"
            )
        };
        let (numbers, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((numbers, "tcp")) => (numbers, Protocol::Tcp),
            Some((numbers, "udp")) => (numbers, Protocol::Udp),
            Some(_) => return Err(wrong("its protocol is neither tcp nor udp")),
        };
        let (rest, guest) = numbers.rsplit_once(':').ok_or_else(|| wrong("it names one port"))?;
        let (address, host) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((address, host)) => (Some(address.parse().map_err(|_| wrong("its address is not IPv4"))?), host),
        };
        let port = |text: &str| text.parse().ok().filter(|port| *port > 0).ok_or_else(|| wrong("a port is 1 to 65535"));
        Ok(Self { address, host: port(host)?, guest: port(guest)?, protocol })
    }
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.address {
            write!(f, "{address}:")?;
        }
        write!(f, "{}:{}/{}", self.host, self.guest, self.protocol.as_str())
    }
}

impl TryFrom<String> for PublishedPort {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PublishedPort> for String {
    fn from(port: PublishedPort) -> Self {
        port.to_string()
    }
}

/// Another disk of a VM. In the guest it is the virtio disk whose serial number is its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataDisk {
    /// Its name: unique in the VM, and in the lab where it is kept. At most 20 characters, as serial numbers are.
    pub name: VmName,
    /// Its size (16M to 16T); a kept one that is there already keeps its own when that is larger.
    pub size: MebiBytes,
    /// Keep it when the VM is deleted; the next VM that asks for a kept disk of that name gets it.
    #[serde(default)]
    pub keep: bool,
    /// Make an ext4 filesystem on it when it is new, and mount it here at each boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<String>,
}

impl FromStr for DataDisk {
    type Err = String;
    /// `name=work,size=1G[,mount=/work][,keep]`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            |why: String| format!("{text:?} is no data disk: {why}; write name=work,size=1G[,mount=/work][,keep]");
        let (mut name, mut size, mut mount, mut keep) = (None, None, None, false);
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("name", value)) => {
                    name = Some(value.parse::<VmName>().map_err(|error| wrong(error.to_string()))?)
                }
                Some(("size", value)) => {
                    size = Some(value.parse::<MebiBytes>().map_err(|error| wrong(error.to_string()))?)
                }
                Some(("mount", value)) => mount = Some(value.to_owned()),
                None if part == "keep" => keep = true,
                _ => return Err(wrong(format!("{part:?} is unknown"))),
            }
        }
        let name = name.ok_or_else(|| wrong("it has no name".to_owned()))?;
        let size = size.ok_or_else(|| wrong("it has no size".to_owned()))?;
        Ok(Self { name, size, keep, mount })
    }
}

/// What a VM has beside its size; part of a create, of what a host is told, and of what clients see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Features {
    /// More environment for the image's program and for `exec` and `ssh`; wins over the image's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// In place of the image's entrypoint, for images without an init.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// In place of the image's command, for images without an init.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// The kernel it boots: one of the lab's by its name or how its digest begins, else one that hosts have in a directory of that name. Left
    /// out, its image's, or the lab's default, or the host's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelName>,
    /// More kernel arguments.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kernel_args: String,
    /// A program (its first line begins with `#!`) that runs as root at the first boot, once the VM is ready. What it
    /// prints goes to `/var/log/warren-user-data.log`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// More disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DataDisk>,
    /// Ports of the host that lead into the VM.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PublishedPort>,
    /// Whom its network reaches.
    #[serde(default)]
    pub network: NetworkMode,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_and_written_back() {
        for (text, back) in
            [("8080:80", "8080:80/tcp"), ("53:53/udp", "53:53/udp"), ("127.0.0.1:2222:22/tcp", "127.0.0.1:2222:22/tcp")]
        {
            assert_eq!(text.parse::<PublishedPort>().unwrap().to_string(), back);
        }
        for wrong in ["80", "0:80", "80:65536", "80:80/sctp", "::1:80:80", "x:80:80", ""] {
            assert!(wrong.parse::<PublishedPort>().unwrap_err().contains("published port"), "{wrong}");
        }
    }

    #[test]
    fn data_disks_are_read() {
        let disk: DataDisk = "name=work,size=1G,mount=/work,keep".parse().unwrap();
        assert_eq!((disk.name.as_str(), disk.size, disk.keep), ("work", MebiBytes(1024), true));
        assert_eq!(disk.mount.as_deref(), Some("/work"));
        for wrong in ["work", "name=work", "size=1G", "name=../x,size=1G", "name=w,size=1G,ro"] {
            assert!(wrong.parse::<DataDisk>().unwrap_err().contains("data disk"), "{wrong}");
        }
    }
}
