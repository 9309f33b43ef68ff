//! Who a node is to the others: the cluster's CA, node certificates, and the QUIC settings made from them.
//!
//! A certificate carries a DNS name that is the same for all nodes (so that a seed can be dialled by its address alone)
//! and the URI `roost://node/<id>`, which both ends read from the other's certificate after the handshake.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use quinn::{
    EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use quinn_proto::HashedConnectionIdGenerator;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::{
    CertificateError, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
};
use time::OffsetDateTime;
use x509_parser::{extensions::GeneralName, prelude::FromDer};

use super::reset::ResetKey;
use crate::{clock, config::TlsConfig, id::NodeId, private_file};

/// In every node certificate, as a DNS name.
pub const COMMON_NAME: &str = "node.roost";

/// The wire's version: nodes that share none do not connect.
pub const ALPN: &[u8] = b"roost/8";

/// The largest UDP payload: ten segments of it still fit one segmented send.
const DATAGRAM_MAX_BYTES: u16 = 6_400;

const URI_PREFIX: &str = "roost://node/";
const CA_DAYS: i64 = 3_650;
const NODE_DAYS: i64 = 730;

/// Why there is no identity: what is wrong with which file, and how to mend it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}: {wrong}; {mend}", file.display())]
pub struct IdentityError {
    pub file: PathBuf,
    /// What is wrong with it.
    pub wrong: String,
    /// What to do.
    pub mend: String,
}

/// The cluster's own certificate authority.
pub struct ClusterCa {
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A node's certificate and key as PEM text.
#[derive(Clone)]
pub struct NodePem {
    pub cert: String,
    pub key: String,
}

impl ClusterCa {
    /// A new one, for ten years.
    pub fn generate() -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Roost cluster CA");
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        (params.not_before, params.not_after) = validity(CA_DAYS);
        let cert_pem = params.self_signed(&key)?.pem();
        Ok(Self { cert_pem, issuer: Issuer::new(params, key) })
    }

    /// One that was made before.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, rcgen::Error> {
        let key = KeyPair::from_pem(key_pem)?;
        Ok(Self { cert_pem: cert_pem.to_owned(), issuer: Issuer::from_ca_cert_pem(cert_pem, key)? })
    }

    /// Its certificate, which every node has.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Its key, which no node needs.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Makes a node's certificate, for two years. `hosts` are further names or addresses to be in it.
    pub fn issue(&self, node: &NodeId, hosts: &[String]) -> Result<NodePem, rcgen::Error> {
        self.issue_for(node, hosts, validity(NODE_DAYS))
    }

    fn issue_for(
        &self,
        node: &NodeId,
        hosts: &[String],
        (from, to): (OffsetDateTime, OffsetDateTime),
    ) -> Result<NodePem, rcgen::Error> {
        let mut names = vec![COMMON_NAME.to_owned()];
        names.extend_from_slice(hosts);
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names)?;
        params.subject_alt_names.push(SanType::URI(format!("{URI_PREFIX}{node}").try_into()?));
        params.distinguished_name.push(DnType::CommonName, node.as_str());
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (from, to);
        let cert = params.signed_by(&key, &self.issuer)?.pem();
        Ok(NodePem { cert, key: key.serialize_pem() })
    }

    /// A node's identity without files, for `roost dev` and tests.
    pub fn identity(&self, node: &NodeId) -> Result<Identity, IdentityError> {
        let memory = Path::new("(in memory)");
        let pem = self.issue(node, &[]).map_err(|error| wrong(memory, error, "this should not happen"))?;
        let pems = [(memory, self.cert_pem.as_bytes()), (memory, pem.cert.as_bytes()), (memory, pem.key.as_bytes())];
        Identity::from_pems(pems, node)
    }
}

impl fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterCa")
    }
}

/// What a node proves itself with, and whom it believes.
pub struct Identity {
    node: NodeId,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    expires_ms: u64,
}

impl Identity {
    /// Reads and checks the files: that the certificate is this node's, valid now, of this CA, and the key's.
    pub fn load(files: &TlsConfig, node: &NodeId) -> Result<Self, IdentityError> {
        let read = |file: &Path, mend: &str| std::fs::read(file).map_err(|error| wrong(file, error, mend));
        let ca = read(&files.ca, "make the cluster's CA with `roost certs init`, or set tls.ca")?;
        let cert = read(&files.cert, &format!("make it with `roost certs node {node}`, or set tls.cert"))?;
        let key = private_file::read(&files.key).map_err(|error| {
            let is_open = error.kind() == std::io::ErrorKind::PermissionDenied;
            let mend = if is_open { "its user may read it, and nobody else" } else { "" };
            let made = format!("make it with `roost certs node {node}`, or set tls.key");
            wrong(&files.key, error, if is_open { mend } else { &made })
        })?;
        Self::from_pems([(&files.ca, ca.as_slice()), (&files.cert, &cert), (&files.key, &key)], node)
    }

    /// From the CA's certificate, the node's certificate and its key, each with the name to blame.
    fn from_pems([ca, cert, key]: [(&Path, &[u8]); 3], node: &NodeId) -> Result<Self, IdentityError> {
        let again = format!("make a new one with `roost certs node {node}`");
        let mut roots = RootCertStore::empty();
        for root in certificates(ca, "make the cluster's CA with `roost certs init`")? {
            let added = roots.add(root);
            added.map_err(|error| wrong(ca.0, error, "make the cluster's CA with `roost certs init`"))?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(cert, &again)?;
        let named = node_of(&chain[0]).map_err(|error| wrong(cert.0, error, &again))?;
        if named != *node {
            let mend = format!("set node.id to {named:?}, or {again}");
            return Err(wrong(cert.0, format!("it is node {named}'s certificate, and this is node {node}"), &mend));
        }
        let key_der = PrivateKeyDer::from_pem_slice(key.1).map_err(|error| wrong(key.0, pem_error(&error), &again))?;
        let expires_ms = expiry(&chain[0]).map_err(|error| wrong(cert.0, error, &again))?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider());
        let verifier =
            verifier.build().map_err(|error| wrong(ca.0, error, "make the cluster's CA with `roost certs init`"))?;
        let now = UnixTime::since_unix_epoch(Duration::from_millis(clock::wall_ms()));
        let verified = verifier.verify_client_cert(&chain[0], &chain[1..], now);
        verified.map_err(|error| {
            let mend = match error {
                rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { .. }) => {
                    format!("set this machine's clock right, or {again}")
                }
                _ => format!("{again}, with the CA of {}", ca.0.display()),
            };
            wrong(cert.0, format!("it does not hold against the cluster's CA: {error}"), &mend)
        })?;
        let identity = Self { node: named, roots, chain, key: key_der, expires_ms };
        identity
            .rustls_client()
            .map_err(|error| wrong(key.0, format!("not the certificate's key: {error}"), &again))?;
        Ok(identity)
    }

    /// The name in the certificate.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// When the certificate ends, in milliseconds since 1970.
    pub fn expires_ms(&self) -> u64 {
        self.expires_ms
    }

    pub(crate) fn server_config(&self, transport: Arc<TransportConfig>) -> Result<quinn::ServerConfig, rustls::Error> {
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider());
        let verifier = verifier.build().map_err(|error| rustls::Error::General(error.to_string()))?;
        let mut tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        // No resumption: every connection shows its certificate anew. No early data: it can be replayed.
        tls.send_tls13_tickets = 0;
        tls.max_early_data_size = 0;
        let tls = QuicServerConfig::try_from(tls).map_err(|error| rustls::Error::General(error.to_string()))?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        config.transport_config(transport).max_incoming(1_024);
        Ok(config)
    }

    pub(crate) fn client_config(&self, transport: Arc<TransportConfig>) -> Result<quinn::ClientConfig, rustls::Error> {
        let tls = QuicClientConfig::try_from(self.rustls_client()?)
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(transport);
        Ok(config)
    }

    /// The reset key and the connection ids come from the node's key, so that a process that was started again can tell
    /// its peers at once that their connections are gone: it knows the ids of the one before and may reset them.
    pub(crate) fn endpoint_config(&self) -> EndpointConfig {
        let key = ResetKey::derive(self.key.secret_der());
        let connection_ids = key.connection_id_key();
        let mut config = EndpointConfig::new(Arc::new(key));
        config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(connection_ids)));
        let size = config.max_udp_payload_size(DATAGRAM_MAX_BYTES);
        size.expect("the size is above QUIC's minimum of 1200");
        config
    }

    fn rustls_client(&self) -> Result<rustls::ClientConfig, rustls::Error> {
        let mut tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.resumption = rustls::client::Resumption::disabled();
        tls.enable_early_data = false;
        Ok(tls)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("node", &self.node)
            .field("expires_ms", &self.expires_ms)
            .finish_non_exhaustive()
    }
}

/// For connections that peers dial to send to this node.
pub(crate) fn receiving(keep_alive: Duration) -> TransportConfig {
    let mut config = transport(keep_alive);
    config
        .max_concurrent_uni_streams(VarInt::from_u32(256))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .datagram_receive_buffer_size(Some(1 << 20));
    config
}

/// For connections that this node dials: the other end has nothing to say but the answer to the hello.
pub(crate) fn sending(keep_alive: Duration) -> TransportConfig {
    let mut config = transport(keep_alive);
    config
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        // None would also forbid sending them.
        .datagram_receive_buffer_size(Some(1));
    config
}

/// Everything quinn leaves open or sets for slow wide networks. Cubic is its default.
fn transport(keep_alive: Duration) -> TransportConfig {
    let idle = (keep_alive * 4).max(Duration::from_secs(1));
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(DATAGRAM_MAX_BYTES);
    let mut config = TransportConfig::default();
    config
        .keep_alive_interval(Some(keep_alive))
        .max_idle_timeout(Some(IdleTimeout::try_from(idle).unwrap_or_else(|_| VarInt::from_u32(1_000).into())))
        .initial_rtt(Duration::from_millis(100))
        .stream_receive_window(VarInt::from_u32(4 << 20))
        .receive_window(VarInt::from_u32(32 << 20))
        .send_window(16 << 20)
        .datagram_send_buffer_size(1 << 20)
        .mtu_discovery_config(Some(mtu));
    config
}

/// The node that a certificate (whose signature rustls has checked) names.
pub(crate) fn node_of(certificate: &CertificateDer<'_>) -> Result<NodeId, String> {
    let (_, parsed) =
        x509_parser::certificate::X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let names = parsed.subject_alternative_name().map_err(|error| error.to_string())?;
    let mut found = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(URI_PREFIX),
        _ => None,
    });
    match (found.next(), found.next()) {
        (Some(node), None) => NodeId::parse(node),
        (None, _) => Err(format!("the certificate has no name of the form {URI_PREFIX}NAME")),
        (Some(_), Some(_)) => Err("the certificate names several nodes".to_owned()),
    }
}

/// The node at the other end of a connection.
pub(crate) fn peer_of(connection: &quinn::Connection) -> Result<NodeId, String> {
    let identity = connection.peer_identity().ok_or("the peer has shown no certificate")?;
    let chain =
        identity.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| "the peer's certificate cannot be read")?;
    node_of(chain.first().ok_or("the peer has shown no certificate")?)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates((file, pem): (&Path, &[u8]), mend: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let parsed = parsed.map_err(|error| wrong(file, pem_error(&error), mend))?;
    if parsed.is_empty() {
        return Err(wrong(file, "there is no certificate (PEM) in it", mend));
    }
    Ok(parsed)
}

fn pem_error(error: &rustls::pki_types::pem::Error) -> String {
    format!("not what is expected there, in PEM: {error}")
}

fn expiry(certificate: &CertificateDer<'_>) -> Result<u64, String> {
    let (_, parsed) =
        x509_parser::certificate::X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let seconds = parsed.validity().not_after.timestamp();
    Ok(u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000))
}

/// From an hour ago, for clocks that differ.
fn validity(days: i64) -> (OffsetDateTime, OffsetDateTime) {
    let now_s = i64::try_from(clock::wall_ms() / 1_000).unwrap_or(0);
    let at = |seconds| OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    (at(now_s - 3_600), at(now_s + days * 86_400))
}

fn wrong(file: &Path, wrong: impl fmt::Display, mend: &str) -> IdentityError {
    IdentityError { file: file.to_owned(), wrong: wrong.to_string(), mend: mend.to_owned() }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Trusts anyone and shows nothing.
    pub(in crate::peer) fn client_without_certificate() -> quinn::ClientConfig {
        let builder = rustls::ClientConfig::builder_with_provider(provider());
        let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
        let mut tls = builder.dangerous().with_custom_certificate_verifier(Arc::new(Credulous)).with_no_client_auth();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        config.transport_config(Arc::new(sending(Duration::from_millis(250))));
        config
    }

    #[derive(Debug)]
    struct Credulous;

    impl rustls::client::danger::ServerCertVerifier for Credulous {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &rustls::pki_types::ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            provider().signature_verification_algorithms.supported_schemes()
        }
    }

    fn node(name: &str) -> NodeId {
        NodeId::parse(name).unwrap()
    }

    /// Writes the three files and loads them as node `n1`; gives the error's text.
    fn check(ca: &str, cert: &str, key: &str, expected: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let files = TlsConfig { ca: path("ca.pem"), cert: path("node.pem"), key: path("node.key") };
        for (file, content) in [(&files.ca, ca), (&files.cert, cert), (&files.key, key)] {
            if !content.is_empty() {
                private_file::make(file).unwrap();
                std::fs::write(file, content).unwrap();
            }
        }
        match Identity::load(&files, &node("n1")) {
            Ok(identity) => {
                assert!(expected.is_empty(), "loaded, but expected {expected:?}");
                assert_eq!(identity.node(), &node("n1"));
                assert!(identity.expires_ms() > clock::wall_ms());
            }
            Err(error) => {
                let text = error.to_string();
                assert!(!expected.is_empty(), "{text}");
                for part in expected {
                    assert!(text.contains(part), "{part:?} is not in {text:?}");
                }
            }
        }
    }

    #[test]
    fn files_are_checked_and_the_error_says_how_to_mend_it() {
        let ca = ClusterCa::generate().unwrap();
        let ca = ClusterCa::from_pem(ca.cert_pem(), &ca.key_pem()).unwrap();
        let other = ClusterCa::generate().unwrap();
        let mine = ca.issue(&node("n1"), &["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let theirs = ca.issue(&node("n2"), &[]).unwrap();
        let foreign = other.issue(&node("n1"), &[]).unwrap();
        check(ca.cert_pem(), &mine.cert, &mine.key, &[]);
        check("", &mine.cert, &mine.key, &["ca.pem", "roost certs init"]);
        check(ca.cert_pem(), "", &mine.key, &["node.pem", "roost certs node n1"]);
        check(ca.cert_pem(), &mine.cert, "", &["node.key", "roost certs node n1"]);
        check("nonsense", &mine.cert, &mine.key, &["ca.pem", "no certificate"]);
        check(ca.cert_pem(), &mine.key, &mine.key, &["node.pem", "no certificate"]);
        check(ca.cert_pem(), &mine.cert, &mine.cert, &["node.key", "PEM"]);
        check(ca.cert_pem(), &mine.cert, &theirs.key, &["node.key", "not the certificate's key"]);
        check(ca.cert_pem(), &theirs.cert, &theirs.key, &["node n2's", "set node.id"]);
        check(ca.cert_pem(), &foreign.cert, &foreign.key, &["node.pem", "does not hold", "roost certs node n1"]);
        check(ca.cert_pem(), ca.cert_pem(), &ca.key_pem(), &["node.pem", "roost://node/"]);
        // One for later is more likely the fault of this machine's clock.
        let (_, from) = validity(1);
        let later = ca.issue_for(&node("n1"), &[], (from, from)).unwrap();
        check(ca.cert_pem(), &later.cert, &later.key, &["node.pem", "not valid yet", "set this machine's clock right"]);
    }
}
