//! Documents become resources.

mod decode;
mod duration;
pub(crate) mod tree;
