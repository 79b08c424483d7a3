"""From a trained model to a running service, in Python."""

from mariner.errors import DeploymentError, InvalidModel
from mariner.sdk.deployment import Deployment, Sample
from mariner.sdk.model import Model, ModelFramework
from mariner.sdk.names import sanitize_string
from mariner.sdk.server_config import TorchServingArtifactBuilder

__all__ = [
    "Deployment",
    "DeploymentError",
    "InvalidModel",
    "Model",
    "ModelFramework",
    "Sample",
    "TorchServingArtifactBuilder",
    "sanitize_string",
]
