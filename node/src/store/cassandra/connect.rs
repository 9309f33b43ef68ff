//! The way to the store: a driver session with the configuration's settings.

use std::{error::Error, num::NonZeroUsize, path::Path, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use scylla::{
    client::{
        PoolSize,
        execution_profile::ExecutionProfile,
        session::{Session, TlsContext},
        session_builder::SessionBuilder,
    },
    errors::{
        ConnectionError, ConnectionPoolError, ConnectionSetupRequestErrorKind, DbError, ExecutionError, MetadataError,
        NewSessionError, RequestAttemptError,
    },
    policies::load_balancing::DefaultPolicy,
    statement::Consistency,
};

use super::{StoreError, policies::BoundedRetries};
use crate::config::{CassandraConfig, StoreConfig};

/// For names among the contact points.
const RESOLVE: Duration = Duration::from_secs(5);

/// Connects, and checks that the datacenter is there.
pub async fn connect(config: &StoreConfig) -> Result<Session, StoreError> {
    let cassandra = &config.cassandra;
    let timeout = Duration::from_millis(config.request_timeout_ms);
    let mut policy = DefaultPolicy::builder().token_aware(true);
    if !cassandra.local_datacenter.is_empty() {
        policy = policy.prefer_datacenter(cassandra.local_datacenter.clone());
    }
    let profile = ExecutionProfile::builder()
        .consistency(Consistency::LocalQuorum)
        .request_timeout(Some(timeout))
        .retry_policy(Arc::new(BoundedRetries { most: cassandra.retries }))
        .load_balancing_policy(policy.build())
        .build();
    let keep_alive = Duration::from_millis(cassandra.keep_alive_ms);
    let mut builder = SessionBuilder::new()
        .known_nodes(&cassandra.contact_points)
        .default_execution_profile_handle(profile.into_handle())
        .connection_timeout(Duration::from_millis(cassandra.connect_timeout_ms))
        .pool_size(pool_size(cassandra))
        .keepalive_interval(keep_alive)
        .keepalive_timeout(keep_alive)
        .hostname_resolution_timeout(Some(RESOLVE))
        .tls_context(tls(cassandra)?)
        // The driver finds a row's replicas only where it knows how the keyspace is replicated; what columns there are
        // nobody asks it.
        .keyspaces_to_fetch([&cassandra.keyspace])
        .fetch_full_schema_metadata(false);
    if !cassandra.local_datacenter.is_empty() {
        builder = builder.prefer_datacenter(cassandra.local_datacenter.clone());
    }
    if !cassandra.username.is_empty() {
        builder = builder.user(&cassandra.username, &cassandra.password);
    }
    let session = builder.build().await.map_err(|error| not_connected(&error, cassandra))?;
    check_datacenter(&session, cassandra)?;
    Ok(session)
}

fn pool_size(config: &CassandraConfig) -> PoolSize {
    match (NonZeroUsize::new(config.connections_per_shard), NonZeroUsize::new(config.connections_per_node)) {
        (Some(connections), _) => PoolSize::PerShard(connections),
        (None, Some(connections)) => PoolSize::PerHost(connections),
        (None, None) => PoolSize::PerHost(NonZeroUsize::MIN),
    }
}

/// A wrong or missing name would send requests to any datacenter, slowly, or to none.
fn check_datacenter(session: &Session, config: &CassandraConfig) -> Result<(), StoreError> {
    let state = session.get_cluster_state();
    let mut found: Vec<&str> = state.get_nodes_info().iter().filter_map(|node| node.datacenter.as_deref()).collect();
    found.sort_unstable();
    found.dedup();
    let wanted = config.local_datacenter.as_str();
    if wanted.is_empty() && found.len() > 1 {
        return Err(StoreError::Refused(format!(
            "it has several datacenters ({}): name the one next to this node in store.cassandra.local_datacenter",
            found.join(", ")
        )));
    }
    if !wanted.is_empty() && !found.contains(&wanted) {
        return Err(StoreError::Refused(format!(
            "store.cassandra.local_datacenter = {wanted:?}, but its nodes are in {}",
            found.join(", ")
        )));
    }
    Ok(())
}

fn tls(config: &CassandraConfig) -> Result<Option<TlsContext>, StoreError> {
    if config.tls_ca.as_os_str().is_empty() {
        return Ok(None);
    }
    let unusable = |key: &str, path: &Path, error: &dyn Error| {
        StoreError::Refused(format!("store.cassandra.{key} = {}: {error}", path.display()))
    };
    let certificates = |key: &str, path: &Path| -> Result<Vec<CertificateDer<'static>>, StoreError> {
        let found: Result<Vec<_>, _> =
            CertificateDer::pem_file_iter(path).map_err(|error| unusable(key, path, &error))?.collect();
        let found = found.map_err(|error| unusable(key, path, &error))?;
        if found.is_empty() {
            return Err(StoreError::Refused(format!(
                "store.cassandra.{key} = {} holds no certificate (PEM)",
                path.display()
            )));
        }
        Ok(found)
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates("tls_ca", &config.tls_ca)? {
        roots.add(certificate).map_err(|error| unusable("tls_ca", &config.tls_ca, &error))?;
    }
    // The provider is named: two are compiled in, and rustls would not choose.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| StoreError::Refused(error.to_string()))?
        .with_root_certificates(roots);
    let client = if config.tls_cert.as_os_str().is_empty() {
        builder.with_no_client_auth()
    } else {
        let chain = certificates("tls_cert", &config.tls_cert)?;
        let key = PrivateKeyDer::from_pem_file(&config.tls_key)
            .map_err(|error| unusable("tls_key", &config.tls_key, &error))?;
        builder.with_client_auth_cert(chain, key).map_err(|error| unusable("tls_cert", &config.tls_cert, &error))?
    };
    Ok(Some(TlsContext::Rustls023(Arc::new(client))))
}

/// Why there is no session: what waiting will mend, and what it will not.
fn not_connected(error: &NewSessionError, config: &CassandraConfig) -> StoreError {
    let points = config.contact_points.join(", ");
    let setup = match error {
        NewSessionError::MetadataError(MetadataError::ConnectionPoolError(ConnectionPoolError::Broken {
            last_connection_error,
        })) => Some(last_connection_error),
        _ => None,
    };
    match setup {
        Some(ConnectionError::ConnectionSetupRequestError(setup)) => match &setup.error {
            ConnectionSetupRequestErrorKind::DbError(DbError::AuthenticationError, message) => {
                StoreError::Refused(format!("it refuses store.cassandra.username and password: {message}"))
            }
            ConnectionSetupRequestErrorKind::MissingAuthentication => StoreError::Refused(
                "it wants a password: set store.cassandra.username and \
                 ROOST_STORE__CASSANDRA__PASSWORD"
                    .to_owned(),
            ),
            other => StoreError::Unavailable(format!("{points}: {other}")),
        },
        Some(ConnectionError::ConnectTimeout) => StoreError::Unavailable(format!(
            "{points}: no connection within {} ms (store.cassandra.connect_timeout_ms){}",
            config.connect_timeout_ms,
            if config.tls_ca.as_os_str().is_empty() { "; does it want TLS (store.cassandra.tls_ca)?" } else { "" }
        )),
        Some(ConnectionError::IoError(error)) => StoreError::Unavailable(format!("{points}: {error}")),
        _ => StoreError::Unavailable(format!("{points}: {error}")),
    }
}

/// What went wrong with a request, in the terms of the trait.
pub(super) fn unavailable(error: &ExecutionError) -> StoreError {
    match error {
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(DbError::Unauthorized, message)) => {
            StoreError::Refused(format!("the role lacks a right: {message}"))
        }
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, message)) => match error {
            // Foreign tables, or none any more.
            DbError::SyntaxError | DbError::Invalid => StoreError::Corrupt(message.clone()),
            DbError::Unavailable { required, alive, .. } => StoreError::Unavailable(format!(
                "{required} of its nodes must have the row for {}, {alive} are up",
                Consistency::LocalQuorum
            )),
            _ => StoreError::Unavailable(format!("{error}: {message}")),
        },
        ExecutionError::ConnectionPoolError(_) => {
            StoreError::Unavailable("no connection to any of its nodes".to_owned())
        }
        error => StoreError::Unavailable(error.to_string()),
    }
}
