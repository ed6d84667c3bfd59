//! Tap devices (Linux Documentation/networking/tuntap.rst), in the calling thread's namespace.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd,
};

nix::ioctl_write_int_bad!(tun_set_persist, 0x4004_54cb);
nix::ioctl_write_ptr_bad!(tun_set_iff, 0x4004_54ca, libc::ifreq);

/// Makes a persistent tap that is there until it is deleted, whether or not anybody has it open.
pub(super) fn create(name: &str) -> io::Result<()> {
    let tap = attach(name)?;
    // SAFETY: `tap` is open and attached to the device just made.
    unsafe { tun_set_persist(tap.as_raw_fd(), 1) }?;
    Ok(())
}

/// Attaches to a tap, which at most one process can be; makes one that is gone with its last process where there is none.
pub(super) fn attach(name: &str) -> io::Result<File> {
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "an interface name has at most 15 bytes"));
    }
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: an all-zero ifreq is a valid value of that plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: `tun` is open and `request` is an initialised ifreq, which TUNSETIFF reads.
    unsafe { tun_set_iff(tun.as_raw_fd(), &raw const request) }?;
    Ok(tun)
}
