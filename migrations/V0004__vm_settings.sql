-- What a VM is grouped by, whether it comes back by itself, how long it lives and whether it may be deleted.

alter table vm.vm
    add column labels              jsonb       not null default '{}',
    add column deletion_protection boolean     not null default false,
    add column restart_policy      text        not null default 'no' check (restart_policy in ('no', 'on-failure', 'always')),
    -- How often in a row it was started again, and when it will be next.
    add column restarts            integer     not null default 0,
    add column restart_at          timestamptz,
    add column expires_at          timestamptz,
    add constraint vm_protected_lives check (not deletion_protection or expires_at is null);

create index vm_labels on vm.vm using gin (labels);
create index vm_restart on vm.vm (restart_at) where restart_at is not null;
create index vm_expiry on vm.vm (expires_at) where expires_at is not null;

-- As before, and p_settings: labels, deletion_protection, restart, ttl_seconds.
drop function vm.reserve(uuid, text, text, uuid, text, integer, bigint, bigint, text[], uuid, bigint, double precision, text);
create function vm.reserve(
    p_id uuid, p_name text, p_host text, p_image uuid, p_image_name text, p_cpus integer, p_memory bigint, p_disk bigint,
    p_ssh_keys text[], p_settings jsonb, p_operation uuid, p_epoch bigint, p_rest_seconds double precision, p_traceparent text
) returns table (o_address inet, o_host text) language plpgsql as $$
declare
    v_host vm.host;
    v_now timestamptz := clock_timestamp();
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
                       deletion_protection, restart_policy, expires_at)
    values (p_id, p_name, p_host, p_image, p_image_name, p_cpus, p_memory, p_disk, p_ssh_keys, p_epoch,
            coalesce(p_settings->'labels', '{}'), coalesce((p_settings->>'deletion_protection')::boolean, false),
            coalesce(p_settings->>'restart', 'no'),
            v_now + make_interval(secs => (p_settings->>'ttl_seconds')::double precision))
    on conflict (name) do nothing;
    if not found then
        raise exception 'the name % is taken', p_name using errcode = 'WR001';
    end if;

    update vm.host h set
        cpus_held = h.cpus_held + p_cpus, memory_held = h.memory_held + p_memory, disk_held = h.disk_held + p_disk
    where h.id = p_host
        and h.cpus_held + p_cpus <= h.cpus_offered
        and h.memory_held + p_memory <= h.memory_offered
        and h.disk_held + p_disk <= h.disk_offered;
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

    insert into operations.outbox (subject, data, traceparent) values (
        'warren.event.vm.' || p_id || '.reserved',
        jsonb_build_object('name', p_name, 'state', 'creating', 'host', p_host, 'address', host(o_address)),
        p_traceparent);
    o_host := p_host;
    return next;
end $$;
