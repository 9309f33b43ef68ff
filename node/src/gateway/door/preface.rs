//! What comes on a connection before HTTP does: whom a proxy speaks for (the PROXY protocol), and TLS. All of it has a time.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use super::{certificate::Shown, listener::PROBE_LIMIT, places::Place, proxy_protocol, transport::Transport};
use crate::{config::ProxyHeader, seldom::Seldom, wire::reason::Reason};

/// For who speaks HTTP where TLS is spoken.
const USE_TLS: &str = "this port speaks TLS: use https:// or wss://\n";
/// How long, and how much, is read away after that, for the client to read it.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 16 << 10;

/// What is to come first on each connection.
#[derive(Debug)]
pub(super) struct Preface {
    /// None where plain HTTP is spoken.
    certificate: Option<watch::Receiver<Shown>>,
    /// Connections of proxies begin with a header of the PROXY protocol.
    has_proxy_protocol: bool,
    limit: Duration,
    complain: [Seldom; 2],
}

/// A connection on which HTTP begins.
pub(super) struct Begun {
    pub(super) transport: Transport,
    /// Why there is no place for whom the proxy speaks for.
    pub(super) refused: Option<Reason>,
}

impl Preface {
    pub(super) fn new(certificate: Option<watch::Receiver<Shown>>, header: ProxyHeader, limit: Duration) -> Self {
        let has_proxy_protocol = header == ProxyHeader::ProxyProtocol;
        Self { certificate, has_proxy_protocol, limit, complain: [Seldom::new(), Seldom::new()] }
    }

    /// Reads it.
    pub(super) async fn read(&self, tcp: TcpStream, place: &Place) -> io::Result<Begun> {
        if self.certificate.is_none() && !self.has_proxy_protocol {
            return Ok(Begun { transport: Transport::bare(tcp), refused: None });
        }
        // Boxed: nobody is to have room for a handshake for as long as a connection lasts.
        let read = Box::pin(self.read_all(tcp, place));
        tokio::time::timeout(self.limit, read).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn read_all(&self, mut tcp: TcpStream, place: &Place) -> io::Result<Begun> {
        let mut refused = None;
        if self.has_proxy_protocol && place.is_of_proxy() {
            let client = proxy_protocol::read(&mut tcp).await.inspect_err(|error| self.complain_of_proxy(error))?;
            refused = client.and_then(|address| place.count_for(address).err());
        }
        let Some(certificate) = &self.certificate else {
            return Ok(Begun { transport: Transport::bare(tcp), refused });
        };
        let mut first = [0];
        // A record of TLS begins with a number, a request with the name of its method.
        if tcp.peek(&mut first).await? == 1 && first[0].is_ascii_uppercase() {
            self.say_tls(tcp).await?;
            return Err(io::Error::new(io::ErrorKind::InvalidData, "plain HTTP where TLS is spoken"));
        }
        let config = certificate.borrow().config.clone();
        // Who has no place is told so soon.
        let limit = if refused.is_some() { PROBE_LIMIT } else { self.limit };
        let handshake = tokio::time::timeout(limit, TlsAcceptor::from(config).accept(tcp)).await;
        let (tcp, session) = handshake.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?.into_inner();
        Ok(Begun { transport: Transport::encrypted(tcp, session), refused })
    }

    fn complain_of_proxy(&self, error: &io::Error) {
        // A balancer that only looks whether the port is open says nothing.
        if error.kind() == io::ErrorKind::InvalidData
            && let Some(left_out) = self.complain[0].now()
        {
            tracing::warn!(
                %error,
                left_out,
                "a proxy of node.proxies did not begin its connection as node.proxy_header says: let it (send-proxy), or mend that setting"
            );
        }
    }

    async fn say_tls(&self, mut tcp: TcpStream) -> io::Result<()> {
        if let Some(left_out) = self.complain[1].now() {
            tracing::warn!(left_out, "somebody speaks plain HTTP to this port, which speaks TLS (node.http_tls_cert)");
        }
        let (head, length) =
            ("HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain", USE_TLS.len());
        tcp.write_all(format!("{head}\r\ncontent-length: {length}\r\n\r\n{USE_TLS}").as_bytes()).await?;
        tcp.shutdown().await?;
        let mut rest = tcp.take(LINGER_BYTES);
        let _ = tokio::time::timeout(LINGER, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
        Ok(())
    }
}
