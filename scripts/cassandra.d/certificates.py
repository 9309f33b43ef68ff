"""A CA for a cluster of `scripts/cassandra start --secure`, and a certificate for each of its nodes; with OpenSSL."""

import os
import subprocess
import tempfile

from process import Failed

# Longer than anyone keeps such a cluster.
DAYS = "3650"


def issue(folder, file, name, addresses):
    """Writes a new key and certificate for these addresses into `file`. The CA lies in `folder`, and is made once."""
    authority, key = folder / "ca.pem", folder / "ca.key"
    if not (authority.exists() and key.exists()):
        extensions = ["basicConstraints = critical, CA:true", "keyUsage = keyCertSign"]
        _make(key, authority, "CA of a Cassandra for tests", extensions)
    names = ", ".join(f"IP:{address}" for address in sorted(addresses))
    own_key, own = file.with_suffix(".key"), file.with_suffix(".part")
    extensions = ["basicConstraints = critical, CA:false", "extendedKeyUsage = serverAuth", f"subjectAltName = {names}"]
    _make(own_key, own, name, extensions, ["-CA", authority, "-CAkey", key])
    own.write_text(own_key.read_text() + own.read_text())
    own.replace(file)
    own_key.unlink()


def _make(key, certificate, name, extensions, signed_by=()):
    config = "\n".join(["[req]", "distinguished_name = none", "[none]", "[extensions]", *extensions])
    with tempfile.NamedTemporaryFile("w", suffix=".cnf") as file:
        file.write(config + "\n")
        file.flush()
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        command += ["-days", DAYS, "-subj", f"/CN={name}", "-config", file.name, "-extensions", "extensions"]
        command += [*signed_by, "-keyout", key, "-out", certificate]
        try:
            # Keys are nobody else's.
            made = subprocess.run(command, capture_output=True, text=True, umask=0o077)
        except FileNotFoundError:
            raise Failed("--secure needs the program openssl: scripts/setup installs it") from None
    if made.returncode != 0:
        raise Failed(f"openssl (version 3 or later is needed) made no certificate for {name}:\n{made.stderr.strip()}")
