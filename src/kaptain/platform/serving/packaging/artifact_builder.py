"""The writer of ``config.properties``."""

from mariner.sdk import TorchServingArtifactBuilder

__all__ = ["TorchServingArtifactBuilder"]
