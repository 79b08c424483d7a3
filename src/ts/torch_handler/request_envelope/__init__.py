"""Request envelopes: what stands between the bodies of requests and a handler. One module per envelope, by its name."""
