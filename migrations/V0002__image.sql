-- Images: their names, and the hosts that hold them. image-service alone writes here. The clock is the database's.

create schema image;

-- An image: an immutable root filesystem. A row exists only once its files do, under the image's id.
create table image.image (
    id           uuid primary key,
    digest       text        not null check (digest <> ''),
    source       text        not null,
    architecture text        not null,
    rootfs_bytes bigint      not null check (rootfs_bytes >= 0),
    config       jsonb       not null,
    created_at   timestamptz not null default clock_timestamp()
);

-- A name and the image it means. Its row lock is the publication claim: who inserts the row, or locks it, decides
-- alone about the name until the transaction ends. The name comes before the image in a publication, which is why
-- the foreign key is looked at only when the transaction commits.
create table image.name (
    name     text primary key,
    image_id uuid not null,
    constraint name_image foreign key (image_id) references image.image deferrable initially deferred
);

create index name_image on image.name (image_id);

-- A host that holds an image. A VM's disk is a clone of the replica on its host: vm.vm refers to it (V0003), so
-- a replica that is in use cannot be deleted.
create table image.replica (
    image_id   uuid        not null references image.image,
    host_id    text        not null,
    created_at timestamptz not null default clock_timestamp(),
    primary key (image_id, host_id)
);

-- Files of a deleted image that a host still has to remove: written with the delete of the rows, removed once the
-- host has done it. What a host that is down owes stays here until it is back.
create table image.removal (
    image_id     uuid        not null,
    host_id      text        not null,
    -- The claim that commands the removal.
    operation_id uuid        not null,
    epoch        bigint      not null,
    -- Nobody but the delete itself tries before this.
    try_at       timestamptz not null,
    -- Why the last try did not do it.
    reason       text,
    primary key (image_id, host_id)
);

create index removal_due on image.removal (try_at);
