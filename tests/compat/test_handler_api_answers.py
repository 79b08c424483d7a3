"""What becomes of what a handler returns: items 29, 30 and 34-36 of the handler contract."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from handler_api import PYTHON, TRIO, Model, Scene, serving

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

MODELS = {
    "python": Model(PYTHON),
    "trio": Model(TRIO, "batchSize: 3\nbatchingPolicy: fill\nmaxBatchDelay: 600000\n"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with serving(tmp_path_factory.mktemp("answers"), MODELS) as scene:
        yield scene


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("b'\\x00\\xff'", b"\x00\xff"),
        ("bytearray(b'ab')", b"ab"),
        ("'größe'", "größe".encode()),
        ("type('Text', (str,), {})('sub')", b"sub"),
        ("{'a': 'ä'}", b'{\n  "a": "\\u00e4"\n}'),
        ("{1: None}", b'{\n  "1": null\n}'),
        ("None", b"null"),
        ("True", b"true"),
        ("7", b"7"),
        ("1.5", b"1.5"),
        pytest.param("__import__('numpy').float64(1.5)", b"1.5", marks=pytest.mark.torch),  # comes with torch
        ("float('nan')", b"NaN"),
        ("[[1, 2], []]", b"[\n  [\n    1,\n    2\n  ],\n  []\n]"),
        ("(1, 'a')", b'[\n  1,\n  "a"\n]'),
    ],
)
async def test_29_an_item_becomes_the_body_and_has_no_content_type(scene: Scene, item: str, expected: bytes) -> None:
    answer = await scene.run(f"answer = [{item}]")
    assert (answer.status, answer.body) == (200, expected)
    assert "content-type" not in answer.headers


@pytest.mark.torch
async def test_29_a_tensor_becomes_what_torch_save_writes(scene: Scene) -> None:
    torch = pytest.importorskip("torch")
    answer = await scene.run("import torch; answer = [torch.ones(2)]")
    assert torch.load(io.BytesIO(answer.body)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "item",
    [
        pytest.param("__import__('numpy').ones(2)", marks=pytest.mark.torch),
        pytest.param("__import__('numpy').float32(1)", marks=pytest.mark.torch),
        "[b'inside']",
        "{'a': {1, 2}}",
        "{1, 2}",
        "memoryview(b'x')",
        "object()",
    ],
)
async def test_29_an_item_of_another_type_is_an_error(scene: Scene, item: str) -> None:
    answer = await scene.run(f"answer = [{item}]")
    assert (answer.status, answer.json["message"]) == (503, "Unsupported model output data type.")


async def test_29_an_item_that_contains_itself_is_an_error_and_the_worker_goes_on(scene: Scene) -> None:
    pid = (await scene.run("import os; answer = [str(os.getpid())]")).body
    answer = await scene.run("circle = []; circle.append(circle); answer = [circle]")
    assert (answer.status, answer.json["message"]) == (503, "Unsupported model output data type.")
    assert (await scene.run("import os; answer = [str(os.getpid())]")).body == pid


@pytest.mark.parametrize("answer", ["[]", "['a', 'b']"])
async def test_30_another_number_of_items_is_an_error(scene: Scene, answer: str) -> None:
    got = await scene.run(f"answer = {answer}")
    assert (got.status, got.json["message"]) == (503, "number of batch response mismatched")


@pytest.mark.parametrize(
    "answer",
    [
        "None",
        "('a',)",
        "'a'",
        "{'a': 1}",
        "iter(['a'])",
        pytest.param("__import__('numpy').ones(1)", marks=pytest.mark.torch),
    ],
)
async def test_30_what_is_no_list_is_an_error(scene: Scene, answer: str) -> None:
    got = await scene.run(f"answer = {answer}")
    assert (got.status, got.json["message"]) == (503, "Invalid model predict output")


async def test_30_a_subclass_of_list_is_a_list(scene: Scene) -> None:
    assert (await scene.run("answer = type('Answers', (list,), {})(['a'])")).body == b"a"


async def test_34_a_request_of_a_batch_fails_alone_with_a_phrase_of_its_own(scene: Scene) -> None:
    code = "context.set_response_status(400, 'No Such Cat', index); answer = 'which cat?'"
    first, second, third = await scene.run_three("answer = 'a'", code, "answer = {'b': 1}")
    assert [(answer.status, answer.body) for answer in (first, second, third)] == [
        (200, b"a"),
        (400, b"which cat?"),
        (200, b'{\n  "b": 1\n}'),
    ]
    assert [answer.phrase for answer in (first, second, third)] == ["OK", "No Such Cat", "OK"]


async def test_34_a_status_without_a_phrase_has_the_usual_one(scene: Scene) -> None:
    assert (await scene.run("context.set_response_status(404); answer = ['gone']")).phrase == "Not Found"


async def test_35_headers_content_type_and_status_are_those_of_the_right_request(scene: Scene) -> None:
    code = (
        "context.set_response_content_type(index, f'image/{index}'); context.set_response_header(index, 'X-Index', "
        "'before'); context.set_response_header(index, 'X-Index', str(index)); "
        "context.set_response_status(201 + index, idx=index); answer = str(index)"
    )
    for answer in await scene.run_three(code, code, "answer = 'plain'"):
        if answer.body == b"plain":
            assert answer.status == 200
            assert not {"x-index", "content-type"} & set(answer.headers)
            continue
        index = answer.body.decode()
        assert answer.status == 201 + int(index)
        assert (answer.headers["x-index"], answer.headers["content-type"]) == (index, f"image/{index}")


async def test_35_all_statuses_of_a_batch_may_be_set_at_once(scene: Scene) -> None:
    answers = await scene.run_three(*["context.set_all_response_status(202, 'Later'); answer = 'x'"] * 3)
    assert [(answer.status, answer.phrase) for answer in answers] == [(202, "Later")] * 3


@pytest.mark.parametrize(
    ("code", "status", "phrase", "header"),
    [
        ("context.set_response_header(0, 'X-A', 3)", 200, "OK", "3"),
        ("context.set_response_header(0, 'X-A', None)", 200, "OK", "None"),
        ("context.set_response_header(0, 'X-A', 'ü')", 200, "OK", "ü".encode().decode("latin-1")),
        ("context.set_response_status('201', 'Größe')", 201, "Größe", None),
        ("context.set_response_status(200, '模型')", 200, "  ", None),
        ("context.set_response_status(200, 'a\\r\\nX: y')", 200, "a X: y", None),
        ("context.set_response_status('many')", 503, "Service Unavailable", None),
        ("context.set_response_header(0, 'X-A', 'a\\r\\nX: y')", 503, "Service Unavailable", None),
    ],
)
async def test_36_odd_headers_and_statuses_are_coerced_or_an_error_and_the_worker_goes_on(
    scene: Scene, code: str, status: int, phrase: str, header: str | None
) -> None:
    pid = (await scene.run("import os; answer = [str(os.getpid())]")).body
    answer = await scene.run(f"{code}; answer = ['x']")
    assert (answer.status, answer.phrase, answer.headers.get("x-a")) == (status, phrase, header)
    assert "x" not in answer.headers
    assert (await scene.run("import os; answer = [str(os.getpid())]")).body == pid
