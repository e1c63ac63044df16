"""The API's certificate: one made for the run, whose hash the ticket carries, or one that the world trusts.

The run's own certificate is its own authority and is bound to no host name: whoever holds the ticket knows its hash,
and so neither the coordinator's address nor anybody's list of authorities matters. It lives as long as the folder.
"""

from __future__ import annotations

import datetime
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from peer.channel import CERTIFICATE_NAME
from peer.errors import UsageError

VALID_DAYS = 3650


@dataclass(frozen=True)
class ServerCertificate:
    chain: bytes  # PEM
    key: bytes  # PEM
    hash: bytes  # SHA-256 of the certificate (DER), if tickets are to name it; else empty


def own_certificate(folder: Path) -> ServerCertificate:
    """In `folder`/tls, made on the first start.

    Raises:
        UsageError: it is there and cannot be used.
    """
    chain_file, key_file = folder / "tls" / "certificate.pem", folder / "tls" / "key.pem"
    if not chain_file.exists():
        _make(chain_file, key_file)
    found = given_certificate(chain_file, key_file)
    certificate = x509.load_pem_x509_certificate(found.chain)
    der = certificate.public_bytes(serialization.Encoding.DER)
    return ServerCertificate(found.chain, found.key, hashlib.sha256(der).digest())


def given_certificate(chain_file: Path, key_file: Path) -> ServerCertificate:
    """From PEM files, as certbot and others write them.

    Raises:
        UsageError: one cannot be read, or they do not belong together.
    """
    try:
        chain, key = chain_file.read_bytes(), key_file.read_bytes()
        certificate = x509.load_pem_x509_certificate(chain)
        private = serialization.load_pem_private_key(key, password=None)
    except OSError as error:
        raise UsageError(f"TLS: {error.filename}: {error.strerror}") from None
    except (ValueError, TypeError):
        raise UsageError(
            f"TLS: {chain_file} and {key_file} are not a certificate and its unencrypted key (PEM)"
        ) from None
    if private.public_key() != certificate.public_key():
        raise UsageError(f"TLS: the key in {key_file} does not belong to the certificate in {chain_file}")
    return ServerCertificate(chain, key, b"")


def _make(chain_file: Path, key_file: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, CERTIFICATE_NAME)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(CERTIFICATE_NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain_file.parent.mkdir(parents=True, exist_ok=True)
    pem = serialization.Encoding.PEM
    _write(key_file, key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()), 0o600)
    _write(chain_file, certificate.public_bytes(pem), 0o644)  # last: without it both are made again


def _write(path: Path, content: bytes, mode: int) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    os.replace(temporary, path)
