from vllm_parts import ArgumentParser as FlexibleArgumentParser

__all__ = ["FlexibleArgumentParser"]
