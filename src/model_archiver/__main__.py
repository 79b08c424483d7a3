"""``python -m model_archiver``."""

from __future__ import annotations

from model_archiver import main

main()
