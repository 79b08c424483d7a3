"""Models that span several devices: what their handlers call to build them."""
