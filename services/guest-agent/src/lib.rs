//! `guest-agent`: the init of Warren's initramfs, and the agent that lives in each VM.
//!
//! One static binary has three lives. [`boot`] runs as the kernel's first process: it loads modules, mounts the
//! VM's root filesystem and gives the VM its name and network. Then it forks: [`supervisor`] keeps one [`agent`]
//! process alive, which answers the host over the channel ([`contract::guest`]) and people over [`ssh`]; and
//! process 1 becomes the image's own init, or stays guest-agent ([`pid1`]) where the image has none.
//!
//! # Kernel command line
//! Everything comes from the config drive. For debugging only:
//! - `warren.shell`: a shell of the image on the console instead of an init (guest-agent stays process 1);
//! - `warren.log=debug`: more of guest-agent's log on the console.

pub mod agent;
pub mod boot;
pub mod exec;
pub mod files;
pub mod freeze;
pub mod jobs;
pub mod logging;
pub mod pid1;
pub mod power;
pub mod process;
pub mod ssh;
pub mod supervisor;
pub mod tcp;
pub mod user_data;
pub mod workspace;
