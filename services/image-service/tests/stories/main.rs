//! Stories of images' lives as a client on NATS sees them: real PostgreSQL and NATS, a fake host.

mod crashes;
mod deletes;
mod fake_host;
mod lab;
mod names;
mod outages;
mod promotions;
mod pulls;
mod pushes;
mod refusals;
