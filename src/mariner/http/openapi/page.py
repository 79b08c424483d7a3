"""The page for people: one file that ships with the package, and the policy that lets nothing else in."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from importlib.resources import files

from mariner.http.exchange import HeaderPairs
from mariner.http.messages import Response

__all__ = ["docs_page"]


def docs_page() -> Response:
    """The page, which reads ``openapi.json`` beside it."""
    html = files("mariner.http").joinpath("static/docs.html").read_text(encoding="utf-8")
    policy = (
        "default-src 'none'; "
        f"script-src {_digest(html, 'script')}; style-src {_digest(html, 'style')}; "
        "connect-src 'self'; img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers: HeaderPairs = (
        ("content-type", "text/html; charset=utf-8"),
        ("content-security-policy", policy),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
    )
    return Response(200, html.encode(), headers)


def _digest(html: str, tag: str) -> str:
    """What lets the one script, or style, of the page run, and no other."""
    _, _, rest = html.partition(f"<{tag}>")
    content, _, _ = rest.partition(f"</{tag}>")
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"
