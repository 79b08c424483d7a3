"""The tutorial that serves a sentiment model, followed from its first handler to its last: requirement by requirement.

===  ===============================================================================================================
C1   ``test_c1_…``
C2   ``test_c2_…``, with every file that the tutorial names
C3   ``test_c3_…``
C4   ``test_c4_…``; that ``--ncs`` leaves no snapshot cannot fail as long as none is ever written
C5   ``test_c5_…``
C6   ``test_c6_…``
C7   ``test_c7_…``
C8   ``test_c8_…``; that ``gpu_id`` is a number on a GPU: ``test_seed_custom_service.py``, B8
C9   ``test_c9_…``
C10  ``test_c10_…``
C11  ``docs/test_example_pages.py``, with ``transformers``
C12  on the CPU ``docs/test_example_pages.py``; a GPU is needed for the other half
C13  ``test_c13_…``; how retries back off: ``unit/mariner/test_lifecycle.py``
C14  ``test_c14_…``
C15  ``test_c15_…``
C16  ``test_c16_…``
C17  ``test_c17_c18_…``; with ``transformers`` ``docs/test_example_pages.py``
C18  ``test_c17_c18_…``
C19  ``test_c19_…``
C20  every request here is without a key
C21  ``test_c21_…``
===  ===============================================================================================================
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch
from test_serving import put_model

from mariner.errors import WorkerStartFailed
from mariner.model_settings import RegisterOptions
from mariner.testing import running_server
from terminal import Answer, Terminal

pytestmark = [pytest.mark.slow, pytest.mark.torch]

PACKAGE = """
torch-model-archiver \
--model-name BERTweetSentimentAnalysis \
--version 1.0 \
--model-file my_model/pytorch_model.bin \
--handler handler.py \
--extra-files "my_model/config.json,my_tokenizer/added_tokens.json,my_tokenizer/bpe.codes,\
my_tokenizer/special_tokens_map.json,my_tokenizer/tokenizer_config.json,my_tokenizer/vocab.txt,index_to_name.json" \
--export-path model_store
"""
START = "torchserve --start --model-store model_store --models my_model=BERTweetSentimentAnalysis.mar --ncs"
SAMPLE_INPUT = b'{\n    "input" : ["texts 1", "texts 2"]\n}\n'

# What the tutorial begins with: it only looks at what it gets.
SKELETON = """
import logging

import torch

from ts.torch_handler.base_handler import BaseHandler

logger = logging.getLogger(__name__)
logger.info("PyTorch version %s", torch.__version__)


class ModelHandler(BaseHandler):
    def initialize(self, context):
        self.manifest = context.manifest
        logger.info(f"Properties: {context.system_properties}")
        logger.info(f"Manifest: {self.manifest}")

    def preprocess(self, requests):
        logger.info(f"Request object: {requests}")
"""

# What it ends with; a bag of words is the model, so that no library has to be loaded.
COMPLETE = """
import json
import logging
import os

import torch

from ts.torch_handler.base_handler import BaseHandler

logger = logging.getLogger(__name__)


class ModelHandler(BaseHandler):
    def initialize(self, context):
        properties = context.system_properties
        self.manifest = context.manifest
        model_dir = properties.get("model_dir")
        self.device = torch.device(
            "cuda:" + str(properties.get("gpu_id"))
            if torch.cuda.is_available() and properties.get("gpu_id") is not None
            else "cpu"
        )
        model_path = os.path.join(model_dir, self.manifest["model"]["modelFile"])
        if not os.path.isfile(model_path):
            raise RuntimeError("Missing the model file")
        self.model = torch.load(model_path, map_location=self.device)
        with open(os.path.join(model_dir, "vocab.txt")) as file:
            self.words = file.read().split()
        with open(os.path.join(model_dir, "index_to_name.json")) as file:
            self.mapping = json.load(file)
        self.initialized = True

    def preprocess(self, requests):
        data = requests[0].get("body")
        if data is None:
            data = requests[0].get("data")
        texts = data.get("input")
        return torch.tensor([[text.split().count(word) for word in self.words] for text in texts], dtype=torch.float32)

    def inference(self, inputs):
        return torch.argmax(inputs.to(self.device) @ self.model["weight"], axis=1).tolist()

    def postprocess(self, outputs):
        predictions = [self.mapping[str(label)] for label in outputs]
        logger.info(f"PREDICTED LABELS: {predictions}")
        return [predictions]
"""
# The complete one in an archive whose model file got lost.
INCOMPLETE = """
class ModelHandler:
    def initialize(self, context):
        raise RuntimeError("Missing the model file")

    def handle(self, data, context):
        return data
"""
FILES = {
    "my_model/config.json": "{}",
    "my_tokenizer/added_tokens.json": "{}",
    "my_tokenizer/bpe.codes": "",
    "my_tokenizer/special_tokens_map.json": "{}",
    "my_tokenizer/tokenizer_config.json": "{}",
    "my_tokenizer/vocab.txt": "awful\ntrain\nlovely\n",
    "index_to_name.json": '{\n    "0" : "Negative",\n    "1" : "Neutral",\n    "2" : "Positive"\n}\n',
}


class Observed(NamedTuple):
    """What happened while the tutorial was followed."""

    entries: list[str]
    manifest: dict[str, Any]
    help: str
    started: str
    processes: list[str]
    health: Answer
    first_answer: Answer
    worker_states: list[str]
    gone: str
    first_log: str
    labels: Answer
    labels_of_a_part: Answer
    second_log: str


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    with Terminal(tmp_path_factory.mktemp("workdir")) as terminal:
        for name, text in FILES.items():
            path = terminal.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        torch.save({"weight": torch.eye(3)}, terminal.folder / "my_model" / "pytorch_model.bin")
        (terminal.folder / "handler.py").write_text(SKELETON)
        (terminal.folder / "config.properties").write_text(terminal.addresses)
        yield follow(terminal)


def follow(terminal: Terminal) -> Observed:
    terminal.run("mkdir model_store" + PACKAGE)
    with zipfile.ZipFile(terminal.folder / "model_store" / "BERTweetSentimentAnalysis.mar") as archive:
        entries, manifest = archive.namelist(), json.loads(archive.read("MAR-INF/MANIFEST.json"))
    help_text = terminal.run("torch-model-archiver -h")
    before = len(terminal.output)
    started = terminal.run(START)
    first_answer = post(terminal)  # waits until the worker is there
    (described,) = terminal.ask("GET", "/models/my_model", port="8081").json
    server = psutil.Process(int((terminal.folder / "tmp" / ".model_server.pid").read_text()))
    processes = [process.name() for process in [server, *server.children(recursive=True)]]
    health = terminal.ask("GET", "/ping")
    terminal.run("torchserve --stop")
    gone = terminal.run("curl -s http://localhost:8080/ping || echo gone")
    first_log = terminal.output[before:]
    (terminal.folder / "handler.py").write_text(COMPLETE)
    terminal.run(PACKAGE.rstrip() + " --force")
    before = len(terminal.output)
    terminal.run(START)
    labels = post(terminal, b'{"input": ["a train", "lovely lovely", "awful"]}')
    part = (
        b'--x\r\nContent-Disposition: form-data; name="data"; filename="sample_input.json"\r\n'
        b'Content-Type: application/json\r\n\r\n{"input": ["train"]}\r\n--x--\r\n'
    )
    labels_of_a_part = terminal.ask(
        "POST", "/predictions/my_model", part, Content_Type="multipart/form-data; boundary=x"
    )
    terminal.run("torchserve --stop")
    return Observed(
        entries=entries,
        manifest=manifest,
        help=help_text,
        started=started,
        processes=processes,
        health=health,
        first_answer=first_answer,
        worker_states=[worker["status"] for worker in described["workers"]],
        gone=gone,
        first_log=first_log,
        labels=labels,
        labels_of_a_part=labels_of_a_part,
        second_log=terminal.output[before:],
    )


def post(terminal: Terminal, body: bytes = SAMPLE_INPUT) -> Answer:
    return terminal.ask("POST", "/predictions/my_model", body, Content_Type="application/json")


def logged(log: str, name: str) -> Any:
    """The value that the handler logged after that name."""
    found = re.search(rf"{name}: (.*)", log)
    assert found, log
    return ast.literal_eval(found[1])


def test_c1_the_three_commands_are_there_and_no_java_runs(tutorial: Observed) -> None:
    commands = {script.name for script in metadata.distribution("mariner-serve").entry_points}
    assert commands >= {"torchserve", "torch-model-archiver", "torch-workflow-archiver"}
    assert tutorial.processes
    assert [name for name in tutorial.processes if "java" in name] == []


def test_c2_the_archive_is_flat_and_names_the_weights_as_its_model_file(tutorial: Observed) -> None:
    names = [name.rpartition("/")[2] for name in FILES]
    assert sorted(tutorial.entries) == sorted([*names, "pytorch_model.bin", "handler.py", "MAR-INF/MANIFEST.json"])
    assert tutorial.manifest["model"] == {
        "modelName": "BERTweetSentimentAnalysis",
        "handler": "handler.py",
        "modelFile": "pytorch_model.bin",
        "modelVersion": "1.0",
    }


def test_c3_the_archiver_describes_its_arguments(tutorial: Observed) -> None:
    for flag in ("--model-name", "--version", "--model-file", "--handler", "--extra-files", "--export-path"):
        assert flag in tutorial.help


def test_c4_start_returns_and_names_the_addresses(tutorial: Observed) -> None:
    for kind in ("Inference", "Management", "Metrics"):
        assert re.search(rf"{kind} API bind to: http://127\.0\.0\.1:\d+", tutorial.started)


def test_c5_stop_ends_the_server(tutorial: Observed) -> None:
    assert tutorial.gone == "gone\n"


def test_c6_a_handler_that_loads_nothing_becomes_ready(tutorial: Observed) -> None:
    assert tutorial.worker_states == ["READY"]


def test_c7_lines_of_the_handler_reach_the_log(tutorial: Observed) -> None:
    assert f"PyTorch version {torch.__version__}" in tutorial.first_log
    assert "Request object: " in tutorial.first_log


def test_c8_the_properties_have_their_six_keys_in_order(tutorial: Observed) -> None:
    properties = logged(tutorial.first_log, "Properties")
    assert list(properties) == [
        "model_dir",
        "gpu_id",
        "batch_size",
        "server_name",
        "server_version",
        "limit_max_image_pixels",
    ]
    assert re.search(r"/models/[0-9a-f]{32}$", properties.pop("model_dir"))
    assert properties.pop("server_version").startswith("0.12.0")
    assert properties == {"gpu_id": None, "batch_size": 1, "server_name": "MMS", "limit_max_image_pixels": True}


def test_c9_the_manifest_is_what_the_archiver_wrote(tutorial: Observed) -> None:
    manifest = logged(tutorial.first_log, "Manifest")
    assert list(manifest) == ["createdOn", "runtime", "model", "archiverVersion"]
    assert list(manifest["model"]) == ["modelName", "handler", "modelFile", "modelVersion"]
    assert re.fullmatch(r"\d\d/\d\d/\d{4} \d\d:\d\d:\d\d", manifest["createdOn"])
    assert manifest["runtime"] == "python"
    assert manifest == tutorial.manifest


def test_c10_the_model_file_lies_in_the_model_directory(tutorial: Observed) -> None:
    """Else the complete handler, which looks for it, would not have loaded."""
    assert tutorial.labels.status == 200
    assert "Missing the model file" not in tutorial.second_log


async def test_c13_a_missing_model_file_fails_the_registration(tmp_path: Path) -> None:
    put_model(tmp_path / "store", "my_model", INCOMPLETE)
    async with running_server(model_store=tmp_path / "store", temp_dir=tmp_path) as server:
        with pytest.raises(WorkerStartFailed) as failed:
            await server.models.register("my_model", RegisterOptions(initial_workers=1))
    assert "RuntimeError: Missing the model file" in (failed.value.hint or "")


def test_c14_the_json_body_reaches_the_handler_decoded(tutorial: Observed) -> None:
    assert logged(tutorial.first_log, "Request object") == [{"body": {"input": ["texts 1", "texts 2"]}}]


def test_c15_a_handler_that_cannot_predict_answers_503(tutorial: Observed) -> None:
    assert tutorial.first_answer.status == 503
    assert tutorial.first_answer.json["message"] == "Prediction failed"


def test_c16_a_json_file_of_a_form_is_decoded_under_its_name(tutorial: Observed) -> None:
    assert (tutorial.labels_of_a_part.status, tutorial.labels_of_a_part.json) == (200, ["Neutral"])


def test_c17_c18_a_list_of_texts_is_answered_with_a_list_of_labels(tutorial: Observed) -> None:
    assert (tutorial.labels.status, tutorial.labels.json) == (200, ["Neutral", "Positive", "Negative"])


def test_c19_ping_says_healthy(tutorial: Observed) -> None:
    assert (tutorial.health.status, tutorial.health.json) == (200, {"status": "Healthy"})


def test_c21_a_rebuilt_archive_counts_after_a_restart(tutorial: Observed) -> None:
    assert "PREDICTED LABELS: ['Neutral', 'Positive', 'Negative']" in tutorial.second_log
    assert "Properties: " not in tutorial.second_log
