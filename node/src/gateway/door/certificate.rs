//! What this node shows to clients that come over TLS: a chain and its key, of two files that may be exchanged at any time.
//!
//! New files are taken for connections that come later; those that are there stay. Files that will not do are refused with a word
//! in the log, and what was read before stays in use.

use std::{fs, io, path::Path, path::PathBuf, sync::Arc, time::Duration};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::FromDer;

use crate::{clock, config::NodeConfig, metrics::Metrics, private_file, tasks::Tasks};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Larger than any chain.
const FILE_MAX_BYTES: u64 = 1 << 20;
const DAY_MS: u64 = 24 * 3_600 * 1_000;

/// The two files of the configuration, `node.http_tls_cert` and `node.http_tls_key`.
#[derive(Clone, Debug)]
pub struct Files {
    cert: PathBuf,
    key: PathBuf,
}

/// What they hold.
#[derive(Clone, Debug)]
pub struct Shown {
    pub config: Arc<ServerConfig>,
    /// When the certificate is over, in milliseconds since 1970.
    pub expires_ms: u64,
}

/// What tells whether files were exchanged. A file that cannot be looked at is another one, too.
type Looks = [Option<(u64, Option<std::time::SystemTime>, u64)>; 2];

impl Files {
    /// None, where this node speaks plain HTTP.
    pub fn of(node: &NodeConfig) -> Option<Self> {
        let named = !node.http_tls_cert.as_os_str().is_empty() && !node.http_tls_key.as_os_str().is_empty();
        named.then(|| Self { cert: node.http_tls_cert.clone(), key: node.http_tls_key.clone() })
    }

    /// Reads them.
    ///
    /// # Errors
    /// Where they will not do: which one, what is wrong with it, and how to mend it.
    pub fn load(&self) -> Result<Shown, String> {
        let at_cert = |wrong: &str| format!("node.http_tls_cert: {}: {wrong}", self.cert.display());
        let at_key = |wrong: &str| format!("node.http_tls_key: {}: {wrong}", self.key.display());
        let of_cert = read(&self.cert, |path| fs::read(path)).map_err(|error| at_cert(&error.to_string()))?;
        let of_key = read(&self.key, private_file::read).map_err(|error| at_key(&error.to_string()))?;
        let chain: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(&of_cert).collect();
        let chain = chain.map_err(|error| at_cert(&format!("it is not PEM ({error})")))?;
        let Some(first) = chain.first() else {
            return Err(at_cert("there is no certificate (PEM) in it: it begins with -----BEGIN CERTIFICATE-----"));
        };
        let expires_ms =
            expiry(first).map_err(|error| at_cert(&format!("its certificate cannot be read ({error})")))?;
        let key = PrivateKeyDer::from_pem_slice(&of_key)
            .map_err(|error| at_key(&format!("there is no private key without a password (PEM) in it ({error})")))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| {
                let mend = "it must be the key of the first certificate in node.http_tls_cert, which others follow up to, not with, the root";
                at_key(&format!("{error}: {mend}"))
            })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Shown { config: Arc::new(config), expires_ms })
    }

    fn looks(&self) -> Looks {
        [&self.cert, &self.key].map(|path| {
            let metadata = fs::metadata(path).ok()?;
            #[cfg(unix)]
            let number = std::os::unix::fs::MetadataExt::ino(&metadata);
            #[cfg(not(unix))]
            let number = 0;
            Some((metadata.len(), metadata.modified().ok(), number))
        })
    }

    /// Reads them, and again whenever they were exchanged or the process is told to (SIGHUP), until the tasks stop.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn follow(self, metrics: &Arc<Metrics>, tasks: &Tasks) -> Result<watch::Receiver<Shown>, String> {
        let looks = self.looks();
        let shown = self.load()?;
        shown.warn_of_end();
        metrics.certificate_expires(shown.expires_ms);
        let (sender, receiver) = watch::channel(shown);
        let follower = Follower { files: self, looks, sender, metrics: metrics.clone(), told: Arc::default() };
        #[cfg(unix)]
        tasks.spawn("SIGHUP", tell_at_hangup(follower.told.clone()));
        tasks.spawn("certificate of HTTP", follower.run(tasks.stopping().clone()));
        Ok(receiver)
    }
}

struct Follower {
    files: Files,
    looks: Looks,
    sender: watch::Sender<Shown>,
    metrics: Arc<Metrics>,
    told: Arc<Notify>,
}

impl Follower {
    async fn run(mut self, stopping: CancellationToken) {
        loop {
            let told = tokio::select! {
                () = stopping.cancelled() => std::future::pending().await,
                () = self.told.notified() => true,
                () = tokio::time::sleep(LOOK_EVERY) => false,
            };
            let looks = self.files.looks();
            if told || looks != self.looks {
                self.looks = looks;
                self.take();
            }
        }
    }

    fn take(&self) {
        match self.files.load() {
            Ok(shown) => {
                shown.warn_of_end();
                tracing::info!(
                    days_left = shown.days_left(),
                    "the certificate for clients was read again; new connections get it"
                );
                self.metrics.certificate_expires(shown.expires_ms);
                self.sender.send_replace(shown);
            }
            Err(error) => tracing::warn!(
                error,
                "the new certificate for clients is not taken, the earlier one stays in use: it is looked at again when a file changes"
            ),
        }
    }
}

impl Shown {
    /// Negative where it is over.
    #[must_use]
    pub fn days_left(&self) -> i64 {
        let (now_ms, day_ms) = (clock::wall_ms() as i64, DAY_MS as i64);
        (self.expires_ms as i64 - now_ms).div_euclid(day_ms)
    }

    /// What is wrong with its end, if something is.
    #[must_use]
    pub fn end_is_near(&self) -> Option<String> {
        let days = self.days_left();
        let at = time::OffsetDateTime::from_unix_timestamp((self.expires_ms / 1_000) as i64).ok()?.date();
        match days {
            ..0 => Some(format!("node.http_tls_cert: the certificate expired on {at}: clients refuse it")),
            0..30 => Some(format!("node.http_tls_cert: the certificate expires on {at}, in {days} days")),
            _ => None,
        }
    }

    fn warn_of_end(&self) {
        if let Some(words) = self.end_is_near() {
            tracing::warn!("{words}");
        }
    }
}

#[cfg(unix)]
async fn tell_at_hangup(told: Arc<Notify>) {
    match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()) {
        Ok(mut hangups) => {
            while hangups.recv().await.is_some() {
                told.notify_one();
            }
        }
        Err(error) => tracing::warn!(%error, "SIGHUP cannot be heard: files are looked at all the same"),
    }
    std::future::pending::<()>().await;
}

fn read(path: &Path, read: impl Fn(&Path) -> io::Result<Vec<u8>>) -> io::Result<Vec<u8>> {
    let length = fs::metadata(path)?.len();
    if length > FILE_MAX_BYTES {
        return Err(io::Error::other(format!("it has {length} bytes, more than any chain or key ({FILE_MAX_BYTES})")));
    }
    read(path)
}

fn expiry(certificate: &CertificateDer<'_>) -> Result<u64, String> {
    let (_, parsed) =
        x509_parser::certificate::X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let seconds = parsed.validity().not_after.timestamp();
    Ok(u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000))
}

#[cfg(test)]
mod tests;
