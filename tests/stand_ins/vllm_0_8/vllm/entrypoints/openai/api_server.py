from typing import Any

from vllm_parts import fill


async def init_app_state(engine_client: Any, model_config: Any, state: Any, args: Any) -> None:
    fill(engine_client, state, args)
    state.told = {"model_config": model_config}
