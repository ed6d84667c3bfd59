-- Labs: VMs that are reserved together, come up in an order, and go together. vm-lifecycle alone writes here.

-- A held operation has its place in its resource's queue, and no worker takes it until whoever submitted it lets it go.
alter table operations.operation add column held boolean not null default false;

-- A lab is the VMs that are members of it; without any it does not exist.
create table vm.lab_member (
    vm_id   uuid    primary key references vm.vm on delete cascade,
    lab     text    not null,
    -- What the lab's file asked for, in full: what a repeat of it is compared with.
    spec    jsonb   not null,
    -- The VMs that have to be ready before this one is started. Ids, so that a renamed VM keeps its place; one that is gone is
    -- waited for no more.
    after   uuid[]  not null default '{}',
    -- The operation that created it is being taken back, and it with it: nobody counts on it any more.
    leaving boolean not null default false
);
create index lab_member_lab on vm.lab_member (lab, vm_id);

-- Takes all locks that the reservations of several VMs need, in the order in which a single vm.reserve takes its own: names, kept
-- disks, hosts; each by name. Whoever wants some of them too waits before it holds what the lab still wants, so nobody
-- waits in a circle. Answers with the names that are taken; then nothing else was locked, and the transaction is to be given up.
--
-- A name that nobody has is locked as a clash locks it: by a row of that name, here one that is removed again at once. Whoever
-- inserts the same name waits for this transaction's end; vm.reserve, called in it, does not.
-- p_vms: id, name, host, image, image_name of each.
create function vm.lab_lock(p_vms jsonb, p_disks text[]) returns text[] language plpgsql as $$
declare
    v_vm record;
    v_disk text;
    v_taken text[] := '{}';
begin
    for v_vm in
        select w.id, w.name, w.host, w.image, w.image_name
        from jsonb_to_recordset(p_vms) as w (id uuid, name text, host text, image uuid, image_name text) order by w.name
    loop
        if not exists (select from image.replica r where r.image_id = v_vm.image and r.host_id = v_vm.host) then
            raise exception 'the image % of VM % is not on host % any more', v_vm.image_name, v_vm.name, v_vm.host
                using errcode = 'WR009';
        end if;
        insert into vm.vm (id, name, host_id, image_id, image_name, cpus, memory_mib, disk_mib, ssh_keys, epoch)
        values (v_vm.id, v_vm.name, v_vm.host, v_vm.image, v_vm.image_name, 1, 1, 1, '{}', 0)
        on conflict (name) do nothing;
        if found then
            delete from vm.vm v where v.id = v_vm.id;
        else
            v_taken := v_taken || v_vm.name;
        end if;
    end loop;
    if v_taken <> '{}' then
        return v_taken;
    end if;

    for v_disk in select distinct d from unnest(p_disks) d order by d loop
        insert into vm.disk (name, host_id, size_mib)
        select v_disk, w.host, 1 from jsonb_to_recordset(p_vms) as w (host text) limit 1
        on conflict (name) do nothing;
        if found then
            delete from vm.disk d where d.name = v_disk;
        else
            perform from vm.disk d where d.name = v_disk for update;
        end if;
    end loop;

    perform from vm.host h
    where h.id in (select w.host from jsonb_to_recordset(p_vms) as w (host text)) order by h.id for no key update;
    return v_taken;
end $$;
