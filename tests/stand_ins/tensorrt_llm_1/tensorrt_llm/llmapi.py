class KvCacheConfig:
    def __init__(self, free_gpu_memory_fraction: float = 0.9) -> None:
        self.free_gpu_memory_fraction = free_gpu_memory_fraction
