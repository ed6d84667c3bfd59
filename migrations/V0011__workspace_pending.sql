-- A transfer that may have changed a workspace: written before its host is told to begin, and gone with what became of it. It stays where nobody
-- could tell (the VM stopped just then), until the guest is asked. An object of the service's own.

alter table workspace.workspace add column pending jsonb;

create index workspace_pending on workspace.workspace (vm_id) where pending is not null;
