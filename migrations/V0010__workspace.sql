-- Workspaces: directories of VMs that were prepared. workspace-service alone writes here. The clock is the database's.

create schema workspace;

create table workspace.workspace (
    id          uuid        primary key,
    -- Another service's row, so no foreign key: workspace-service removes what is of VMs that vm-lifecycle does not know any more.
    vm_id       uuid        not null,
    -- As it was when somebody looked last; a VM is found by its id.
    vm_name     text        not null,
    path        text        not null check (path like '/_%' and octet_length(path) <= 1024),
    owner       text,
    -- What it was taken from.
    about       jsonb       not null,
    -- The prepare that made its base, or the export that advanced it; none before the first has succeeded.
    generation  uuid,
    entries     bigint      not null default 0 check (entries >= 0),
    bytes       bigint      not null default 0 check (bytes >= 0),
    prepared_at timestamptz,
    exported_at timestamptz,
    -- The last operation that wrote an event of it, so that a repeat of its step writes none.
    told_by     uuid,
    created_at  timestamptz not null default clock_timestamp(),
    updated_at  timestamptz not null default clock_timestamp(),
    constraint workspace_place unique (vm_id, path),
    constraint workspace_prepared check ((generation is null) = (prepared_at is null))
);
