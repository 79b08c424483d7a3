# SPDX-License-Identifier: Apache-2.0
"""Mariner, a model server that runs TorchServe archives and handlers unchanged."""

__version__ = "0.1.0"

__all__ = ["__version__"]
