"""Old import paths of what ships for tests."""
