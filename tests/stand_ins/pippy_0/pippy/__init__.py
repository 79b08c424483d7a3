from typing import Any


def split_into_equal_size(count: int) -> str:
    return f"{count} equal parts"


def all_compile(model: Any, **options: Any) -> tuple[Any, str]:
    def driver(values: Any) -> Any:
        return model(values)

    driver.options = options  # type: ignore[attr-defined]
    return driver, "stages"
