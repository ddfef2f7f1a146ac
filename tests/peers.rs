//! Programs of others: what they send and expect is not what we think that they do.

mod clients;
mod nginx;
