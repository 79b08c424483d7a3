"""Metrics of handlers: what ``context.metrics`` is made of. Needs neither torch nor psutil."""
