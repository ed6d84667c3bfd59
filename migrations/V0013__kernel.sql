-- Kernels as objects of their own. image-service alone writes the tables of the schema image; vm.vm.kernel_id is vm-lifecycle's.

-- A kernel: its file and its modules. A row exists only once its files do, under the kernel's id.
create table image.kernel (
    id           uuid primary key,
    digest       text        not null constraint kernel_digest unique check (digest <> ''),
    release      text        not null,
    architecture text        not null,
    bytes        bigint      not null check (bytes >= 0),
    source       text        not null,
    created_at   timestamptz not null default clock_timestamp()
);

-- A name and the kernel it means. Its row lock is the publication claim, as that of an image's name is (V0002). set_by is the
-- operation that made it mean what it means, was what it meant before that.
create table image.kernel_name (
    name      text primary key,
    kernel_id uuid not null,
    set_by    uuid,
    was       uuid,
    constraint kernel_name_kernel foreign key (kernel_id) references image.kernel deferrable initially deferred
);
create index kernel_name_kernel on image.kernel_name (kernel_id);

-- A host that has a kernel. Replicas go with the kernel and never before it.
create table image.kernel_replica (
    kernel_id  uuid        not null references image.kernel,
    host_id    text        not null,
    created_at timestamptz not null default clock_timestamp(),
    primary key (kernel_id, host_id)
);

-- Files of a deleted kernel that a host still has to remove: as image.removal.
create table image.kernel_removal (
    kernel_id    uuid        not null,
    host_id      text        not null,
    operation_id uuid        not null,
    epoch        bigint      not null,
    try_at       timestamptz not null,
    reason       text,
    primary key (kernel_id, host_id)
);
create index kernel_removal_due on image.kernel_removal (try_at);

-- What VMs boot that name no kernel and whose image names none; no row: what their host was configured with.
create table image.kernel_default (
    one       boolean primary key default true check (one),
    kernel_id uuid not null constraint kernel_default_kernel references image.kernel
);

-- The kernel an image names. It is no part of the image's identity here: it may change.
alter table image.image add column kernel_id uuid constraint image_kernel references image.kernel;
create index image_kernel on image.image (kernel_id) where kernel_id is not null;

-- The kernel a VM was made with, for life: it cannot be removed while the VM is there.
alter table vm.vm add column kernel_id uuid constraint vm_kernel references image.kernel;
create index vm_kernel on vm.vm (kernel_id) where kernel_id is not null;
