"""Keys and certificates for tests, made on the spot."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    pkcs12,
)
from cryptography.x509.oid import NameOID

from mariner.certificates import load_context

# OpenSSL asks for these since Python 3.13: who signed, and what a key may do.
_USES = dict.fromkeys(
    (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ),
    False,
)
_SERVER = x509.KeyUsage(**{**_USES, "digital_signature": True})
_CERTIFICATE_AUTHORITY = x509.KeyUsage(**{**_USES, "digital_signature": True, "key_cert_sign": True})


@dataclass(frozen=True)
class Pair:
    """A key, its certificate (with those above it), and the files that hold them."""

    key_file: Path
    certificate_file: Path
    key: Any
    chain: list[x509.Certificate]

    def server_context(self) -> ssl.SSLContext:
        return load_context(
            keystore=None,
            keystore_pass="",
            keystore_type="PKCS12",
            private_key_file=self.key_file,
            certificate_file=self.certificate_file,
        )

    def client_context(self) -> ssl.SSLContext:
        """Of a client that trusts the last certificate of the chain and nobody else."""
        trusted = self.chain[-1].public_bytes(Encoding.PEM).decode()
        return ssl.create_default_context(cadata=trusted)

    def keystore(self, path: Path, password: bytes = b"changeit") -> Path:
        """A PKCS#12 file, as keytool would name and encrypt it."""
        encryption = BestAvailableEncryption(password)
        above = self.chain[1:]
        path.write_bytes(pkcs12.serialize_key_and_certificates(b"ts", self.key, self.chain[0], above, encryption))
        return path


def make_key(kind: str = "ec") -> Any:
    return ec.generate_private_key(ec.SECP256R1()) if kind == "ec" else rsa.generate_private_key(65537, 2048)


def key_text(key: Any, form: PrivateFormat = PrivateFormat.PKCS8, password: bytes = b"") -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    text: bytes = key.private_bytes(Encoding.PEM, form, encryption)
    return text


def make_pair(
    directory: Path,
    *,
    kind: str = "ec",
    days: tuple[float, float] = (-1, 365),
    issuer: Pair | None = None,
    authority: bool | None = None,
) -> Pair:
    """A key and a certificate for localhost, valid between so many days from now.

    Args:
        directory: for the files.
        kind: of the key, "ec" or "rsa".
        days: first and last.
        issuer: who signs it; itself if None.
        authority: it may sign others; only a self-signed one does if None.
    """
    directory.mkdir(exist_ok=True)
    key = make_key(kind)
    signer = issuer.key if issuer else key
    authority = authority if authority is not None else not issuer
    now = datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"localhost {directory.name}")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.chain[0].subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(_CERTIFICATE_AUTHORITY if authority else _SERVER, critical=True)
        .sign(signer, hashes.SHA256())
    )
    chain = [certificate, *(issuer.chain if issuer else [])]
    pair = Pair(directory / "key.pem", directory / "cert.pem", key, chain)
    pair.key_file.write_bytes(key_text(key))
    pair.certificate_file.write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in chain))
    return pair
