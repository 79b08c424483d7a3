"""Archives: what is in them, reading them safely, writing them. Standard library and YAML only, no server."""
