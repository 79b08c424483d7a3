from vllm_parts import AsyncEngineArgs, AsyncLLMEngine

__all__ = ["AsyncEngineArgs", "AsyncLLMEngine"]
