-- What happens to a VM that nobody uses.

alter table vm.vm
    add column idle_seconds  bigint check (idle_seconds > 0),
    add column idle_action   text   check (idle_action in ('stop', 'delete', 'pause')),
    -- When it was in use last, as its host told last; without an index, as it changes with every report.
    add column active_at     timestamptz,
    -- When the keeper did last what is to be done.
    add column idle_acted_at timestamptz,
    add constraint vm_idle_whole check ((idle_seconds is null) = (idle_action is null)),
    add constraint vm_protected_idles check (not deletion_protection or idle_action is distinct from 'delete');

create index vm_idle on vm.vm (host_id) where idle_seconds is not null;

-- Up to when the host has told of its VMs' activity: nobody is idle on account of a host that says nothing.
alter table vm.host add column activity_at timestamptz;

-- As before, and p_settings: idle_seconds, idle_action.
create or replace function vm.reserve(
    p_id uuid, p_name text, p_host text, p_image uuid, p_image_name text, p_cpus integer, p_memory bigint, p_disk bigint,
    p_ssh_keys text[], p_settings jsonb, p_operation uuid, p_epoch bigint, p_rest_seconds double precision, p_traceparent text
) returns table (o_address inet, o_host text) language plpgsql as $$
declare
    v_host vm.host;
    v_now timestamptz := clock_timestamp();
    v_data bigint := coalesce((p_settings->>'data_disks_mib')::bigint, 0);
    v_space bigint := p_disk + v_data;
    v_kept record;
    v_disk vm.disk;
begin
    if p_operation is not null then
        perform from operations.operation o
        where o.id = p_operation and o.epoch = p_epoch and o.state = 'running' for share;
        if not found then
            raise exception 'operation % is held by another worker', p_operation using errcode = 'WR005';
        end if;
    end if;

    select l.address, v.host_id into o_address, o_host
    from vm.vm v join vm.lease l on l.vm_id = v.id where v.id = p_id;
    if found then
        update vm.vm v set epoch = p_epoch where v.id = p_id and v.epoch < p_epoch;
        return next;
        return;
    end if;

    insert into vm.vm (id, name, host_id, image_id, image_name, cpus, memory_mib, disk_mib, ssh_keys, epoch, labels,
                       deletion_protection, restart_policy, expires_at, features, data_disks_mib,
                       idle_seconds, idle_action)
    values (p_id, p_name, p_host, p_image, p_image_name, p_cpus, p_memory, p_disk, p_ssh_keys, p_epoch,
            coalesce(p_settings->'labels', '{}'), coalesce((p_settings->>'deletion_protection')::boolean, false),
            coalesce(p_settings->>'restart', 'no'),
            v_now + make_interval(secs => (p_settings->>'ttl_seconds')::double precision),
            coalesce(p_settings->'features', '{}'), v_data, (p_settings->>'idle_seconds')::bigint, p_settings->>'idle_action')
    on conflict (name) do nothing;
    if not found then
        raise exception 'the name % is taken', p_name using errcode = 'WR001';
    end if;

    if p_settings ? 'kept_disks' then
        for v_kept in
            select k.name, k.size_mib from jsonb_to_recordset(p_settings->'kept_disks') as k (name text, size_mib bigint)
            order by k.name
        loop
            insert into vm.disk (name, host_id, size_mib, vm_id) values (v_kept.name, p_host, v_kept.size_mib, p_id)
            on conflict (name) do nothing;
            if found then
                v_space := v_space + v_kept.size_mib;
                continue;
            end if;
            select * into v_disk from vm.disk d where d.name = v_kept.name for update;
            if v_disk.vm_id is not null or v_disk.host_id <> p_host then
                raise exception 'the disk % is % on host %', v_kept.name,
                    case when v_disk.vm_id is null then 'kept' else 'in use' end, v_disk.host_id using errcode = 'WR008';
            end if;
            v_space := v_space + greatest(v_kept.size_mib - v_disk.size_mib, 0);
            update vm.disk d set vm_id = p_id, size_mib = greatest(v_kept.size_mib, d.size_mib) where d.name = v_kept.name;
        end loop;
    end if;

    update vm.host h set
        cpus_held = h.cpus_held + p_cpus, memory_held = h.memory_held + p_memory, disk_held = h.disk_held + v_space
    where h.id = p_host
        and h.cpus_held + p_cpus <= h.cpus_offered
        and h.memory_held + p_memory <= h.memory_offered
        and h.disk_held + v_space <= h.disk_offered;
    if not found then
        select * into v_host from vm.host h where h.id = p_host;
        if not found then
            raise exception 'there is no host %', p_host using errcode = 'WR002';
        end if;
        raise exception 'host % lacks room', p_host using errcode = 'WR003', detail = json_build_object(
            'cpus', v_host.cpus_offered - v_host.cpus_held,
            'memory_mib', v_host.memory_offered - v_host.memory_held,
            'disk_mib', v_host.disk_offered - v_host.disk_held)::text;
    end if;

    update vm.lease l set vm_id = p_id
    where l.address = (
        select f.address from vm.lease f
        where f.host_id = p_host and f.vm_id is null and f.freed_at <= v_now - make_interval(secs => p_rest_seconds)
        order by f.freed_at, f.address limit 1 for update skip locked)
    returning l.address into o_address;
    if not found then
        raise exception 'host % has no free address', p_host using errcode = 'WR004';
    end if;

    if p_settings ? 'ports' then
        perform vm.take_ports(p_id, p_host, p_settings->'ports');
    end if;

    insert into operations.outbox (subject, data, traceparent) values (
        'warren.event.vm.' || p_id || '.reserved',
        jsonb_build_object('name', p_name, 'state', 'creating', 'host', p_host, 'address', host(o_address)),
        p_traceparent);
    o_host := p_host;
    return next;
end $$;
