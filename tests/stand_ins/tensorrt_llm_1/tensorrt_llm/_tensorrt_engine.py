import tensorrt_llm


class LLM(tensorrt_llm.LLM):
    kind = "loads engines"
