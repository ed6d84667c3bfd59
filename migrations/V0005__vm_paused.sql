-- A VM may be paused.
alter table vm.vm drop constraint vm_state_check, add constraint vm_state_check
    check (state in ('creating', 'starting', 'running', 'paused', 'stopping', 'stopped', 'failed', 'deleting'));
