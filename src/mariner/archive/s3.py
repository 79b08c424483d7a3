"""Signed requests to S3 (AWS Signature Version 4), for buckets whose objects are encrypted with a key of AWS KMS.

Pure but for the environment it is given: nothing is fetched here.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import SplitResult, parse_qsl, quote, unquote

from mariner.errors import BadRequest

__all__ = ["sign_get"]

_NEEDED = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
_ALGORITHM = "AWS4-HMAC-SHA256"
_NO_BODY = hashlib.sha256(b"").hexdigest()
_UNRESERVED = "-._~"  # beside letters and digits


def sign_get(url: SplitResult, environ: Mapping[str, str], now: datetime | None = None) -> dict[str, str]:
    """The headers that make a GET of an object a signed one.

    Args:
        url: of the object.
        environ: has the credentials, ``AWS_SESSION_TOKEN`` included where they are temporary.
        now: the time to sign with.

    Raises:
        BadRequest: the environment lacks credentials, or the request would not be encrypted.
    """
    missing = [name for name in _NEEDED if not environ.get(name)]
    if missing:
        raise BadRequest(
            f"s3_sse_kms needs {', '.join(missing)} in the environment of the server.",
            hint="Set the variables and restart the server, or use a presigned URL without s3_sse_kms.",
        )
    if url.scheme != "https":
        raise BadRequest("s3_sse_kms signs https URLs only: S3 refuses to decrypt over plain HTTP.")
    key, secret, region = (environ[name] for name in _NEEDED)
    time = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    headers = {"x-amz-content-sha256": _NO_BODY, "x-amz-date": time}
    if token := environ.get("AWS_SESSION_TOKEN"):
        headers["x-amz-security-token"] = token
    host = url.hostname or ""
    signed = {"host": host if url.port in {None, 443} else f"{host}:{url.port}", **headers}
    names = ";".join(sorted(signed))
    request = "\n".join(
        [
            "GET",
            quote(unquote(url.path or "/"), safe="/" + _UNRESERVED),
            _canonical_query(url.query),
            *(f"{name}:{signed[name]}" for name in sorted(signed)),
            "",
            names,
            _NO_BODY,
        ]
    )
    scope = f"{time[:8]}/{region}/s3/aws4_request"
    text = "\n".join([_ALGORITHM, time, scope, hashlib.sha256(request.encode()).hexdigest()])
    signing_key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        signing_key = hmac.digest(signing_key, part.encode(), "sha256")
    signature = hmac.digest(signing_key, text.encode(), "sha256").hex()
    headers["Authorization"] = f"{_ALGORITHM} Credential={key}/{scope},SignedHeaders={names},Signature={signature}"
    return headers


def _canonical_query(query: str) -> str:
    pairs = parse_qsl(query, keep_blank_values=True)
    encoded = sorted((quote(name, safe=_UNRESERVED), quote(value, safe=_UNRESERVED)) for name, value in pairs)
    return "&".join(f"{name}={value}" for name, value in encoded)
