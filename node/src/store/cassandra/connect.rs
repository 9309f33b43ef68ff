//! The way to the store: a driver session with the configuration's settings.

use std::{error::Error, num::NonZeroUsize, path::Path, sync::Arc, time::Duration};

use rustls::{
    CertificateError, ClientConfig, ClientConnection, ConfigBuilder, RootCertStore, WantsVerifier,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
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
    statement::Consistency,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{StoreError, policies::BoundedRetries};
use crate::{
    config::{CassandraConfig, StoreConfig},
    private_file,
};

/// For names among the contact points.
const RESOLVE: Duration = Duration::from_secs(5);

/// Connects, and checks that the datacenter is there.
pub async fn connect(config: &StoreConfig) -> Result<Session, StoreError> {
    let cassandra = &config.cassandra;
    let timeout = Duration::from_millis(config.request_timeout_ms);
    // Its policy for choosing nodes is the driver's own: by token, in the datacenter that the session prefers.
    let profile = ExecutionProfile::builder()
        .consistency(Consistency::LocalQuorum)
        .request_timeout(Some(timeout))
        .retry_policy(Arc::new(BoundedRetries { most: cassandra.retries }))
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
    let session = match builder.build().await {
        Ok(session) => session,
        Err(error) => return Err(not_connected(&error, cassandra).await),
    };
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
    let builder = tls_builder().map_err(|error| StoreError::Refused(error.to_string()))?.with_root_certificates(roots);
    let client = if config.tls_cert.as_os_str().is_empty() {
        builder.with_no_client_auth()
    } else {
        let chain = certificates("tls_cert", &config.tls_cert)?;
        let key = private_file::read(&config.tls_key).map_err(|error| unusable("tls_key", &config.tls_key, &error))?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| unusable("tls_key", &config.tls_key, &error))?;
        builder.with_client_auth_cert(chain, key).map_err(|error| unusable("tls_cert", &config.tls_cert, &error))?
    };
    Ok(Some(TlsContext::Rustls023(Arc::new(client))))
}

fn tls_builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, rustls::Error> {
    // The provider is named: two are compiled in, and rustls would not choose.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()
}

/// Why there is no session: what waiting will mend, and what it will not.
async fn not_connected(error: &NewSessionError, config: &CassandraConfig) -> StoreError {
    let points = config.contact_points.join(", ");
    let setup = match error {
        NewSessionError::MetadataError(MetadataError::ConnectionPoolError(ConnectionPoolError::Broken {
            last_connection_error,
        })) => last_connection_error,
        NewSessionError::FailedToResolveAnyHostname(names) => {
            return StoreError::Unavailable(format!(
                "no address is known for {} (store.cassandra.contact_points): is the name right?",
                names.join(", ")
            ));
        }
        _ => return StoreError::Unavailable(format!("{points}: {error}")),
    };
    let plain = config.tls_ca.as_os_str().is_empty();
    match setup {
        ConnectionError::ConnectionSetupRequestError(setup) => match &setup.error {
            ConnectionSetupRequestErrorKind::DbError(DbError::AuthenticationError, message) => {
                not_authenticated(message, config)
            }
            ConnectionSetupRequestErrorKind::MissingAuthentication => StoreError::Refused(
                "it wants a password: set store.cassandra.username and ROOST_STORE__CASSANDRA__PASSWORD".to_owned(),
            ),
            _ if plain && wants_tls(config).await => tls_wanted(),
            // The driver has no more than the text of it.
            other if !plain && other.to_string().contains("fatal alert") => StoreError::Refused(format!(
                "it does not accept this node's side of TLS (store.cassandra.tls_cert and tls_key, where it wants a client \
                 certificate): {other}"
            )),
            // Of a client certificate that is missing the driver may notice no more than that the connection is gone.
            ConnectionSetupRequestErrorKind::BrokenConnection(_)
                if !plain && config.tls_cert.as_os_str().is_empty() =>
            {
                StoreError::Unavailable(format!(
                    "{points}: it closed the connection; does it want a client certificate (store.cassandra.tls_cert and \
                     tls_key)?"
                ))
            }
            other => StoreError::Unavailable(format!("{points}: {other}")),
        },
        ConnectionError::ConnectTimeout if plain && wants_tls(config).await => tls_wanted(),
        ConnectionError::ConnectTimeout => StoreError::Unavailable(format!(
            "{points}: no connection within {} ms (store.cassandra.connect_timeout_ms)",
            config.connect_timeout_ms,
        )),
        ConnectionError::IoError(error) => {
            let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            tls.and_then(|error| not_trusted(error, config))
                .unwrap_or_else(|| StoreError::Unavailable(format!("{points}: {error}")))
        }
        other => StoreError::Unavailable(format!("{points}: {other}")),
    }
}

/// It also answers so where it could not look at its own roles.
fn not_authenticated(message: &str, config: &CassandraConfig) -> StoreError {
    if could_not_look(message) {
        return StoreError::Unavailable(message.to_owned());
    }
    let mend =
        if config.password.is_empty() { " (the password is empty: ROOST_STORE__CASSANDRA__PASSWORD)" } else { "" };
    StoreError::Refused(format!("it refuses store.cassandra.username and password: {message}{mend}"))
}

/// Whether the refusal is for want of nodes that keep roles and grants, and not of rights.
fn could_not_look(message: &str) -> bool {
    message.starts_with("Unable to perform auth")
}

/// What is wrong with a TLS connection, where waiting does not mend it.
fn not_trusted(error: &rustls::Error, config: &CassandraConfig) -> Option<StoreError> {
    let ca = config.tls_ca.display();
    let text = match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            format!("its certificate was not issued by the CA in store.cassandra.tls_ca = {ca}")
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => format!(
            "its certificate does not name its address: nodes are dialled by address, also where contact points are \
             names, so it needs that among its alternative names, as an IP entry ({error})"
        ),
        rustls::Error::InvalidCertificate(_) => format!("its certificate is not right: {error}"),
        rustls::Error::InvalidMessage(_) => {
            format!("it does not speak TLS there, and store.cassandra.tls_ca turns it on ({error})")
        }
        rustls::Error::AlertReceived(_) => format!(
            "it does not accept this node's side of TLS (store.cassandra.tls_cert and tls_key, where it wants a client \
             certificate): {error}"
        ),
        _ => return None,
    };
    Some(StoreError::Refused(text))
}

fn tls_wanted() -> StoreError {
    StoreError::Refused("it wants TLS: set store.cassandra.tls_ca to the CA of its certificates".to_owned())
}

/// Whether any contact point answers the beginning of TLS: to plain text such a server says nothing that could be told
/// from a failure.
async fn wants_tls(config: &CassandraConfig) -> bool {
    let limit = Duration::from_millis(config.connect_timeout_ms);
    for point in &config.contact_points {
        if tokio::time::timeout(limit, speaks_tls(point)).await.is_ok_and(|answer| answer.unwrap_or(false)) {
            return true;
        }
    }
    false
}

async fn speaks_tls(point: &str) -> Result<bool, Box<dyn Error + Send + Sync>> {
    /// The first byte of an answer: an alert, or a part of the handshake.
    const TLS: [u8; 2] = [0x15, 0x16];
    let mut stream = TcpStream::connect(point).await?;
    let nobody = Arc::new(tls_builder()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
    let mut client = ClientConnection::new(nobody, ServerName::IpAddress(stream.peer_addr()?.ip().into()))?;
    let mut hello = Vec::new();
    client.write_tls(&mut hello)?;
    stream.write_all(&hello).await?;
    Ok(TLS.contains(&stream.read_u8().await?))
}

/// What went wrong with a request, in the terms of the trait.
pub(super) fn unavailable(error: &ExecutionError) -> StoreError {
    match error {
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(DbError::Unauthorized, message)) => {
            if could_not_look(message) {
                return StoreError::Unavailable(message.clone());
            }
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
