//! Stands in for the `libz-ng-sys` crate.
//!
//! pingora-core asks flate2 for its zlib-ng backend, whose build needs CMake; Fairlead promises to build with Rust and a
//! C compiler alone. flate2 uses the two C backends through the same names, so the stock zlib, which needs only a C
//! compiler, serves in its place. Fairlead itself compresses nothing; the code is linked because pingora-core names it.
//! This can go when pingora-core lets its user choose flate2's backend.

pub use libz_sys::*;
