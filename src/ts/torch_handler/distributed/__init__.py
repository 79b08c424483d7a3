"""Base classes of handlers whose model spans several devices."""
