"""The version handlers and scripts see: the TorchServe release we are compatible with, ours as local version."""

__version__ = "0.12.0+mariner.0.1.0"
