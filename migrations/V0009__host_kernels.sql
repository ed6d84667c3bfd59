-- The kernels a host's VMs may ask for by name.

alter table vm.host add column kernels text[] not null default '{}';
