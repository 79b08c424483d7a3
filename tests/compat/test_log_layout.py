"""The log files of a server started by its command: where people look for what handlers print, and who asked for what.

Items 18, 48, 49 and 50 of the life-cycle checklist.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from test_serving import put_model

pytestmark = pytest.mark.slow

COMMANDS = Path(sys.executable).parent
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,\d{3}"

TALKS = """
import logging
import sys

logger = logging.getLogger(__name__)

def handle(data, context):
    if data is None:
        print("printed at load")
        return None
    logger.info("seen: %s", data)
    context.metrics.add_counter("WordsSeen", 3)
    print("careful", file=sys.stderr)
    if data[0].get("body") == "bad":
        raise ValueError("no such word: bad")
    return ["fine"] * len(data)
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directories of log files after a good and a bad request, the server being gone."""
    place = tmp_path_factory.mktemp("logs")
    put_model(place / "store", "talks", TALKS)
    inference, management, metrics = free_ports(3)
    (place / "config.properties").write_text(
        f"inference_address=http://127.0.0.1:{inference}\nmanagement_address=http://127.0.0.1:{management}\n"
        f"metrics_address=http://127.0.0.1:{metrics}\nmodel_metrics_auto_detect=true\n"
    )
    environment = {**os.environ, "TMPDIR": str(place), "METRICS_LOCATION": str(place / "numbers")}
    torchserve = [str(COMMANDS / "torchserve")]

    def run(*words: str) -> None:
        subprocess.run([*torchserve, *words], cwd=place, env=environment, check=True, stdout=subprocess.DEVNULL)

    run("--start", "--ncs", "--wait", "--model-store", "store", "--models", "talks")
    try:
        for body in (b"good", b"bad"):
            url = f"http://127.0.0.1:{inference}/predictions/talks"
            request = urllib.request.Request(url, body, {"Content-Type": "text/plain"})
            try:
                urllib.request.urlopen(request, timeout=30).close()
            except urllib.error.HTTPError as error:
                error.close()
    finally:
        run("--stop", "--foreground")
    return place


def test_the_five_files_are_where_the_variables_say(logs: Path) -> None:
    assert {path.name for path in (logs / "logs").glob("*.log")} == {"access_log.log", "model_log.log", "ts_log.log"}
    assert {path.name for path in (logs / "numbers").iterdir()} == {"model_metrics.log", "ts_metrics.log"}


@pytest.mark.parametrize("file", ["model_log.log", "ts_log.log"])
def test_prints_logs_and_tracebacks_of_the_handler_are_in_the_log(logs: Path, file: str) -> None:
    text = (logs / "logs" / file).read_text()
    for level, stream, said in (
        ("INFO ", "stdout", "printed at load"),
        ("INFO ", "stdout", r"seen: \[\{'body': 'good'\}\]"),
        ("WARN ", "stderr", "careful"),
        ("INFO ", "stdout", r"Traceback \(most recent call last\):"),
        ("INFO ", "stdout", "ValueError: no such word: bad"),
    ):
        assert re.search(rf"^{TIME} \[{level}\] W-9000-talks_1\.0-{stream} MODEL_LOG - {said}$", text, re.MULTILINE)


def test_the_access_log_has_a_line_for_each_answer(logs: Path) -> None:
    lines = (logs / "logs" / "access_log.log").read_text().splitlines()
    request = r'/127\.0\.0\.1:\d+ "POST /predictions/talks HTTP/1\.1"'
    assert [bool(re.fullmatch(rf"{TIME} - {request} \d{{3}} \d+", line)) for line in lines] == [True, True]
    assert [line.split()[-2] for line in lines] == ["200", "503"]


def test_what_the_handler_counts_is_in_the_log_of_metrics(logs: Path) -> None:
    lines = (logs / "numbers" / "model_metrics.log").read_text().splitlines()
    line = rf"{TIME} - WordsSeen\.Count:\d\.0\|#ModelName:talks,Level:Model\|#hostname:\S+,requestID:\S+,timestamp:\d+"
    counted = [found for found in lines if "WordsSeen" in found]
    assert all(re.fullmatch(line, found) for found in counted), lines
    assert sum(float(re.search(r":(\d\.0)\|", found)[1]) for found in counted) == 6.0  # type: ignore[index]


def test_the_server_s_own_lines_are_in_its_log(logs: Path) -> None:
    text = (logs / "logs" / "ts_log.log").read_text()
    assert re.search(
        rf"^{TIME} \[INFO \] main mariner\.serve - Inference API bind to: http://127\.0\.0\.1:\d+$", text, re.MULTILINE
    )
    assert "Model server started." in text
    assert "Torchserve stopped." in text
