//! **Access**: which ways into a VM are open in which of its states.

use contract::{
    ApiError,
    vm::{Vm, VmState},
    workspace::SessionKind,
};

/// Checks that this way into the VM is open. A process and the ssh server need a running guest; the console log outlives it.
///
/// # Errors
/// `failed_precondition`: the VM is not running.
pub fn check(vm: &Vm, kind: &SessionKind) -> Result<(), ApiError> {
    match kind {
        SessionKind::Logs { .. } => Ok(()),
        SessionKind::Exec(_)
        | SessionKind::Attach(_)
        | SessionKind::Ssh {}
        | SessionKind::Tcp(_)
        | SessionKind::Pack(_)
        | SessionKind::Look(_)
        | SessionKind::Unpack(_)
        | SessionKind::Console {} => running(vm),
    }
}

/// Checks that its guest runs.
///
/// # Errors
/// `failed_precondition`: it does not.
pub fn running(vm: &Vm) -> Result<(), ApiError> {
    let name = &vm.name;
    let hint = match vm.state {
        VmState::Running => return Ok(()),
        VmState::Paused => format!("`warren vm resume {name}` lets it go on"),
        VmState::Stopped | VmState::Failed => format!("`warren vm start {name}` starts it"),
        VmState::Creating | VmState::Starting => format!("`warren vm show {name}` tells when it is running"),
        VmState::Stopping => format!("once it has stopped, `warren vm start {name}` starts it"),
        VmState::Deleting => "`warren vm ls` lists the VMs".to_owned(),
    };
    Err(ApiError::failed_precondition(format!("VM {name} is {}, not running", vm.state.as_str())).hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::{ErrorCode, ImageId, MebiBytes, VmId, workspace::Command};

    fn vm(state: VmState) -> Vm {
        Vm {
            id: VmId::new(),
            name: "web".parse().unwrap(),
            state,
            host: "h1".parse().unwrap(),
            host_down: false,
            image: ImageId::new(),
            image_name: "debian".into(),
            image_digest: None,
            booted: None,
            cpus: 1,
            memory: MebiBytes(256),
            disk: MebiBytes(2048),
            address: [10, 77, 0, 2].into(),
            mac: "02:57:0a:4d:00:02".into(),
            fqdn: "web.warren".into(),
            ssh_host_key: None,
            ssh_port: None,
            lab: None,
            labels: contract::Labels::new(),
            restart: contract::vm::RestartPolicy::No,
            restarts: 0,
            restart_at: None,
            expires_at: None,
            idle_limit: None,
            active_at: None,
            deletion_protection: false,
            features: contract::feature::Features::default(),
            operation: None,
            queued: Vec::new(),
            reason: None,
            created_at: time::OffsetDateTime::UNIX_EPOCH,
            ready_at: None,
        }
    }

    #[test]
    fn only_a_running_vm_is_entered_but_any_has_a_log() {
        for state in VmState::ALL {
            let vm = vm(state);
            assert_eq!(check(&vm, &SessionKind::Logs { follow: true, tail_bytes: None }), Ok(()));
            for kind in [SessionKind::Ssh {}, SessionKind::Exec(Command::default())] {
                let outcome = check(&vm, &kind);
                assert_eq!(outcome.is_ok(), state == VmState::Running, "{state:?}");
                if let Err(error) = outcome {
                    assert_eq!(error.code, ErrorCode::FailedPrecondition);
                    assert!(error.message.contains(state.as_str()) && error.hint.is_some());
                }
            }
        }
        let stopped = check(&vm(VmState::Stopped), &SessionKind::Ssh {}).unwrap_err();
        assert!(stopped.hint.unwrap().contains("warren vm start web"));
    }
}
