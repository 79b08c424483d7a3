"""Base classes of the oldest handlers."""
