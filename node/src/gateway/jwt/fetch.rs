//! One look at the URL with the keys: bounded in time and in bytes, and nothing is followed elsewhere.

use std::{net::IpAddr, path::Path, sync::Arc, time::Duration};

use axum::body::{Body, to_bytes};
use bytes::Bytes;
use hyper::{Request, StatusCode, Uri, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// More than any set of public keys has.
pub(super) const ANSWER_MAX_BYTES: usize = 256 << 10;

/// Where the keys are.
pub(super) struct Source {
    uri: Uri,
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    timeout: Duration,
}

impl Source {
    /// Checks the URL, and reads the certificates that it is trusted by.
    pub(super) fn new(url: &str, ca: &Path, timeout: Duration) -> Result<Self, String> {
        let wrong = |why: &str| format!("jwt.jwks_url = {url:?}: {why}");
        let uri: Uri = url.parse().map_err(|error: hyper::http::uri::InvalidUri| wrong(&error.to_string()))?;
        let host = uri.host().unwrap_or("").trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() || uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(wrong("it is like https://id.example.com/keys, without a user or password"));
        }
        let (tls, port) = match uri.scheme_str() {
            Some("https") => {
                let name = ServerName::try_from(host.clone()).map_err(|error| wrong(&error.to_string()))?;
                (Some((connector(ca)?, name)), 443)
            }
            Some("http") if is_this_machine(&host) => (None, 80),
            Some("http") => return Err(wrong("whoever is on the way could put in keys of their own: use https")),
            _ => return Err(wrong("it is an https URL")),
        };
        Ok(Self { port: uri.port_u16().unwrap_or(port), uri, host, tls, timeout })
    }

    /// The whole answer, or why there is none.
    pub(super) async fn get(&self) -> Result<Bytes, String> {
        let looked = async {
            let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|error| error.to_string())?;
            match &self.tls {
                None => match tcp.peer_addr() {
                    Ok(address) if address.ip().is_loopback() => self.ask(tcp).await,
                    _ => Err(format!("{} is not this machine: use https", self.host)),
                },
                Some((connector, name)) => {
                    let tls = connector.connect(name.clone(), tcp).await.map_err(|error| error.to_string())?;
                    self.ask(tls).await
                }
            }
        };
        let late = |_| Err(format!("no answer in {} ms (jwt.jwks_timeout_ms)", self.timeout.as_millis()));
        tokio::time::timeout(self.timeout, looked).await.unwrap_or_else(late)
    }

    async fn ask(&self, stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<Bytes, String> {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let authority = self.uri.authority().map_or("", |authority| authority.as_str());
        let request = Request::get(path)
            .header(header::HOST, authority)
            .header(header::ACCEPT, "application/json")
            .body(Body::empty())
            .map_err(|error| error.to_string())?;
        let asked = async {
            let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
            if answer.status() != StatusCode::OK {
                return Err(format!("the answer is {}, where 200 is needed", answer.status()));
            }
            let read = to_bytes(Body::new(answer.into_body()), ANSWER_MAX_BYTES).await;
            read.map_err(|error| format!("the answer broke off, or has more than {ANSWER_MAX_BYTES} bytes ({error})"))
        };
        // The connection carries the request for as long as it is waited for. Its end is that of the answer, too.
        let carried = async {
            let _ = connection.await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = asked => answer,
            () = carried => Err("the connection broke off".to_owned()),
        }
    }
}

fn is_this_machine(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn connector(ca: &Path) -> Result<TlsConnector, String> {
    let mut roots = RootCertStore::empty();
    if ca.as_os_str().is_empty() {
        // One that cannot be read does no harm to the others.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(
                "jwt.jwks_url: this machine trusts no certificate: install the package ca-certificates, or set jwt.jwks_ca"
                    .to_owned(),
            );
        }
    } else {
        let wrong = |error: &dyn std::fmt::Display| format!("jwt.jwks_ca = {}: {error}", ca.display());
        for certificate in CertificateDer::pem_file_iter(ca).map_err(|error| wrong(&error))? {
            roots.add(certificate.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
        }
        if roots.is_empty() {
            return Err(wrong(&"there is no certificate in it (PEM)"));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
