//! Files that hold secrets: not taken where everybody on the machine can read or change them. The file's group may: a mounted
//! secret is often owned by root and readable by the group of those who are to have it.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read},
    path::Path,
};

/// The rights of those who are neither the owner nor of the group.
#[cfg(unix)]
const OTHERS: u32 = 0o007;

/// Reads a file with a secret.
///
/// # Errors
/// Where it cannot be read, or others have rights to it; says how to mend that.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    // Of the very file that is read, not of what the path names by then.
    if is_open_to_others(&file.metadata()?) {
        return Err(open_to_others(path));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// As [`read`], for a text.
///
/// # Errors
/// As [`read`], and where it is not UTF-8.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    // The error of the conversion would hold the bytes.
    String::from_utf8(read(path)?).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
}

/// Makes an empty file that its owner alone may read and change, where there is none.
///
/// # Errors
/// Where that cannot be done.
pub(crate) fn make(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Takes the rights of others away from a file that this program keeps itself.
///
/// # Errors
/// Where they have some and that cannot be changed; says how to mend it.
#[cfg(unix)]
pub(crate) fn close_to_others(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = std::fs::metadata(path)?;
    if !is_open_to_others(&metadata) {
        return Ok(());
    }
    let mut permissions = metadata.permissions();
    permissions.set_mode(permissions.mode() & !OTHERS);
    std::fs::set_permissions(path, permissions).map_err(|_| open_to_others(path))
}

/// Others have no rights that this program knows of here.
#[cfg(not(unix))]
pub(crate) fn close_to_others(_path: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn is_open_to_others(metadata: &Metadata) -> bool {
    std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & OTHERS != 0
}

#[cfg(not(unix))]
fn is_open_to_others(_metadata: &Metadata) -> bool {
    false
}

fn open_to_others(path: &Path) -> io::Error {
    let mend =
        format!("everybody on this machine can read or change it, and it is secret: `chmod 600 {}`", path.display());
    io::Error::new(io::ErrorKind::PermissionDenied, mend)
}

#[cfg(all(test, unix))]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn what_others_can_read_or_change_is_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, "s").unwrap();
        for (mode, is_taken) in
            [(0o600, true), (0o400, true), (0o440, true), (0o644, false), (0o604, false), (0o602, false)]
        {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            match read_text(&path) {
                Ok(text) => assert!(is_taken && text == "s", "{mode:o}"),
                Err(error) => {
                    let says = error.to_string();
                    assert!(!is_taken && says.contains(&format!("chmod 600 {}", path.display())), "{mode:o}: {says}");
                }
            }
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        close_to_others(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o660, "the group keeps what it had");
        make(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"s", "what is there stays");
        let new = folder.path().join("new");
        make(&new).unwrap();
        assert_eq!(mode(&new), 0o600);
    }
}
