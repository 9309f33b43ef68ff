//! How the driver chooses nodes and repeats requests.

use std::sync::Arc;

use scylla::{
    cluster::{ClusterState, NodeRef},
    policies::{
        load_balancing::{DefaultPolicy, FallbackPlan, LoadBalancingPolicy, RoutingInfo},
        retry::{DefaultRetryPolicy, RequestInfo, RetryDecision, RetryPolicy, RetrySession},
    },
    routing::Shard,
};

/// Sends the conditional writes of a row to its replicas always in the same order, so that they meet at one coordinator.
/// The driver does so by itself for ScyllaDB, which marks such statements; with Cassandra, which does not, coordinators
/// that are chosen at random outbid each other until requests time out.
#[derive(Debug)]
pub(super) struct OneCoordinator(Arc<dyn LoadBalancingPolicy>);

impl OneCoordinator {
    pub(super) fn policy() -> Arc<dyn LoadBalancingPolicy> {
        Arc::new(Self(DefaultPolicy::builder().token_aware(true).build()))
    }

    /// The default plan for a conditional write, with its nodes as references into the cluster's state.
    fn plan<'a>(&self, request: &RoutingInfo<'_>, cluster: &'a ClusterState) -> Vec<(NodeRef<'a>, Option<Shard>)> {
        let mut request = request.clone();
        request.is_confirmed_lwt = true;
        let first = self.0.pick(&request, cluster);
        let rest = self.0.fallback(&request, cluster);
        let plan = first.into_iter().chain(rest);
        plan.filter_map(|(node, shard)| Some((cluster.get_node_by_host_id(node.host_id)?, shard))).collect()
    }
}

impl LoadBalancingPolicy for OneCoordinator {
    fn pick<'a>(
        &'a self,
        request: &'a RoutingInfo<'_>,
        cluster: &'a ClusterState,
    ) -> Option<(NodeRef<'a>, Option<Shard>)> {
        self.plan(request, cluster).into_iter().next()
    }

    fn fallback<'a>(&'a self, request: &'a RoutingInfo<'_>, cluster: &'a ClusterState) -> FallbackPlan<'a> {
        Box::new(self.plan(request, cluster).into_iter())
    }

    fn name(&self) -> String {
        "OneCoordinator".to_owned()
    }
}

/// The driver's decisions, bounded in number; a statement that is not idempotent is never sent again.
#[derive(Debug)]
pub(super) struct BoundedRetries {
    pub(super) most: u32,
}

impl RetryPolicy for BoundedRetries {
    fn new_session(&self) -> Box<dyn RetrySession> {
        Box::new(Session { most: self.most, made: 0, inner: DefaultRetryPolicy::new().new_session() })
    }
}

struct Session {
    most: u32,
    made: u32,
    inner: Box<dyn RetrySession>,
}

impl RetrySession for Session {
    fn decide_should_retry(&mut self, request: RequestInfo<'_>) -> RetryDecision {
        if !request.is_idempotent || self.made >= self.most {
            return RetryDecision::DontRetry;
        }
        self.made += 1;
        self.inner.decide_should_retry(request)
    }

    fn reset(&mut self) {
        self.made = 0;
        self.inner.reset();
    }
}
