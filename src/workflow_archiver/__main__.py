"""``python -m workflow_archiver``."""

from __future__ import annotations

from workflow_archiver import main

main()
