//! Integration tests: the real `fairlead` binary between scripted upstreams and raw clients.
//!
//! Expected values are those of Istio's gateway, measured byte by byte on Envoy with Istio's settings, or they come from
//! an RFC. Where a topic is a table, a test runs every row against one gateway, prints how many there are, and reports
//! all that differ at once.
#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed, and the backtrace says where")]

#[allow(dead_code, unreachable_pub, reason = "a small language is of use before every word of it is spoken")]
mod harness;

mod actions;
mod cli;
mod connection;
mod cors;
mod egress;
mod local_reply;
mod observability;
mod peers;
mod reload;
mod resilience;
mod routing;
mod samples;
mod shutdown;
mod streaming;
mod tcp;
mod tls;
mod upgrade;
mod upstreams;
