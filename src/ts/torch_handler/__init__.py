"""The handlers that come with the server, and the base class of most others. Needs torch."""
