from typing import Any

import torch

from ts.torch_handler.base_handler import BaseHandler


class ThermometerHandler(BaseHandler):
    def preprocess(self, data: list[dict[str, Any]]) -> torch.Tensor:
        return torch.tensor([[row["body"]["celsius"]] for row in data], dtype=torch.float32)

    def postprocess(self, data: torch.Tensor) -> list[Any]:
        return [{"fahrenheit": round(value, 1)} for value in data.flatten().tolist()]
