"""Keys and certificates that can be used, and those that cannot."""

from __future__ import annotations

import logging
import ssl
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat

from mariner.certificates import load_context
from mariner.errors import ConfigurationError
from tls_files import Pair, key_text, make_key, make_pair


def load(**settings: Any) -> ssl.SSLContext:
    nothing = {"keystore": None, "private_key_file": None, "certificate_file": None}
    return load_context(**{"keystore_pass": "changeit", "keystore_type": "PKCS12", **nothing, **settings})


def load_pair(pair: Pair) -> ssl.SSLContext:
    return load(private_key_file=pair.key_file, certificate_file=pair.certificate_file)


def seen_by_client(server: ssl.SSLContext, client_context: ssl.SSLContext) -> tuple[str | None, str | None, int]:
    """Protocol, ALPN and number of certificates of a handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (
        client_context.wrap_bio(to_client, to_server, server_hostname="localhost"),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for _ in range(4):
        for side in sides:
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    return sides[0].version(), sides[0].selected_alpn_protocol(), len(sides[0]._sslobj.get_unverified_chain())


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path / "pair")


# -- what works ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "form", "begins"),
    [
        ("ec", PrivateFormat.PKCS8, b"-----BEGIN PRIVATE KEY-----"),
        ("ec", PrivateFormat.TraditionalOpenSSL, b"-----BEGIN EC PRIVATE KEY-----"),
        ("rsa", PrivateFormat.PKCS8, b"-----BEGIN PRIVATE KEY-----"),
        ("rsa", PrivateFormat.TraditionalOpenSSL, b"-----BEGIN RSA PRIVATE KEY-----"),
    ],
)
def test_keys_load_in_either_format(tmp_path: Path, kind: str, form: PrivateFormat, begins: bytes) -> None:
    pair = make_pair(tmp_path / "pair", kind=kind)
    pair.key_file.write_bytes(key_text(pair.key, form))
    assert pair.key_file.read_bytes().startswith(begins)
    assert seen_by_client(load_pair(pair), pair.client_context()) == ("TLSv1.3", None, 1)


def test_a_chain_is_sent_whole(tmp_path: Path) -> None:
    root = make_pair(tmp_path / "root")
    middle = make_pair(tmp_path / "middle", issuer=root, authority=True)
    leaf = make_pair(tmp_path / "leaf", issuer=middle)
    assert seen_by_client(load_pair(leaf), leaf.client_context())[2] == 3


def test_clients_get_tls_1_2_at_least_and_http_1_1(pair: Pair) -> None:
    client = pair.client_context()
    client.set_alpn_protocols(["h2", "http/1.1"])
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert seen_by_client(load_pair(pair), client)[:2] == ("TLSv1.2", "http/1.1")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_1_1_is_refused(pair: Pair) -> None:
    client = pair.client_context()
    client.minimum_version = ssl.TLSVersion.TLSv1_1
    client.maximum_version = ssl.TLSVersion.TLSv1_1
    client.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError, match=r"(?i)unsupported.protocol|version"):
        seen_by_client(load_pair(pair), client)


def test_a_client_that_knows_old_ciphers_only_is_refused(tmp_path: Path) -> None:
    pair = make_pair(tmp_path / "pair", kind="rsa")
    client = pair.client_context()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers("AES128-SHA:ECDHE-RSA-AES128-SHA")
    with pytest.raises(ssl.SSLError, match=r"(?i)no.shared.cipher"):
        seen_by_client(load_pair(pair), client)


def test_a_keystore_loads_with_its_chain_in_order(tmp_path: Path) -> None:
    root = make_pair(tmp_path / "root")
    middle = make_pair(tmp_path / "middle", issuer=root, authority=True)
    leaf = make_pair(tmp_path / "leaf", issuer=middle)
    keystore = leaf.keystore(tmp_path / "keystore.p12")
    assert seen_by_client(load(keystore=keystore), leaf.client_context()) == ("TLSv1.3", None, 3)


def test_the_keystore_outranks_the_pem_files(tmp_path: Path, pair: Pair) -> None:
    other = make_pair(tmp_path / "other")
    keystore = pair.keystore(tmp_path / "keystore.p12")
    context = load(keystore=keystore, private_key_file=other.key_file, certificate_file=other.certificate_file)
    assert seen_by_client(context, pair.client_context())[0] == "TLSv1.3"


# -- what does not ---------------------------------------------------------------------------------------------------


def test_without_key_and_certificate_the_message_has_the_command_that_makes_them() -> None:
    with pytest.raises(ConfigurationError, match="none are configured") as caught:
        load()
    assert "openssl req -x509" in caught.value.hint


@pytest.mark.parametrize(("given", "missing"), [("key_file", "certificate_file"), ("certificate_file", "private_key")])
def test_half_a_pair_is_refused(pair: Pair, given: str, missing: str) -> None:
    setting = "private_key_file" if given == "key_file" else given
    with pytest.raises(ConfigurationError, match=f"{missing}.* is not set"):
        load(**{setting: getattr(pair, given)})


@pytest.mark.parametrize("gone", ["private_key_file", "certificate_file", "keystore"])
def test_a_missing_file_is_named_with_its_setting(tmp_path: Path, pair: Pair, gone: str) -> None:
    settings = {"private_key_file": pair.key_file, "certificate_file": pair.certificate_file}
    with pytest.raises(ConfigurationError, match=rf"^{gone} .*nowhere cannot be read: No such file or directory\.$"):
        load(**{**settings, gone: tmp_path / "nowhere"})


def test_a_key_of_another_certificate_is_refused(tmp_path: Path, pair: Pair) -> None:
    other = make_pair(tmp_path / "other")
    with pytest.raises(ConfigurationError, match="is not the one of the certificate"):
        load(private_key_file=other.key_file, certificate_file=pair.certificate_file)


def test_an_encrypted_key_is_refused_without_a_prompt(pair: Pair) -> None:
    pair.key_file.write_bytes(key_text(pair.key, password=b"secret"))
    with pytest.raises(ConfigurationError, match="is encrypted") as caught:
        load_pair(pair)
    assert "openssl pkey" in caught.value.hint


def test_files_in_another_format_are_refused_with_the_command_that_converts_them(pair: Pair) -> None:
    pair.certificate_file.write_bytes(pair.chain[0].public_bytes(Encoding.DER))
    with pytest.raises(ConfigurationError, match="no certificate in PEM format") as caught:
        load_pair(pair)
    assert "openssl x509 -inform DER" in caught.value.hint
    pair.key_file.write_bytes(b"\x30\x82")
    with pytest.raises(ConfigurationError, match="no private key in PEM format"):
        load_pair(pair)


def test_swapped_files_are_refused(pair: Pair) -> None:
    with pytest.raises(ConfigurationError, match=r"cert\.pem holds no private key"):
        load(private_key_file=pair.certificate_file, certificate_file=pair.key_file)


def test_a_key_is_no_certificate(pair: Pair) -> None:
    pair.certificate_file.write_bytes(key_text(make_key()))
    with pytest.raises(ConfigurationError, match="holds no certificate"):
        load_pair(pair)


def test_a_damaged_file_is_refused(pair: Pair) -> None:
    pair.key_file.write_bytes(pair.key_file.read_bytes()[:80] + b"\n-----END PRIVATE KEY-----\n")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        load_pair(pair)


def test_the_wrong_password_of_a_keystore_is_refused(tmp_path: Path, pair: Pair) -> None:
    keystore = pair.keystore(tmp_path / "keystore.p12", b"another")
    with pytest.raises(ConfigurationError, match="keystore_pass is not its password"):
        load(keystore=keystore)


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"\xfe\xed\xfe\xed\x00\x00\x00\x02", "PKCS12"), (b"\x30\x82", "JKS")],
    ids=["content", "type"],
)
def test_a_java_keystore_is_refused_with_the_command_that_converts_it(
    tmp_path: Path, content: bytes, kind: str
) -> None:
    keystore = tmp_path / "keystore.jks"
    keystore.write_bytes(content)
    with pytest.raises(ConfigurationError, match="is of type JKS; only PKCS12") as caught:
        load(keystore=keystore, keystore_type=kind)
    assert "keytool -importkeystore -srckeystore keystore.jks" in caught.value.hint


def test_without_cryptography_a_keystore_is_refused_with_two_ways_out(
    tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    keystore = pair.keystore(tmp_path / "keystore.p12")
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(ConfigurationError, match="without the package cryptography") as caught:
        load(keystore=keystore)
    assert "pip install 'mariner-serve[tls]'" in caught.value.hint
    assert "openssl pkcs12 -in keystore.p12" in caught.value.hint


# -- what is odd -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "warning"),
    [
        ((-9, -1), "expired on"),
        ((1, 9), "is not valid before"),
        ((-9, 13), "expires on"),
        ((-9, 30), ""),
    ],
    ids=["expired", "not yet valid", "soon", "good"],
)
def test_the_dates_of_a_certificate_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, days: tuple[float, float], warning: str
) -> None:
    pair = make_pair(tmp_path / "pair", days=days)
    with caplog.at_level(logging.WARNING):
        load_pair(pair)
    messages = [record.getMessage() for record in caplog.records]
    assert [warning in message for message in messages] == [True] * bool(warning)


def test_a_keystore_leaves_no_descriptor_open(tmp_path: Path, pair: Pair) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    load(keystore=pair.keystore(tmp_path / "keystore.p12"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.slow
def test_the_store_that_keytool_makes_loads_unchanged(tmp_path: Path) -> None:
    command = (
        "keytool -genkey -keyalg RSA -alias ts -keystore keystore.p12 -storepass changeit -storetype PKCS12 "
        "-validity 3600 -keysize 2048 -dname CN=localhost"
    )
    try:
        subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no keytool here")
    load(keystore=tmp_path / "keystore.p12")
