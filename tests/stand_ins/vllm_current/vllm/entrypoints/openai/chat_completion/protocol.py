from vllm_parts import ChatCompletionRequest

__all__ = ["ChatCompletionRequest"]
