-- Operations, their steps, the epochs of their resources, and the outbox of events.

create schema operations;

create table operations.operation (
    id               uuid primary key,
    kind             text        not null,
    resource         text        not null,
    state            text        not null default 'queued'
                     check (state in ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    phase            text        not null default '',
    progress         jsonb,
    request          jsonb       not null,
    journal          jsonb,
    result           jsonb,
    error            jsonb,
    request_key      text,
    request_digest   text        not null default '',
    cancel_requested boolean     not null default false,
    -- Set once the undo began: whoever adopts the operation goes on undoing and never forward.
    undoing          boolean     not null default false,
    -- The operation has ended, but some undo could not reach its host yet.
    undo_owed        boolean     not null default false,
    worker           text,
    lease_until      timestamptz,
    epoch            bigint      not null default 0,
    attempts         integer     not null default 0,
    traceparent      text,
    deadline_at      timestamptz not null,
    created_at       timestamptz not null default now(),
    started_at       timestamptz,
    finished_at      timestamptz
);

-- One running operation a resource: the claim itself.
create unique index operation_running on operations.operation (resource) where state = 'running';
-- Same key, same operation. A key belongs to a kind, so that two services' callers do not collide.
create unique index operation_request_key on operations.operation (kind, request_key) where request_key is not null;
create index operation_unfinished on operations.operation (kind, id) where state in ('queued', 'running');
create index operation_waiting on operations.operation (resource, id) where state in ('queued', 'running');
create index operation_owed on operations.operation (lease_until) where undo_owed;
create index operation_resource on operations.operation (resource, id);
create index operation_finished on operations.operation (finished_at) where finished_at is not null;

create table operations.step (
    operation_id uuid        not null references operations.operation on delete cascade,
    seq          integer     not null,
    name         text        not null,
    state        text        not null check (state in ('done', 'undone', 'owed')),
    at           timestamptz not null default clock_timestamp(),
    primary key (operation_id, name)
);

-- Epochs are comparable across all operations on one resource, for ever.
create table operations.resource_epoch (
    resource text   primary key,
    epoch    bigint not null
);

create table operations.outbox (
    seq         bigint generated always as identity primary key,
    id          uuid        not null default gen_random_uuid(),
    subject     text        not null,
    data        jsonb       not null,
    traceparent text,
    at          timestamptz not null default now()
);

-- One relay at a time publishes the outbox, so that events keep their order.
create table operations.relay (
    only_one boolean     primary key default true check (only_one),
    holder   text        not null,
    until    timestamptz not null
);
insert into operations.relay (holder, until) values ('nobody', now());
