"""Old import path; the code is in :mod:`ts.testing`."""

from __future__ import annotations

from ts.testing import MockContext

__all__ = ["MockContext"]
