"""What a handler gets for what a client sends: items 21-26, 28, 42 and 43 of the handler contract.

The half of item 26 about routes that always hand query parameters on (``/invocations``, ``/models/{name}/invoke``) is
not here: those routes do not exist yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from handler_api import Model, Scene, serving

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

# Each value as its type and, if JSON has no such value, its bytes as Latin-1 text.
SHAPES = """
def shape(value):
    return [type(value).__name__, value.decode("latin-1") if isinstance(value, bytearray) else value]

def handle(data, context):
    return data and [{name: shape(value) for name, value in row.items()} for row in data]
"""

DESCRIBES = """
def handle(data, context):
    if data is None:
        return None
    return [{"data": data, "describe": context.get_request_header(0, "describe"), "type": type(data[0]).__name__}]
"""

SIZES = """
def handle(data, context):
    return data and [[len(data), context.system_properties["batch_size"]] for _ in data]
"""

MODELS = {
    "shapes": Model(SHAPES),
    "describes": Model(DESCRIBES),
    "sizes": Model(SIZES, "batchSize: 8\nbatchingPolicy: fill\nmaxBatchDelay: 400\n"),
}
PLAIN = {"shapes": Model(SHAPES)}

PNG = b"\x89PNG\r\n\x1a\n\x00\xff"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with serving(tmp_path_factory.mktemp("data"), MODELS) as scene:
        yield scene


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undecoded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    settings = {"decode_input_request": False, "pass_query_parameters": True}
    async with serving(tmp_path_factory.mktemp("undecoded"), PLAIN, **settings) as scene:
        yield scene


async def body(
    scene: Scene, content: bytes | str, content_type: str | None, path: str = "/predictions/shapes"
) -> object:
    headers = {} if content_type is None else {"Content_Type": content_type}
    answer = await scene.ask("POST", path, content, **headers)
    assert answer.status == 200, answer
    return answer.json


def part(name: str, value: str, *, filename: str | None = None, content_type: str | None = None) -> str:
    disposition = f'form-data; name="{name}"' + ("" if filename is None else f'; filename="{filename}"')
    kind = "" if content_type is None else f"Content-Type: {content_type}\r\n"
    return f"--x\r\nContent-Disposition: {disposition}\r\n{kind}\r\n{value}\r\n"


@pytest.mark.parametrize("content_type", [None, "image/png", "application/octet-stream", "application/x-npy"])
async def test_21_an_image_is_a_bytearray(scene: Scene, content_type: str | None) -> None:
    assert await body(scene, PNG, content_type) == {"body": ["bytearray", PNG.decode("latin-1")]}


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH"])
async def test_21_no_body_is_an_empty_bytearray_whatever_the_method(scene: Scene, method: str) -> None:
    assert (await scene.ask(method, "/predictions/shapes")).json == {"body": ["bytearray", ""]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"a": [1, null]}', ["dict", {"a": [1, None]}]),
        ("[1, 2]", ["list", [1, 2]]),
        ('"text"', ["str", "text"]),
        ("1.5", ["float", 1.5]),
        ("7", ["int", 7]),
        ("true", ["bool", True]),
        ("null", ["NoneType", None]),
        ("{broken", ["bytearray", "{broken"]),
    ],
)
@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "application/json;", "Application/JSON"]
)
async def test_22_json_is_decoded(scene: Scene, content: str, expected: object, content_type: str) -> None:
    assert await body(scene, content, content_type) == {"body": expected}


async def test_22_a_type_that_only_ends_in_json_is_not_decoded(scene: Scene) -> None:
    assert await body(scene, "{}", "application/vnd.api+json") == {"body": ["bytearray", "{}"]}


@pytest.mark.parametrize("content_type", ["text/plain", "text/csv; charset=latin-1", "Text/HTML"])
async def test_23_text_is_decoded_as_utf_8(scene: Scene, content_type: str) -> None:
    assert await body(scene, "größe", content_type) == {"body": ["str", "größe"]}
    assert await body(scene, b"\xff\xfe", content_type) == {"body": ["bytearray", "\xff\xfe"]}


async def test_24_a_file_of_a_form_is_decoded_by_its_own_type_and_a_field_never_is(scene: Scene) -> None:
    form = [
        part("image", "PNG", filename="cat.png", content_type="image/png"),
        part("bare", "bytes", filename="cat"),
        part("text", "hello", filename="a.txt", content_type="text/plain"),
        part("json", "[1]", filename="a.json", content_type="application/json"),
        part("field", "[1]"),
        part("typed", "[1]", content_type="application/json"),
        part("twice", "first"),
        part("twice", "last"),
    ]
    assert await body(scene, f"{''.join(form)}--x--\r\n", "multipart/form-data; boundary=x") == {
        "image": ["bytearray", "PNG"],
        "bare": ["bytearray", "bytes"],
        "text": ["str", "hello"],
        "json": ["list", [1]],
        "field": ["bytearray", "[1]"],
        "typed": ["bytearray", "[1]"],
        "twice": ["bytearray", "last"],
    }


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("data=a+b%21&n=7", {"data": ["bytearray", "a b!"], "n": ["bytearray", "7"]}),
        ("a=1&a=2", {"a": ["bytearray", "2"]}),
        ('{"a": 1}', {}),  # what curl -d sends when nobody names the type
    ],
)
async def test_25_fields_of_a_url_encoded_form_are_bytearrays(scene: Scene, form: str, expected: object) -> None:
    assert await body(scene, form, "application/x-www-form-urlencoded") == expected


@pytest.mark.parametrize("route", ["predictions", "explanations"])
async def test_26_query_parameters_do_not_reach_the_handler(scene: Scene, route: str) -> None:
    assert await body(scene, "x", "text/plain", f"/{route}/shapes?data=1") == {"body": ["str", "x"]}


async def test_26_query_parameters_are_bytearrays_where_they_are_passed_on(undecoded: Scene) -> None:
    assert await body(undecoded, "x", None, "/predictions/shapes?data=1&body=2") == {
        "data": ["bytearray", "1"],
        "body": ["bytearray", "x"],
    }


@pytest.mark.parametrize("content_type", [None, "application/json", "text/plain"])
async def test_28_without_decoding_a_body_is_a_bytearray(undecoded: Scene, content_type: str | None) -> None:
    assert await body(undecoded, "[1]", content_type) == {"body": ["bytearray", "[1]"]}


async def test_28_without_decoding_a_file_of_a_form_is_a_bytearray(undecoded: Scene) -> None:
    form = part("json", "[1]", filename="a.json", content_type="application/json")
    assert await body(undecoded, f"{form}--x--\r\n", "multipart/form-data; boundary=x") == {
        "json": ["bytearray", "[1]"]
    }


async def test_42_a_batch_that_does_not_fill_is_delivered_after_its_delay(scene: Scene) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    answers = await asyncio.gather(*(scene.ask("POST", "/predictions/sizes", "x") for _ in range(3)))
    assert [answer.json for answer in answers] == [[3, 8]] * 3
    assert loop.time() - began >= 0.4


async def test_43_a_handler_describes_itself(scene: Scene) -> None:
    (description,) = (await scene.manage("GET", "/models/describes?customized=true")).json
    assert description["customizedMetadata"] == {"data": [{}], "describe": "True", "type": "dict"}
    (description,) = (await scene.manage("GET", "/models/describes")).json
    assert "customizedMetadata" not in description
