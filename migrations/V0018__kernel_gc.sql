-- What is found out of kernels by comparing rows with hosts, as V0016 has it of images. image-service alone writes here.

-- Since when it is known that the host lacks the kernel, or has it damaged. Nobody is sent it from there.
alter table image.kernel_replica add column missing_at timestamptz;

-- Whether it came along with an image and nobody ever gave it a name: only such a kernel goes by itself.
alter table image.kernel add column along boolean not null default false;
update image.kernel k set along = true
    where not exists (select from image.kernel_name n where n.kernel_id = k.id)
        and exists (select from operations.operation o where o.kind = 'image.pull' and o.request ->> 'image_id' = k.id::text);

-- Since when it is known that no VM and no image uses such a kernel.
alter table image.kernel add column unused_at timestamptz;
