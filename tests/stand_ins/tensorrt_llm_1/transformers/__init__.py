from typing import Any


class AutoTokenizer:
    eos_token_id = 2
    pad_token_id = None

    def __init__(self, directory: str, options: dict[str, Any]) -> None:
        self.directory, self.options = directory, options

    @classmethod
    def from_pretrained(cls, directory: str, **options: Any) -> "AutoTokenizer":
        return cls(directory, options)
