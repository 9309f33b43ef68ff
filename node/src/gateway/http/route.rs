//! A line of the table of routes.

use std::sync::Arc;

use axum::{
    handler::Handler,
    http::Method,
    routing::{MethodFilter, MethodRouter, on},
};

use super::api::Api;

/// A line of the table of routes.
pub(crate) struct Route {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    /// Needs an API key.
    pub(crate) key: bool,
    pub(super) handler: MethodRouter<Arc<Api>>,
}

impl Route {
    /// A route for backends, with an API key.
    pub(super) fn keyed<H: Handler<T, Arc<Api>>, T: 'static>(method: Method, path: &'static str, handler: H) -> Self {
        Self::new(method, path, true, handler)
    }

    /// A route for anyone.
    pub(super) fn open<H: Handler<T, Arc<Api>>, T: 'static>(method: Method, path: &'static str, handler: H) -> Self {
        Self::new(method, path, false, handler)
    }

    fn new<H: Handler<T, Arc<Api>>, T: 'static>(method: Method, path: &'static str, key: bool, handler: H) -> Self {
        let filter = MethodFilter::try_from(method.clone()).expect("the table has only methods that axum routes");
        Self { method, path, key, handler: on(filter, handler) }
    }
}
