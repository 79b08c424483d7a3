"""What a handler knows besides its data: items 11-20 of the handler contract."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from handler_api import PYTHON, TRIO, Model, Scene, serving

import ts

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

PROPERTIES = ["model_dir", "gpu_id", "batch_size", "server_name", "server_version", "limit_max_image_pixels"]

LOGS = """
import logging, sys

logger = logging.getLogger(__name__)

class Logs:
    def initialize(self, context):
        logging.basicConfig(level=logging.DEBUG, format="changed: %(message)s")
        logger.info("properties: %s", context.system_properties)
        logger.debug("a word for developers")
        print("printed while loading")
        sys.stderr.write("complained while loading\\n")

    def handle(self, data, context):
        return ["" for _ in data]
"""

HEADERS = "def handle(data, context):\n    return data and [context.get_all_request_header(0)]\n"

KEEPS = """
class Keeps:
    def initialize(self, context):
        self.context, self.cache = context, {"batches": 0}
        context.cache = self.cache

    def handle(self, data, context):
        context.cache["batches"] += 1
        return [[context is self.context, context.cache is self.cache, context.cache["batches"]] for _ in data]
"""

CONFIG = "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 4\ndeviceType: cpu\nhandler:\n  labels: [cat, dog]\n"
FILL = "batchSize: 3\nbatchingPolicy: fill\nmaxBatchDelay: 600000\n"

MODELS = {
    "python": Model(PYTHON, CONFIG, files={"beside.py": "VALUE = 42\n", "version.py": "VALUE = 'of the user'\n"}),
    "bare": Model(PYTHON),
    "empty": Model(PYTHON, "# nothing\n"),
    "logs": Model(LOGS),
    "headers": Model(HEADERS),
    "keeps": Model(KEEPS),
    "trio": Model(TRIO, FILL),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OF_THE_SERVER", "inherited")
        patch.setenv("A_SECRET_OF_THE_SERVER", "kept")
        blocked = re.compile(".*SECRET.*")
        async with serving(tmp_path_factory.mktemp("context"), MODELS, blacklist_env_vars=blocked) as scene:
            yield scene


# -- the process -----------------------------------------------------------------------------------------------------


async def test_11_the_current_directory_is_that_of_the_model(scene: Scene) -> None:
    answer = await scene.run("import os; answer = [[os.getcwd(), context.system_properties['model_dir']]]")
    assert answer.json == [str(scene.store / "python")] * 2


async def test_11_modules_beside_the_handler_are_imported(scene: Scene) -> None:
    answer = await scene.run("import beside, version; answer = [[beside.VALUE, version.VALUE]]")
    assert answer.json == [42, "of the user"]


async def test_11_modules_of_the_worker_are_no_modules_of_the_handler(scene: Scene) -> None:
    names = sorted(
        path.stem for path in Path(ts.__file__).parent.iterdir() if path.stem not in {"__pycache__", "version"}
    )
    answer = await scene.run(
        f"import importlib.util\nanswer = [[name for name in {names} if importlib.util.find_spec(name)]]"
    )
    assert {"context", "metrics", "service"} <= set(names)
    assert answer.json == []


async def test_the_environment_is_that_of_the_server_and_what_handlers_look_for(scene: Scene) -> None:
    names = [
        "OF_THE_SERVER",
        "A_SECRET_OF_THE_SERVER",
        "TS_DECODE_INPUT_REQUEST",
        "TS_IPEX_ENABLE",
        "TS_IPEX_GPU_ENABLE",
    ]
    answer = await scene.run(f"import os; answer = [[os.environ.get(name) for name in {names}]]")
    assert answer.json == ["inherited", None, "true", "false", "false"]


async def test_a_program_that_a_handler_starts_finds_the_modules_of_the_model(scene: Scene) -> None:
    code = "import subprocess, sys; words = [sys.executable, '-c', 'import beside; print(beside.VALUE)']"
    answer = await scene.run(f"{code}; answer = [subprocess.check_output(words, cwd='/')]")
    assert answer.body == b"42\n"


# -- what stays the same ---------------------------------------------------------------------------------------------


async def test_12_the_system_properties_are_six_in_order(scene: Scene) -> None:
    answer = await scene.run("p = context.system_properties; answer = [[type(p) is dict, list(p.items())]]")
    values = [str(scene.store / "python"), None, 4, "MMS", ts.__version__, True]
    assert answer.json == [True, [list(pair) for pair in zip(PROPERTIES, values, strict=True)]]


async def test_12_what_a_handler_logs_and_prints_reaches_the_log(scene: Scene) -> None:
    line = await scene.log.wait_for("properties:")
    assert line.level == "INFO"
    assert line.text.startswith("properties: {'model_dir': ")
    assert "'server_name': 'MMS'" in line.text
    assert (await scene.log.wait_for("printed while loading")) == ("INFO", "printed while loading")
    assert (await scene.log.wait_for("complained while loading")) == ("WARNING", "complained while loading")
    assert scene.log.count("a word for developers") == 0


@pytest.mark.parametrize("model", ["python", "bare"])
async def test_13_the_manifest_is_that_of_the_archive(scene: Scene, model: str) -> None:
    manifest = json.loads((scene.store / model / "MAR-INF" / "MANIFEST.json").read_bytes())
    answer = await scene.run("answer = [context.manifest]", model)
    assert answer.json == manifest
    assert ("configFile" in answer.json["model"]) == (model == "python")
    assert not {"serializedFile", "modelFile", "extensions", "requirementsFile"} & set(answer.json["model"])


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (
            "python",
            {
                "minWorkers": 1,
                "maxWorkers": 1,
                "batchSize": 4,
                "deviceType": "cpu",
                "handler": {"labels": ["cat", "dog"]},
            },
        ),
        ("bare", {}),
        ("empty", {}),
    ],
)
async def test_14_the_model_configuration_is_the_whole_file(scene: Scene, model: str, config: object) -> None:
    assert (await scene.run("answer = [context.model_yaml_config]", model)).json == config


async def test_14_the_name_is_the_one_it_is_registered_under(scene: Scene) -> None:
    answer = await scene.register("renamed", Model(PYTHON), "&model_name=another")
    assert answer.status == 200
    answer = await scene.run("answer = [[context.model_name, context.manifest['model']['modelName']]]", "another")
    assert answer.json == ["another", "renamed"]


async def test_15_what_initialize_puts_on_the_context_stays(scene: Scene) -> None:
    for batches in (1, 2):
        assert (await scene.ask("POST", "/predictions/keeps", "x")).json == [True, True, batches]


# -- what belongs to a request ---------------------------------------------------------------------------------------


async def test_16_request_ids_are_in_order_and_those_of_the_answers(scene: Scene) -> None:
    code = "answer = [list(context.request_ids.items()), context.get_request_id(index), context.get_request_id(3)]"
    answers = await scene.run_three(code, code, code)
    (table,) = {json.dumps(answer.json[0]) for answer in answers}
    indexes, ids = zip(*json.loads(table), strict=True)
    assert indexes == (0, 1, 2)
    assert len(set(ids)) == 3
    for answer in answers:
        assert answer.json[1:] == [answer.headers["x-request-id"], None]
    assert {answer.json[1] for answer in answers} == set(ids)


async def test_17_the_request_processor_has_the_headers_in_the_spelling_of_the_client(scene: Scene) -> None:
    code = "answer = [context.request_processor[0].get_request_properties()]"
    answer = await scene.run(code, X_oddly_SPELLED="yes")
    assert answer.json["X-oddly-SPELLED"] == "yes"
    assert answer.json["Content-Type"] == "text/plain"
    code = "answer = [context.request_processor[0].get_request_property('Content-Type')]"
    assert (await scene.run(code)).body == b"text/plain"


async def test_17_a_reported_status_is_that_of_its_answer(scene: Scene) -> None:
    code = "context.request_processor[index].report_status(400, 'x'); answer = 'bad'"
    first, second, third = await scene.run_three("answer = 'a'", code, "answer = 'c'")
    assert [(answer.status, answer.body) for answer in (first, second, third)] == [
        (200, b"a"),
        (400, b"bad"),
        (200, b"c"),
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Accept", "image/*"),
        ("accept", "image/*"),
        ("X-Unknown", None),
        ("body", {"content-type": "text/plain"}),
    ],
)
async def test_18_a_header_is_found_by_name(scene: Scene, key: str, value: object) -> None:
    answer = await scene.run(f"answer = [[context.get_request_header(0, {key!r})]]", Accept="image/*")
    assert answer.json == [value]


async def test_18_a_header_wins_over_a_parameter_of_its_name_and_the_last_of_equal_headers_counts(scene: Scene) -> None:
    part = '--x\r\nContent-Disposition: form-data; name="{}"\r\n\r\nvalue\r\n'
    body = f"{part.format('data')}{part.format('Host')}--x--\r\n"
    headers = {"Content_Type": "multipart/form-data; boundary=x", "X-Twice": "1", "X_Twice": "2"}
    answer = await scene.ask("POST", "/predictions/headers", body, **headers)
    assert [answer.json[name] for name in ("data", "Host", "X-Twice")] == [{"content-type": ""}, "localhost", "2"]
    assert next(iter(answer.json)) == "data"  # parameters come first


@pytest.mark.parametrize(
    ("path", "url_path"),
    [
        ("/predictions/python/1.0/v1/chat/completion", "v1/chat/completion"),
        ("/predictions/python/1.0", ""),
        ("/predictions/python", ""),
        ("/explanations/python/1.0/v1", "v1"),
    ],
)
async def test_19_the_rest_of_the_path_is_a_header(scene: Scene, path: str, url_path: str) -> None:
    code = "answer = [[context.get_request_header(0, 'url_path')]]"
    assert (await scene.ask("POST", path, code, Content_Type="text/plain")).json == [url_path]


@pytest.mark.parametrize(("route", "explain"), [("predictions", "False"), ("explanations", "True")])
@pytest.mark.parametrize("name", ["explain", "Explain"])
async def test_20_the_route_says_whether_to_explain_whatever_the_client_claims(
    scene: Scene, route: str, explain: str, name: str
) -> None:
    code = "answer = [[v for k, v in context.get_all_request_header(0).items() if k.lower() == 'explain']]"
    lie = "True" if explain == "False" else "False"
    answer = await scene.ask("POST", f"/{route}/python", code, Content_Type="text/plain", **{name: lie})
    assert answer.json == [explain]


async def test_the_process_stays_the_same(scene: Scene) -> None:
    pids = {(await scene.run("import os; answer = [str(os.getpid())]")).body for _ in range(3)}
    assert len(pids) == 1
    assert int(pids.pop()) != os.getpid()
