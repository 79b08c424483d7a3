"""Who may call what: keys and their file, and the rule for each listener.

Three modes. ``on`` is TorchServe's: every call of the inference and management listeners carries a key. ``auto``
trusts this machine: management calls from elsewhere need the key, inference is open. ``off`` asks for nothing, but web
pages of strangers stay out of the management listener: a browser runs on this machine without being its user.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import math
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from urllib.parse import urlsplit

from mariner.config import Config, TokenMode
from mariner.errors import BadRequest, ConfigurationError, InternalError, InvalidKey, NotFound

__all__ = ["Access", "Key", "KeyType", "Keys", "Listener", "keys_needed", "open_access", "read_given_keys"]

logger = logging.getLogger(__name__)

KEY_BYTES = 24  # 192 bits; 32 characters of URL-safe base64
DEFAULT_LIFETIME = 3600.0  # seconds; TorchServe's default of token_expiration_min, for mode ``on``
_MAX_KEY_FILE = 4096  # bytes; a head of a request must have room for the key and more
_NEVER = "9999-12-31T23:59:59.999999Z"  # readers of the file expect a time, so "never" is the last one there is

_BEARER = re.compile(r"Bearer\s+(\S+)")
_REFUSED = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"
_NOT_RENEWED = "Token Authentication failed. Token either incorrect, expired, or not provided correctly"
# A proxy on this machine makes the whole network look local; it usually leaves one of these.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")


class Listener(Enum):
    """What a listener, or a route on a shared one, is for."""

    INFERENCE = "inference"
    MANAGEMENT = "management"
    METRICS = "metrics"


class KeyType(Enum):
    """What a key opens; the values are the names in the key file."""

    MANAGEMENT = "management"
    INFERENCE = "inference"
    API = "API"  # renews the other two


_GUARDED_BY = {Listener.INFERENCE: KeyType.INFERENCE, Listener.MANAGEMENT: KeyType.MANAGEMENT}


@dataclass(frozen=True, slots=True)
class Key:
    """A secret and until when it opens something, in seconds since the epoch."""

    text: str = field(repr=False)
    expires: float = math.inf
    given: bool = False  # by the operator: it is theirs to keep, so the file leaves it out


class Keys:
    """The three keys of a running server. Memory decides; the file is for those who need to read them.

    Args:
        path: the key file.
        lifetime: seconds until the inference and management keys expire; infinity for never.
        given: keys from the environment or a mounted secret instead of random ones.
        given_lifetime: seconds until those expire; they belong to the operator, so never if nobody says so.
        clock: the time in seconds since the epoch.

    Raises:
        ConfigurationError: the file cannot be written, or a given key cannot be sent in a header.
    """

    def __init__(
        self,
        path: Path,
        *,
        lifetime: float = DEFAULT_LIFETIME,
        given: Mapping[KeyType, str] | None = None,
        given_lifetime: float = math.inf,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self._lifetime = lifetime
        self._given_lifetime = given_lifetime
        self._clock = clock
        self._warned: set[Key] = set()
        given = given or {}
        for type_, text in given.items():
            if not re.fullmatch(r"[!-~]{16,}", text):
                raise ConfigurationError(
                    f"The given {type_.value} key cannot be used: it must be 16 or more printable ASCII characters.",
                    hint="Make one with: python -c 'import secrets; print(secrets.token_urlsafe(24))'",
                )
        self._keys = {type_: self._make(type_, given.get(type_)) for type_ in KeyType}
        self._write(self._keys)

    def opens(self, type_: KeyType, text: str) -> bool:
        """The text is the key of that type, and it has not expired; takes as long for a near miss as for any other."""
        key = self._keys[type_]
        same = hmac.compare_digest(text.encode("utf-8", "surrogatepass"), key.text.encode())
        if self._clock() < key.expires:
            return same
        if same and key not in self._warned:
            self._warned.add(key)
            when = datetime.fromtimestamp(key.expires, UTC).isoformat(timespec="seconds")
            logger.warning("The %s key expired at %s; /token?type=%s renews it.", type_.value, when, type_.value)
        return False

    def renew(self, type_: KeyType) -> None:
        """Replaces a key at once, in memory and in the file; the others stay.

        Raises:
            ConfigurationError: the file cannot be written; the old key stays.
        """
        renewed = {**self._keys, type_: self._make(type_)}
        self._write(renewed)
        self._keys = renewed

    def remove_file(self) -> None:
        """Removes the key file, unless another server has replaced it meanwhile."""
        with suppress(OSError):
            if self.path.read_text(encoding="ascii") == self._format(self._keys):
                self.path.unlink()

    def _make(self, type_: KeyType, text: str | None = None) -> Key:
        lifetime = self._lifetime if text is None else self._given_lifetime
        expires = math.inf if type_ is KeyType.API else self._clock() + lifetime
        return Key(text or secrets.token_urlsafe(KEY_BYTES), expires, given=text is not None)

    def _format(self, keys: Mapping[KeyType, Key]) -> str:
        content: dict[str, dict[str, str]] = {}
        for type_, key in keys.items():
            if not key.given:
                content[type_.value] = {"key": key.text}
                if type_ is not KeyType.API:
                    content[type_.value]["expiration time"] = _format_time(key.expires)
        return json.dumps(content, indent=2) + "\n" if content else ""

    def _write(self, keys: Mapping[KeyType, Key]) -> None:
        text = self._format(keys)
        if not text:
            return  # all were given
        temporary = ""
        try:
            # Made with 0600 by mkstemp and moved over the old file: no moment at which others could read a key, and
            # none with half a file. A link at the target is replaced, not followed.
            descriptor, temporary = tempfile.mkstemp(prefix=".key_file-", dir=self.path.parent)
            with open(descriptor, "w", encoding="ascii") as file:  # noqa: PTH123 - a descriptor, not a path
                file.write(text)
            os.replace(temporary, self.path)  # noqa: PTH105 - mkstemp gives text
        except OSError as error:
            if temporary:
                with suppress(OSError):
                    os.unlink(temporary)  # noqa: PTH108 - mkstemp gives text
            raise ConfigurationError(
                f"Token Authorization setup unsuccessful: {self.path} cannot be written: {error.strerror or error}.",
                hint="Start the server in a directory it may write, or turn tokens off with --disable-token-auth.",
            ) from error


def _format_time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    except (OverflowError, ValueError):  # infinity, or beyond year 9999
        return _NEVER


class Access:
    """Decides about each call.

    Args:
        mode: which calls need a key.
        keys: the keys; None if nobody has one.
        names: host names this server is called by, beside ``localhost`` and addresses.
        origins: origins of web pages that may call the management listener (``https://ui.example``); ``*`` for any,
            which counts in mode ``off`` only.
        model_api: models may be registered and unregistered; None: by this machine and holders of the management key.
    """

    def __init__(
        self,
        mode: TokenMode,
        keys: Keys | None = None,
        *,
        names: Collection[str] = (),
        origins: Collection[str] = (),
        model_api: bool | None = None,
    ) -> None:
        self.mode = mode
        self.keys = keys
        self._names = frozenset(name.lower().rstrip(".") for name in names) | {"localhost"}
        self._origins = frozenset(origin.lower().rstrip("/") for origin in origins)
        self._model_api = model_api

    def guards(self, listener: Listener, *, probe: bool = False) -> bool:
        """Calls of this listener need :meth:`check`; constant.

        Args:
            listener: the kind of the route.
            probe: it asks for health or readiness, which load balancers do without a key unless every call needs one.
        """
        if listener is Listener.MANAGEMENT and not probe:
            return True
        return listener is not Listener.METRICS and self.mode is TokenMode.ON

    def check(self, *, listener: Listener, peer: str, headers: Mapping[str, str], method: str, path: str) -> None:
        """Lets a call pass or not.

        Args:
            listener: the kind of the route; on a shared listener it is not the listener's.
            peer: address of the other end of the socket, ``unix`` for a Unix one.
            headers: with lower-case names.
            method: of the request.
            path: decoded, without the query.

        Raises:
            InvalidKey: the call needs a key and has no good one.
            BadRequest: a web page of a stranger made the call.
        """
        if not self.guards(listener) or path == "/api-description" or (path == "/" and method == "OPTIONS"):
            return
        if path == "/token" and listener is Listener.MANAGEMENT and self.keys is not None:
            return  # renew() wants a key of its own
        if self.mode is TokenMode.OFF:
            if peer != "unix" and self._from_stranger(headers):
                raise BadRequest(
                    "Web pages of other origins may not call the management API.",
                    hint="Name the page's origin in cors_allowed_origin if it is yours.",
                )
            return
        if self._has_key(_GUARDED_BY[listener], headers):
            return
        if self.mode is TokenMode.ON:
            raise InvalidKey(_REFUSED)
        if hint := self._why_not_local(peer, headers):
            raise InvalidKey(_REFUSED, hint=hint)

    def model_api_allowed(self, *, peer: str, headers: Mapping[str, str]) -> bool:
        """A call that passed :meth:`check` may register and unregister models."""
        if self._model_api is not None:
            return self._model_api
        if self._has_key(KeyType.MANAGEMENT, headers):
            return True
        return self.mode is not TokenMode.ON and not self._why_not_local(peer, headers)

    def renew(self, type_: str, headers: Mapping[str, str]) -> None:
        """``/token``: replaces the inference or the management key for the holder of the API key.

        Raises:
            NotFound: there are no keys, hence no such path.
            InvalidKey: the caller has no API key, or the type is unknown.
            InternalError: the key file cannot be written; the old key stays.
        """
        if self.keys is None:
            raise NotFound("Requested resource is not found, please refer to API document.")
        if not self._has_key(KeyType.API, headers) or type_ not in {"management", "inference"}:
            raise InvalidKey(_NOT_RENEWED)
        try:
            self.keys.renew(KeyType(type_))
        except ConfigurationError as error:
            logger.error("The %s key was not renewed: %s", type_, error.message)  # noqa: TRY400 - the text says it all
            raise InternalError("The key was not renewed: the key file cannot be written.") from error

    def _has_key(self, type_: KeyType, headers: Mapping[str, str]) -> bool:
        match = _BEARER.fullmatch(headers.get("authorization", ""))
        return self.keys is not None and match is not None and self.keys.opens(type_, match[1])

    def _why_not_local(self, peer: str, headers: Mapping[str, str]) -> str:
        """Why a call without a key does not count as made by this machine's user; empty if it does."""
        if not _is_loopback(peer):
            return "Calls from other machines need the management key, see key_file.json where the server was started."
        if any(name in headers for name in _FORWARDED):
            return "A proxy forwarded the call, so anybody may have made it: " + (
                "it needs the management key."
                if self.keys is not None
                else "set token_authorization=on to have keys, or off if the proxy checks its callers."
            )
        if peer == "unix":
            return ""  # no browser can open one
        if not self._is_own_name(headers.get("host", "")):
            return "The Host header is no name of this server: call it by address, or send the management key."
        if self._from_stranger(headers):
            return "A web page of another origin made the call: it needs the management key."
        return ""

    def _from_stranger(self, headers: Mapping[str, str]) -> bool:
        """A page from elsewhere, or one that made its own name point to this machine (DNS rebinding)."""
        origin = headers.get("origin")
        if origin is None:
            return False
        if origin.lower() in self._origins or (self.mode is TokenMode.OFF and "*" in self._origins):
            return False
        host = headers.get("host", "")
        scheme = origin.partition("://")[0].lower()  # decides the port that the Host header may leave out
        if scheme not in {"http", "https"} or not host or not self._is_own_name(host):
            return True
        return _authority(origin) != _authority(f"{scheme}://{host}")

    def _is_own_name(self, host: str) -> bool:
        # A page can make its name resolve to a loopback address, but cannot make a browser send an address instead.
        if not host:
            return True  # HTTP/1.0; browsers always send it
        name, _ = _authority(f"http://{host}")
        return name in self._names or _address(name) is not None


def keys_needed(mode: TokenMode, management_host: str) -> bool:
    """Somebody might have to show a key: always in mode ``on``, for callers from other machines in mode ``auto``."""
    return mode is TokenMode.ON or (mode is TokenMode.AUTO and not _is_local_host(management_host))


def open_access(
    mode: TokenMode,
    *,
    management_host: str,
    key_file: Path,
    lifetime: float | None = None,
    given: Mapping[KeyType, str] | None = None,
    names: Iterable[str] = (),
    origins: Iterable[str] = (),
    model_api: bool | None = None,
    clock: Callable[[], float] = time.time,
) -> Access:
    """Makes keys if they are needed, writes their file, and says in the log what is open.

    Args:
        mode: which calls need a key.
        management_host: what the management listener is bound to; ``unix`` for a Unix socket.
        key_file: where the keys go.
        lifetime: seconds until keys expire; None if not configured: an hour in mode ``on``, never in ``auto``.
        given: as in :class:`Keys`.
        names: as in :class:`Access`; ``management_host`` is one of them already.
        origins: as in :class:`Access`.
        model_api: as in :class:`Access`.
        clock: the time in seconds since the epoch.

    Raises:
        ConfigurationError: the keys cannot be made.
    """
    keys = None
    if keys_needed(mode, management_host) or (given and mode is not TokenMode.OFF):
        given_lifetime = math.inf if lifetime is None else lifetime
        if lifetime is None:
            lifetime = DEFAULT_LIFETIME if mode is TokenMode.ON else math.inf
        keys = Keys(key_file, lifetime=lifetime, given=given, given_lifetime=given_lifetime, clock=clock)
        calls = "Inference and management calls" if mode is TokenMode.ON else "Management calls from other machines"
        but = f" The {' and the '.join(type_.value for type_ in given)} key was given." if given else ""
        logger.info("%s need a key: see %s.%s", calls, key_file, but)
        if mode is TokenMode.AUTO and KeyType.INFERENCE in (given or {}):
            logger.warning("The inference key is asked of nobody: predictions need one with token_authorization=on.")
    elif given:
        logger.warning("Keys were given, but token authorization is off: nobody needs one.")
    if mode is TokenMode.OFF and not _is_local_host(management_host):
        logger.warning(
            "Token authorization is off and the management API listens on %s: whoever reaches it may manage models.",
            management_host,
        )
    if management_host != "unix":
        names = [management_host, *names]
    return Access(mode, keys, names=[*names], origins=[*origins], model_api=model_api)


def read_given_keys(settings: Config) -> dict[KeyType, str]:
    """The keys that the operator gives, from settings or from the files that settings name.

    Raises:
        ConfigurationError: a file cannot be read or holds no key, or a key is given twice.
    """
    given = {}
    for type_, text, path in (
        (KeyType.MANAGEMENT, settings.management_key, settings.management_key_file),
        (KeyType.INFERENCE, settings.inference_key, settings.inference_key_file),
    ):
        name = f"{type_.value}_key"
        if text is not None and path is not None:
            raise ConfigurationError(
                f"{name} ({settings.origin(name)}) and {name}_file ({settings.origin(f'{name}_file')}) are both set.",
                hint="Keep one of them.",
            )
        if path is not None:
            given[type_] = _read_key(f"{name}_file={path} ({settings.origin(f'{name}_file')})", path)
        elif text is not None:
            given[type_] = text
    return given


def _read_key(name: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_KEY_FILE + 1).decode("ascii").strip()
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        text = ""
    if not text or len(text) > _MAX_KEY_FILE:
        raise ConfigurationError(f"{name} holds no key.", hint="Write the key into it, as text, and nothing else.")
    return text


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_loopback(peer: str) -> bool:
    address = _address(peer)
    return peer == "unix" or (address is not None and address.is_loopback)


def _is_local_host(host: str) -> bool:
    return host.lower() == "localhost" or _is_loopback(host.strip("[]"))


def _authority(url: str) -> tuple[str, int | None]:
    """Host name in lower case and port of a URL; an empty name if it has none."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return "", None
    return (parts.hostname or "").rstrip("."), port
