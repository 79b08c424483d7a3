"""Preprocessing outside PyTorch."""
