"""A load generator for models that are served over HTTP: the command ``mariner bench``.

Knows HTTP and clocks, but no server of ours: it measures any. ``target`` is what to send, ``load`` sends it,
``summary`` makes figures of what came back, ``report`` shows them, ``command`` puts them together.
"""
