//! Header operations of routes and destinations.

use super::format::Format;

/// Header changes: the removals run first, then the additions in their order.
///
/// `compile` merges levels, so that the data plane only runs lists: with one destination, its operations are already in
/// the route's list; with several, the destination's list runs before the route's.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HeaderOps {
    /// Lower-case names to remove.
    pub remove: Vec<String>,
    /// Lines to write, in order.
    pub put: Vec<HeaderPut>,
}

impl HeaderOps {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.put.is_empty()
    }
}

/// One header line to write. A value that evaluates to nothing is skipped.
#[derive(Debug, Clone, PartialEq)]
pub struct HeaderPut {
    /// Lower-case name.
    pub name: String,
    /// The value.
    pub value: Format,
    /// Replace all lines of that name (`set`), or add one (`add`).
    pub replace: bool,
}
