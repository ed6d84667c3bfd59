-- An image's identity is its digest; names are movable pointers to it.

-- Images from before that may have the digest of an older one: they stay as they are, with their files and VMs, and no
-- publication finds them.
alter table image.image add column twin boolean not null default false;
update image.image i set twin = true
where exists (select from image.image e where e.digest = i.digest and (e.created_at, e.id) < (i.created_at, i.id));
create unique index image_digest on image.image (digest) where not twin;

-- The operation that made a name mean what it means, and what it meant before: so a repeat finds its own work, and an
-- undo takes back no other's.
alter table image.name add column set_by uuid;
alter table image.name add column was uuid;
