//! Which route a request gets: networking.md §3.2-3.6 and §3.17.

mod delegate;
mod host;
mod matches;
mod merge;
