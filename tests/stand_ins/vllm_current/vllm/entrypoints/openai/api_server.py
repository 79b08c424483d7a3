from typing import Any

from vllm_parts import fill


async def init_app_state(engine_client: Any, state: Any, args: Any, supported_tasks: Any = None) -> None:
    fill(engine_client, state, args)
    state.told = {"supported_tasks": supported_tasks}
