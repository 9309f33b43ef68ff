//! The cluster's CA and node certificates as files: for `roost certs` and `roost dev`.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::{
    id::NodeId,
    peer::tls::{ClusterCa, NodePem},
    private_file,
};

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// A file is there already.
    #[error("{} is there already and is not overwritten; remove it first, or choose another folder", .0.display())]
    Exists(PathBuf),
    /// A file cannot be read or written.
    #[error("{}: {error}{hint}", file.display())]
    File {
        /// The file that cannot be written.
        file: PathBuf,
        /// What the system or the generator says.
        error: io::Error,
        /// How to mend it.
        hint: &'static str,
    },
    /// The name is no node name.
    #[error("{0:?} is no node name: {1}")]
    Name(String, String),
    /// The CA's files or one of the hosts are not what they should be.
    #[error("the certificate cannot be made with the CA in {} for these hosts: {error}", dir.display())]
    Certificate {
        /// Where the CA is.
        dir: PathBuf,
        /// What the system or the generator says.
        error: rcgen::Error,
    },
}

/// Makes the cluster's CA in `dir` (`ca.pem`, `ca.key`) and gives the paths. Nothing is overwritten.
pub fn init_ca(dir: &Path) -> Result<[PathBuf; 2], CertsError> {
    let ca = ClusterCa::generate().map_err(|error| CertsError::Certificate { dir: dir.to_owned(), error })?;
    write_pair(dir, "ca", ca.cert_pem(), &ca.key_pem())
}

/// Makes a node's certificate with the CA in `dir` (`NAME.pem`, `NAME.key`) and gives the paths. `hosts` are further
/// names or addresses to be in it; none are needed. Nothing is overwritten.
pub fn node_cert(dir: &Path, name: &str, hosts: &[String]) -> Result<[PathBuf; 2], CertsError> {
    let node = NodeId::parse(name).map_err(|wrong| CertsError::Name(name.to_owned(), wrong))?;
    if name == "ca" {
        return Err(CertsError::Name(name.to_owned(), "its files would be the CA's".to_owned()));
    }
    let absent = |file: PathBuf| {
        let hint = "; make the cluster's CA first, with `roost certs init`";
        move |error| CertsError::File { file, error, hint }
    };
    let failed = |error| CertsError::Certificate { dir: dir.to_owned(), error };
    let (ca, ca_key) = (dir.join("ca.pem"), dir.join("ca.key"));
    let ca = std::fs::read_to_string(&ca).map_err(absent(ca))?;
    let ca_key = private_file::read_text(&ca_key).map_err(absent(ca_key))?;
    let ca = ClusterCa::from_pem(&ca, &ca_key).map_err(failed)?;
    let NodePem { cert, key } = ca.issue(&node, hosts).map_err(failed)?;
    write_pair(dir, name, &cert, &key)
}

fn write_pair(dir: &Path, name: &str, cert: &str, key: &str) -> Result<[PathBuf; 2], CertsError> {
    let paths = [dir.join(format!("{name}.pem")), dir.join(format!("{name}.key"))];
    if let Some(there) = paths.iter().find(|path| path.exists()) {
        return Err(CertsError::Exists(there.clone()));
    }
    std::fs::create_dir_all(dir).map_err(|error| CertsError::File { file: dir.to_owned(), error, hint: "" })?;
    write_new(&paths[0], cert, 0o644)?;
    write_new(&paths[1], key, 0o600)?;
    Ok(paths)
}

fn write_new(file: &Path, content: &str, mode: u32) -> Result<(), CertsError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    let written = options.open(file).and_then(|mut open| open.write_all(content.as_bytes()));
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => CertsError::Exists(file.to_owned()),
        _ => CertsError::File { file: file.to_owned(), error, hint: "" },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::TlsConfig, peer::tls::Identity};

    #[test]
    fn files_are_made_once_and_load() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("certs");
        let error = node_cert(&dir, "n1", &[]).unwrap_err().to_string();
        assert!(error.contains("roost certs init"), "{error}");
        let [ca, ca_key] = init_ca(&dir).unwrap();
        assert!(matches!(init_ca(&dir), Err(CertsError::Exists(_))));
        let [cert, key] = node_cert(&dir, "n1", &["localhost".to_owned()]).unwrap();
        assert!(matches!(node_cert(&dir, "n1", &[]), Err(CertsError::Exists(_))));
        for bad in ["", "../n1", "ca"] {
            assert!(matches!(node_cert(&dir, bad, &[]), Err(CertsError::Name(..))), "{bad:?}");
        }
        #[cfg(unix)]
        for secret in [&ca_key, &key] {
            let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(secret).unwrap().permissions());
            assert_eq!(mode & 0o777, 0o600);
        }
        Identity::load(&TlsConfig { ca, cert, key }, &NodeId::parse("n1").unwrap()).unwrap();
    }
}
