"""Key and certificate of the ``https`` listeners: from PEM files or a PKCS#12 keystore to rules for TLS.

What is loaded here is tried once against itself, so that what clients would refuse is known when the server starts.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from mariner.errors import ConfigurationError

__all__ = ["load_context"]

logger = logging.getLogger(__name__)

_JAVA_MAGIC = (b"\xfe\xed\xfe\xed", b"\xce\xce\xce\xce")  # JKS, JCEKS
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2; those of 1.3 are all good
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which the ssl module has no name for
_SOON = 14 * 86400.0  # seconds before its end in which a certificate is worth a warning
_SELF_SIGNED = (
    "openssl req -x509 -nodes -newkey rsa:2048 -days 365 -subj /CN=localhost -addext subjectAltName=DNS:localhost "
    "-keyout key.pem -out cert.pem"
)


def load_context(
    *,
    keystore: Path | None,
    keystore_pass: str,
    keystore_type: str,
    private_key_file: Path | None,
    certificate_file: Path | None,
    clock: Callable[[], float] = time.time,
) -> ssl.SSLContext:
    """Reads key and certificate: from the keystore if there is one, else from the PEM files.

    A certificate that has expired, or will soon, is a warning: the server may be needed all the same.

    Args:
        keystore: PKCS#12 file.
        keystore_pass: its password.
        keystore_type: ``PKCS12``.
        private_key_file: PEM, PKCS#8 or PKCS#1 or SEC1, not encrypted.
        certificate_file: PEM, the server's certificate first.
        clock: seconds since the epoch.

    Raises:
        ConfigurationError: something is missing, cannot be read, or does not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    if keystore is not None:
        certificates = _load_keystore(context, keystore, keystore_pass, keystore_type)
        name = f"keystore {keystore}"
    elif private_key_file is not None and certificate_file is not None:
        certificates = _load_pem(context, private_key_file, certificate_file)
        name = f"certificate_file {certificate_file}"
    else:
        _refuse_incomplete(private_key_file, certificate_file)
    _try_out(context, certificates, name, clock())
    return context


def _refuse_incomplete(private_key_file: Path | None, certificate_file: Path | None) -> NoReturn:
    if private_key_file is None and certificate_file is None:
        raise ConfigurationError(
            "An https address needs a key and a certificate, and none are configured.",
            hint=f"Set private_key_file and certificate_file, or keystore. To try it out, make a pair: {_SELF_SIGNED}",
        )
    missing = "private_key_file" if private_key_file is None else "certificate_file"
    raise ConfigurationError(f"An https address needs a key and a certificate: {missing} is not set.")


# -- PEM -------------------------------------------------------------------------------------------------------------


def _load_pem(context: ssl.SSLContext, key_file: Path, certificate_file: Path) -> str:
    key = _read("private_key_file", key_file)
    certificates = _read("certificate_file", certificate_file)
    if b"PRIVATE KEY-----" not in key:
        raise ConfigurationError(
            f"private_key_file {key_file} holds no private key in PEM format.",
            hint=f"If it is a DER file: openssl pkey -inform DER -in {key_file.name} -out key.pem",
        )
    if b"-----BEGIN CERTIFICATE-----" not in certificates:
        raise ConfigurationError(
            f"certificate_file {certificate_file} holds no certificate in PEM format.",
            hint=f"If it is a DER file: openssl x509 -inform DER -in {certificate_file.name} -out cert.pem",
        )

    def refuse_encrypted() -> NoReturn:
        raise ConfigurationError(
            f"The key in private_key_file {key_file} is encrypted, and nobody is there to type its password.",
            hint=f"Take the password off: openssl pkey -in {key_file.name} -out plain.pem; chmod 600 plain.pem",
        )

    try:
        context.load_cert_chain(certificate_file, key_file, refuse_encrypted)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or str(error)
        if reason == "KEY_VALUES_MISMATCH":
            raise ConfigurationError(
                f"The key in private_key_file {key_file} is not the one of the certificate in {certificate_file}.",
                hint="The server's own certificate comes first in certificate_file, those of its authority follow.",
            ) from error
        raise ConfigurationError(
            f"private_key_file {key_file} and certificate_file {certificate_file} cannot be used: {_in_words(reason)}."
        ) from error
    return certificates.decode("latin-1")


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{setting} {path} cannot be read: {error.strerror}.") from error


def _in_words(reason: str) -> str:
    return reason.replace("_", " ").lower()


# -- PKCS#12 ---------------------------------------------------------------------------------------------------------


def _load_keystore(context: ssl.SSLContext, path: Path, password: str, kind: str) -> str:
    data = _read("keystore", path)
    if kind.upper() not in {"PKCS12", "PKCS#12", "P12", "PFX"} or data.startswith(_JAVA_MAGIC):
        raise ConfigurationError(
            f"keystore {path} is of type {'JKS' if data.startswith(_JAVA_MAGIC) else kind}; only PKCS12 can be read.",
            hint=f"Convert it, and set keystore_type=PKCS12: keytool -importkeystore -srckeystore {path.name} "
            "-destkeystore keystore.p12 -deststoretype PKCS12",
        )
    key, certificates = _open_keystore(path, data, password)
    # OpenSSL reads keys from files only; this one never gets a name that others could open.
    descriptor = os.memfd_create("mariner-keystore", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, key + certificates)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise ConfigurationError(f"keystore {path} cannot be used: {_in_words(reason)}.") from error
    finally:
        os.close(descriptor)
    return certificates.decode("ascii")


def _open_keystore(path: Path, data: bytes, password: str) -> tuple[bytes, bytes]:
    """Key and certificates of the first entry, in PEM format."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - the extra "tls"
        from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
            Encoding,
            NoEncryption,
            PrivateFormat,
            pkcs12,
        )
    except ImportError as error:
        raise ConfigurationError(
            f"keystore {path} cannot be read without the package cryptography.",
            hint="Install it: pip install 'mariner-serve[tls]'. Or convert the keystore once and set private_key_file "
            f"and certificate_file: openssl pkcs12 -in {path.name} -nodes -nocerts -out key.pem; "
            f"openssl pkcs12 -in {path.name} -nokeys -out cert.pem",
        ) from error
    try:
        content = pkcs12.load_pkcs12(data, password.encode())
    except ValueError as error:
        raise ConfigurationError(
            f"keystore {path} cannot be opened: keystore_pass is not its password, or it is no PKCS#12 file."
        ) from error
    except UnsupportedAlgorithm as error:
        raise ConfigurationError(
            f"keystore {path} is encrypted in a way that is not supported any more: {error}.",
            hint=f"Write it anew: openssl pkcs12 -legacy -in {path.name} -nodes -out all.pem; "
            "openssl pkcs12 -export -in all.pem -out keystore.p12; rm all.pem",
        ) from error
    if content.key is None or content.cert is None:
        raise ConfigurationError(f"keystore {path} holds no key with a certificate.")
    key = content.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    own = content.cert.certificate
    chain, others = [own], [entry.certificate for entry in content.additional_certs]
    while issuer := next((other for other in others if other.subject == chain[-1].issuer), None):
        chain.append(issuer)
        others.remove(issuer)
    return key, b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)


# -- trying ----------------------------------------------------------------------------------------------------------


def _try_out(context: ssl.SSLContext, certificates: str, name: str, now: float) -> None:
    """Makes one handshake in memory with a client that trusts this very certificate.

    Raises:
        ConfigurationError: it fails.
    """
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(_NO_CHECK_TIME)
    try:
        client_context.load_verify_locations(cadata=certificates)
        found = _handshake(context, client_context)
    except ssl.SSLCertVerificationError as error:
        logger.warning("Clients will refuse the certificate of %s: %s.", name, error.verify_message)
        return
    except ssl.SSLError as error:
        reason = _in_words(error.reason or str(error))
        raise ConfigurationError(f"No handshake is possible with the certificate of {name}: {reason}.") from error
    start, end = (ssl.cert_time_to_seconds(str(found[key])) for key in ("notBefore", "notAfter"))
    if now >= end:
        logger.warning("The certificate of %s expired on %s: clients will refuse it.", name, _date(end))
    elif now < start:
        logger.warning("The certificate of %s is not valid before %s: clients will refuse it.", name, _date(start))
    elif end - now < _SOON:
        logger.warning("The certificate of %s expires on %s.", name, _date(end))


def _handshake(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> dict[str, object]:
    """The server's certificate as the client sees it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    client = client_context.wrap_bio(to_client, to_server)
    for _ in range(4):  # more than any handshake has flights
        for side in (client, server):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    return dict(client.getpeercert() or {})


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
