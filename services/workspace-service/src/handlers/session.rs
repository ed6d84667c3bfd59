//! A **session**: a byte stream that a VM's host-agent connects to something of the VM.

use std::time::Duration;

use bus::{Bus, CallOptions};
use contract::{
    ApiError, ErrorCode, SessionId,
    agent::{GuestOpen, OpenRequest},
    direct::Opened,
    vm::{self, Vm, VmRef},
    workspace::SessionKind,
};

use crate::domain::access;

/// How long vm-lifecycle may take to say where a VM is: one SQL statement. Short, so that most of the caller's
/// time is left for the host.
pub const LOOKUP: Duration = Duration::from_secs(4);

/// How long finding a VM and connecting to it may take: less than [`contract::deadline::QUICK`], so that the caller hears
/// how it went.
pub const OPENING: Duration = Duration::from_secs(8);

/// The VM of that name or id, if this way into it is open.
///
/// # Errors
/// `not_found`; `failed_precondition` when it is not running; or vm-lifecycle cannot be asked.
pub async fn find(bus: &Bus, name_or_id: &str, kind: &SessionKind) -> Result<Vm, ApiError> {
    let options = CallOptions { timeout: Some(LOOKUP), ..CallOptions::default() };
    let vm = bus.call_with::<vm::Get>(&VmRef { vm: name_or_id.to_owned() }, options).await?;
    access::check(&vm, kind)?;
    Ok(vm)
}

/// Has the VM's host connect the stream, whose opener listens already; the host may offer a direct connection where that is wanted.
///
/// # Errors
/// What the host-agent answered; `unavailable` when it is not connected.
pub async fn connect(
    bus: &Bus,
    vm: &Vm,
    session: SessionId,
    kind: SessionKind,
    direct: bool,
) -> Result<Opened, ApiError> {
    let mut request = OpenRequest { vm: vm.id, session, kind, direct };
    let mut opened = bus.command::<GuestOpen>(&vm.host, &request).await;
    if direct && opened.as_ref().is_err_and(|error| error.refuses_field("direct")) {
        // A host-agent of before direct streams.
        request.direct = false;
        opened = bus.command::<GuestOpen>(&vm.host, &request).await;
    }
    match opened {
        Ok(opened) => Ok(opened),
        Err(error) if error.code == ErrorCode::Unavailable && error.hint.is_none() => {
            let hint = format!("VM {} is on {}; `warren host ls` tells whether that host is up", vm.name, vm.host);
            Err(error.hint(hint))
        }
        Err(error) => Err(error),
    }
}
