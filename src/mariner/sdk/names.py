"""From the id of a model to a name that archives, paths and Kubernetes accept."""

from __future__ import annotations

import hashlib
import re

from mariner.errors import InvalidModel

__all__ = ["sanitize_string"]

MAX_LENGTH = 63  # of a DNS label, RFC 1123
_DIGEST = 8  # hexadecimal digits that tell shortened names apart


def sanitize_string(text: str) -> str:
    """A legal name for an id such as ``dev/mnist``: ``dev-mnist``.

    Lower-case ASCII letters and digits stay; everything between them becomes one hyphen. The same id has the same name
    always. Different ids may share one (``dev/mnist``, ``dev-mnist`` and ``Dev Mnist``): a server has room for one of
    them. Ids of more than 63 characters are cut and end in a digest, so that those do not.

    Raises:
        InvalidModel: the text has no letter and no digit.
    """
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not name:
        raise InvalidModel(
            f"id: {text!r} makes no name.", hint="Use at least one ASCII letter or digit, as in 'dev/mnist'."
        )
    if len(name) > MAX_LENGTH:
        digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGEST]
        name = f"{name[: MAX_LENGTH - _DIGEST - 1].rstrip('-')}-{digest}"
    return name
