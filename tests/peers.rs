//! Programs of others, before and behind the gateway: what they send and expect is not what we think that they do.

mod clients;
mod echo;
mod nginx;
