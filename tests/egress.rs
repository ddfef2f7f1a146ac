//! Services outside: ServiceEntries and how their endpoints are found.

mod dns;
mod samples;
