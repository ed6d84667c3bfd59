-- Builds: what their steps gave, and what they printed. image-service alone writes here.

-- The image that a step of a build gave, by the SHA-256 of what it was made of. It stays while it is used now and then, with a name
-- or without.
create table image.build_cache (
    key        text primary key check (key ~ '^[0-9a-f]{64}$'),
    image_id   uuid        not null references image.image on delete cascade,
    created_at timestamptz not null default clock_timestamp(),
    used_at    timestamptz not null default clock_timestamp()
);

create index build_cache_image on image.build_cache (image_id);

-- A build's log, kept as long as its operation. Where the middle of a long one was dropped, rows are missing.
create table image.build_log (
    operation_id uuid   not null references operations.operation on delete cascade,
    -- The offset of the first byte in the log.
    at           bigint not null check (at >= 0),
    -- The step it is of, from 0.
    step         integer not null,
    -- The offset of the first byte in what the step's script printed; null for what Warren says itself.
    output_at    bigint,
    data         bytea  not null,
    primary key (operation_id, at)
);
