-- What a VM has beside its size, the ports it publishes on its host, and disks that outlive their VM.

alter table vm.vm
    add column features       jsonb  not null default '{}',
    -- What its own data disks hold of its host beside disk_mib; kept ones are rows of vm.disk.
    add column data_disks_mib bigint not null default 0 check (data_disks_mib >= 0);

create table vm.port (
    host_id  text    not null references vm.host,
    protocol text    not null check (protocol in ('tcp', 'udp')),
    port     integer not null check (port between 1 and 65535),
    vm_id    uuid    not null references vm.vm on delete cascade,
    -- One port of a host leads to one VM.
    constraint port_taken primary key (host_id, protocol, port)
);
create index port_vm on vm.port (vm_id);

create table vm.disk (
    name       text        primary key,
    host_id    text        not null references vm.host,
    size_mib   bigint      not null check (size_mib > 0),
    -- Whose it is now; it can be one VM's only. Null: free for the next that asks.
    vm_id      uuid        references vm.vm,
    created_at timestamptz not null default clock_timestamp()
);
create index disk_vm on vm.disk (vm_id) where vm_id is not null;

-- Takes a VM's ports; what it has and does not name goes.
create function vm.take_ports(p_id uuid, p_host text, p_ports jsonb) returns void language plpgsql as $$
declare
    v_port record;
    v_other text;
begin
    delete from vm.port t where t.vm_id = p_id and not exists (
        select from jsonb_to_recordset(p_ports) as w (protocol text, port integer)
        where w.protocol = t.protocol and w.port = t.port);
    -- In order, so that two that want each other's do not wait for each other.
    for v_port in select w.protocol, w.port from jsonb_to_recordset(p_ports) as w (protocol text, port integer) order by 1, 2 loop
        insert into vm.port (host_id, protocol, port, vm_id) values (p_host, v_port.protocol, v_port.port, p_id)
        on conflict do nothing;
        select v.name into v_other from vm.port t join vm.vm v on v.id = t.vm_id
        where t.host_id = p_host and t.protocol = v_port.protocol and t.port = v_port.port and t.vm_id <> p_id;
        if found then
            raise exception 'port %/% of host % leads to VM % already', v_port.port, v_port.protocol, p_host, v_other
                using errcode = 'WR007';
        end if;
    end loop;
end $$;

-- As before, and p_settings: features, data_disks_mib, ports, kept_disks.
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
                       deletion_protection, restart_policy, expires_at, features, data_disks_mib)
    values (p_id, p_name, p_host, p_image, p_image_name, p_cpus, p_memory, p_disk, p_ssh_keys, p_epoch,
            coalesce(p_settings->'labels', '{}'), coalesce((p_settings->>'deletion_protection')::boolean, false),
            coalesce(p_settings->>'restart', 'no'),
            v_now + make_interval(secs => (p_settings->>'ttl_seconds')::double precision),
            coalesce(p_settings->'features', '{}'), v_data)
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

-- As before; kept disks stay, with what they hold of their host.
create or replace function vm.release(p_id uuid, p_epoch bigint, p_traceparent text) returns text language plpgsql as $$
declare
    v_vm vm.vm;
    v_space bigint;
begin
    select * into v_vm from vm.vm v where v.id = p_id for update;
    if not found then
        return 'absent';
    end if;
    if v_vm.epoch > p_epoch then
        return 'stale';
    end if;
    v_space := v_vm.disk_mib + v_vm.data_disks_mib;
    update vm.disk set vm_id = null where vm_id = p_id;
    update vm.host h set
        cpus_held = h.cpus_held - v_vm.cpus, cpus_limit = greatest(h.cpus_offered, h.cpus_held - v_vm.cpus),
        memory_held = h.memory_held - v_vm.memory_mib, memory_limit = greatest(h.memory_offered, h.memory_held - v_vm.memory_mib),
        disk_held = h.disk_held - v_space, disk_limit = greatest(h.disk_offered, h.disk_held - v_space)
    where h.id = v_vm.host_id;
    update vm.lease set vm_id = null, freed_at = clock_timestamp() where vm_id = p_id;
    delete from vm.vm where id = p_id;
    insert into operations.outbox (subject, data, traceparent) values (
        'warren.event.vm.' || p_id || '.deleted',
        jsonb_build_object('name', v_vm.name, 'state', 'deleted', 'host', v_vm.host_id), p_traceparent);
    return 'released';
end $$;
