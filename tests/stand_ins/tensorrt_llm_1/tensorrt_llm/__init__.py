"""An engine that repeats the prompt backwards, word by word."""

from collections.abc import AsyncIterator, Generator
from types import SimpleNamespace
from typing import Any


class SamplingParams:
    def __init__(self, *, end_id: int, pad_id: int, max_tokens: int = 32, temperature: float = 1.0) -> None:
        if temperature < 0:
            raise ValueError("temperature must not be negative")
        self.max_tokens = max_tokens


class Output:
    """The answer to a request: to be waited for as a whole, or step by step."""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def __await__(self) -> Generator[Any, None, Any]:
        async def whole() -> Any:
            return _step(self.words)

        return whole().__await__()

    async def __aiter__(self) -> AsyncIterator[Any]:
        yield _step([])  # half of a character
        for count in range(1, len(self.words) + 1):
            yield _step(self.words[:count])


def _step(words: list[str]) -> Any:
    return SimpleNamespace(outputs=[SimpleNamespace(text=" ".join(words))])


class LLM:
    kind = "loads checkpoints"

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments

    def generate_async(self, prompt: str, *, sampling_params: SamplingParams, streaming: bool) -> Output:
        self.streaming = streaming
        return Output(prompt.split()[::-1][: sampling_params.max_tokens])
