//! Clusters at run time: endpoints, limits, connection pools.

pub mod cluster;
pub mod dns;
