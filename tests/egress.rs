//! Services outside: ServiceEntries and how their endpoints are found.

mod dns;
mod entries;
mod forward_proxy;
mod samples;
mod spoofing;
mod wildcard;
