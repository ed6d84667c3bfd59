-- Hosts, their addresses, and VMs. vm-lifecycle alone writes here. The clock is the database's.
--
-- SQLSTATEs of class WR are this schema's own refusals; vm-lifecycle's db/reservation.rs and db/host.rs read them:
--   WR001 the name is taken          WR002 no such host          WR003 the host lacks room (detail: JSON)
--   WR004 the host has no address    WR005 stale operation       WR006 the lab's network has no subnet left

create schema vm;

-- A host: what it offers, what its VMs hold of that, and its share of the lab's network.
--
-- allocated ≤ capacity is the CHECK on *_limit. A host may come back smaller than what its VMs hold already: then the limit is what
-- they hold (it only shrinks from there), and new reservations are measured against *_offered.
create table vm.host (
    id             text primary key,
    subnet         cidr        not null,
    gateway        inet        not null,
    incarnation    uuid        not null,
    vmm            text        not null,
    version        text        not null,
    cpus_offered   bigint      not null check (cpus_offered >= 0),
    cpus_limit     bigint      not null check (cpus_limit >= cpus_offered),
    cpus_held      bigint      not null default 0 check (cpus_held >= 0),
    memory_offered bigint      not null check (memory_offered >= 0),
    memory_limit   bigint      not null check (memory_limit >= memory_offered),
    memory_held    bigint      not null default 0 check (memory_held >= 0),
    disk_offered   bigint      not null check (disk_offered >= 0),
    disk_limit     bigint      not null check (disk_limit >= disk_offered),
    disk_held      bigint      not null default 0 check (disk_held >= 0),
    registered_at  timestamptz not null default now(),
    last_seen      timestamptz not null default clock_timestamp(),
    -- What the last event said of it; the sweeper tells when that is no longer so.
    announced_up   boolean     not null default false,
    -- No two hosts' subnets overlap, whatever prefix lengths the lab was configured with over time.
    constraint host_subnet_free exclude using gist (subnet inet_ops with &&),
    constraint host_cpus check (cpus_held <= cpus_limit),
    constraint host_memory check (memory_held <= memory_limit),
    constraint host_disk check (disk_held <= disk_limit)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 500);

-- A VM: what is wanted and known of it. Its address is its row in vm.lease, its MAC follows from that.
create table vm.vm (
    id           uuid primary key,
    name         text        not null constraint vm_name unique,
    host_id      text        not null references vm.host,
    image_id     uuid        not null,
    image_name   text        not null,
    cpus         integer     not null check (cpus > 0),
    memory_mib   bigint      not null check (memory_mib > 0),
    disk_mib     bigint      not null check (disk_mib > 0),
    ssh_keys     text[]      not null,
    state        text        not null default 'creating'
                 check (state in ('creating', 'starting', 'running', 'stopping', 'stopped', 'failed', 'deleting')),
    reason       text,
    ssh_host_key text,
    ssh_port     integer     check (ssh_port between 1 and 65535),
    -- The claim that wrote this row last: a worker with an older one writes nothing any more.
    epoch        bigint      not null,
    -- The claim whose command the host carried out last: an older observation is old news.
    host_epoch   bigint      not null default 0,
    created_at   timestamptz not null default clock_timestamp(),
    changed_at   timestamptz not null default clock_timestamp(),
    ready_at     timestamptz,
    -- The image a VM's disk is a clone of is on the VM's host, and cannot be removed from there.
    constraint vm_replica foreign key (image_id, host_id) references image.replica (image_id, host_id)
) with (fillfactor = 80);

create index vm_host on vm.vm (host_id, name);
create index vm_image on vm.vm (image_id, host_id);

-- Every address VMs may have, held or free. Rows are made with the host and stay.
create table vm.lease (
    address  inet primary key,
    host_id  text        not null references vm.host,
    vm_id    uuid        constraint lease_vm references vm.vm,
    freed_at timestamptz not null default '-infinity'
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 200,
        autovacuum_vacuum_cost_delay = 0);

-- First freed, first given; an address is held once because it is one row.
create index lease_free on vm.lease (host_id, freed_at, address) where vm_id is null;
create unique index lease_held on vm.lease (vm_id) where vm_id is not null;

-- Registers a host: the first time with the lowest free subnet of the lab's network and all its leases.
create function vm.host_register(
    p_id text, p_network cidr, p_prefix integer, p_incarnation uuid, p_cpus bigint, p_memory bigint, p_disk bigint,
    p_vmm text, p_version text
) returns table (o_subnet cidr, o_gateway inet) language plpgsql as $$
declare
    v_free cidr;
begin
    loop
        update vm.host h set
            incarnation = p_incarnation, vmm = p_vmm, version = p_version, last_seen = clock_timestamp(),
            cpus_offered = p_cpus, cpus_limit = greatest(p_cpus, h.cpus_held),
            memory_offered = p_memory, memory_limit = greatest(p_memory, h.memory_held),
            disk_offered = p_disk, disk_limit = greatest(p_disk, h.disk_held)
        where h.id = p_id
        returning h.subnet, h.gateway into o_subnet, o_gateway;
        if found then
            return next;
            return;
        end if;
        select c.subnet into v_free
        from generate_series(0, (1 << (p_prefix - masklen(p_network))) - 1) n,
             lateral (select set_masklen(host(p_network)::inet + n::bigint * (1::bigint << (32 - p_prefix)), p_prefix)::cidr) c (subnet)
        where not exists (select from vm.host h where h.subnet && c.subnet)
        order by n limit 1;
        if v_free is null then
            raise exception 'the network % has no free /% left for another host', p_network, p_prefix using errcode = 'WR006';
        end if;
        -- Another host may take the same subnet, or a twin register the same host, at this moment: then nothing
        -- is inserted once their transaction has ended, and the loop looks again.
        insert into vm.host (id, subnet, gateway, incarnation, vmm, version, cpus_offered, cpus_limit, memory_offered,
                             memory_limit, disk_offered, disk_limit)
        values (p_id, v_free, host(v_free)::inet + 1, p_incarnation, p_vmm, p_version, p_cpus, p_cpus, p_memory, p_memory,
                p_disk, p_disk)
        on conflict do nothing
        returning subnet, gateway into o_subnet, o_gateway;
        if found then
            -- Without the network's address, the gateway and the broadcast address.
            insert into vm.lease (address, host_id)
            select host(v_free)::inet + n, p_id from generate_series(2, (1::bigint << (32 - p_prefix)) - 2) n;
            return next;
            return;
        end if;
    end loop;
end $$;

-- The reservation: replay check, name, capacity, address, event, in this order, in one statement. It commits or
-- nothing has happened. A name clash takes no address; locks are always taken in this order.
-- p_operation is the operation that reserves: its row is locked against being adopted meanwhile, so that a
-- worker that lost its lease cannot reserve what nobody will release. Null only in benchmarks.
create function vm.reserve(
    p_id uuid, p_name text, p_host text, p_image uuid, p_image_name text, p_cpus integer, p_memory bigint, p_disk bigint,
    p_ssh_keys text[], p_operation uuid, p_epoch bigint, p_rest_seconds double precision, p_traceparent text
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

    insert into vm.vm (id, name, host_id, image_id, image_name, cpus, memory_mib, disk_mib, ssh_keys, epoch)
    values (p_id, p_name, p_host, p_image, p_image_name, p_cpus, p_memory, p_disk, p_ssh_keys, p_epoch)
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

-- Gives back all a VM holds and its row. Answers `released`, `absent` (done already, or never reserved) or
-- `stale` (a newer claim wrote the row).
create function vm.release(p_id uuid, p_epoch bigint, p_traceparent text) returns text language plpgsql as $$
declare
    v_vm vm.vm;
begin
    select * into v_vm from vm.vm v where v.id = p_id for update;
    if not found then
        return 'absent';
    end if;
    if v_vm.epoch > p_epoch then
        return 'stale';
    end if;
    update vm.host h set
        cpus_held = h.cpus_held - v_vm.cpus, cpus_limit = greatest(h.cpus_offered, h.cpus_held - v_vm.cpus),
        memory_held = h.memory_held - v_vm.memory_mib, memory_limit = greatest(h.memory_offered, h.memory_held - v_vm.memory_mib),
        disk_held = h.disk_held - v_vm.disk_mib, disk_limit = greatest(h.disk_offered, h.disk_held - v_vm.disk_mib)
    where h.id = v_vm.host_id;
    update vm.lease set vm_id = null, freed_at = clock_timestamp() where vm_id = p_id;
    delete from vm.vm where id = p_id;
    insert into operations.outbox (subject, data, traceparent) values (
        'warren.event.vm.' || p_id || '.deleted',
        jsonb_build_object('name', v_vm.name, 'state', 'deleted', 'host', v_vm.host_id), p_traceparent);
    return 'released';
end $$;
