"""HTTP adapters: they translate between connections and the use cases, nothing else."""
