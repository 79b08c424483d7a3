from vllm_parts import CompletionRequest

__all__ = ["CompletionRequest"]
