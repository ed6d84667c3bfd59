//! Stories of images' lives as a client on NATS sees them: real PostgreSQL and NATS, a fake host.

mod archives;
mod build_crashes;
mod builds;
mod bundled_kernels;
mod crashes;
mod deletes;
mod fake_host;
mod fake_kernels;
mod fake_vms;
mod gc;
mod gc_races;
mod kernel_crashes;
mod kernel_gc;
mod kernels;
mod lab;
mod names;
mod outages;
mod promotions;
mod pulls;
mod pushes;
mod refusals;
mod registrations;
