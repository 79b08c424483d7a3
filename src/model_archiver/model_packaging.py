"""Old import path."""

from __future__ import annotations

from model_archiver import ModelArchiverConfig, ModelArchiverError, generate_model_archive

__all__ = ["ModelArchiverConfig", "ModelArchiverError", "generate_model_archive"]

if __name__ == "__main__":
    generate_model_archive()
