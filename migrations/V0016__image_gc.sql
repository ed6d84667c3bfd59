-- What is found out of images by comparing rows with hosts. image-service alone writes here.

-- Since when it is known that the host lacks the image, or has it damaged. Such a replica is offered to nobody.
alter table image.replica add column missing_at timestamptz;
create index replica_missing on image.replica (image_id, host_id) where missing_at is not null;

-- Since when it is known that the image has no name.
alter table image.image add column unnamed_at timestamptz;
create index image_unnamed on image.image (unnamed_at) where unnamed_at is not null;

-- One reconciler at a time compares, and its last round that came to its end.
create table image.reconciler (
    only_one boolean     primary key default true check (only_one),
    holder   text        not null,
    until    timestamptz not null,
    ended_at timestamptz,
    -- `contract::image::GcReport` without its items.
    report   jsonb
);
insert into image.reconciler (holder, until) values ('nobody', now());
