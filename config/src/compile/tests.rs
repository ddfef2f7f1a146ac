//! What small configurations compile to.

#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]
