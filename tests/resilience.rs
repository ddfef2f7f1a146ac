//! Timeouts, retries, faults and mirrors: networking.md §3.10-3.13.

mod fault;
mod mirror;
mod retry;
mod signs_of_life;
mod timeout;

/// A route to `service` with these other fields.
fn to(service: &str, fields: &str) -> String {
    format!("[{{route: [{{destination: {{host: {service}}}}}]{}{fields}}}]", if fields.is_empty() { "" } else { ", " })
}
