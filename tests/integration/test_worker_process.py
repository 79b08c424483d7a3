from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ts
from mariner.bodies import Arena
from ts.page import PAGE_BYTES
from ts.wire import (
    Batch,
    FrameDecoder,
    FrameKind,
    Load,
    Loaded,
    Part,
    Reply,
    Request,
    Sample,
    Shared,
    decode_replies,
    encode_json,
    encode_predict,
    pack_headers,
)

pytestmark = pytest.mark.slow

HANDLERS = Path(__file__).parents[1] / "handlers"
HOME = str(Path(ts.__file__).parents[1])
SECONDS = 30  # until a worker counts as stuck


class WorkerProcess:
    """A real worker and the server's end of its connection."""

    def __init__(self, directory: Path, arena: Arena) -> None:
        self.directory = directory
        self.arena = arena
        self._status = os.memfd_create("status")
        os.ftruncate(self._status, PAGE_BYTES)
        self.connection, theirs = socket.socketpair()
        self.connection.settimeout(SECONDS)
        inherited = [theirs.fileno(), self._status, arena.fd]
        flags = ("--socket-fd", "--status-fd", "--bodies-fd")
        arguments = [text for flag, fd in zip(flags, inherited, strict=True) for text in (flag, str(fd))]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ts.worker", *arguments],
            pass_fds=inherited,
            cwd="/",
            env={**os.environ, "PYTHONPATH": HOME},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        self._frames = self._receive()
        self.metrics: list[Sample] = []

    def _receive(self) -> Iterator[tuple[FrameKind, Any]]:
        decoder = FrameDecoder()
        while received := self.connection.recv(1 << 16):
            for frame in decoder.feed(received):
                yield frame.kind, decode_replies(frame.payload) if frame.kind is FrameKind.REPLIES else frame.json()

    def next(self) -> tuple[FrameKind, Any]:
        return next(self._frames)

    def load(self, handler: str, **settings: Any) -> dict[str, Any]:
        kind, content = self.next()
        assert (kind, content) == (FrameKind.STARTED, {"pid": self.process.pid})
        shutil.copy(HANDLERS / f"{handler.partition(':')[0]}.py", self.directory)
        load = Load("net", str(self.directory), handler, **settings)
        self.connection.sendall(b"".join(encode_json(FrameKind.LOAD, load)))
        kind, loaded = self.next()
        assert kind is FrameKind.LOADED
        return dict(loaded)

    def send(self, *batches: Batch) -> None:
        self.connection.sendall(b"".join(encode_predict(batches)))

    def replies(self, count: int) -> list[Reply]:
        found: list[Reply] = []
        while len(found) < count:
            kind, content = self.next()
            if kind is FrameKind.REPLIES:
                found += content
            else:
                self.metrics += [Sample(*row) for row in content]
        return found

    @property
    def running(self) -> int:
        return int.from_bytes(os.pread(self._status, 8, 0), "little")

    def end(self) -> tuple[int, str, str]:
        self.connection.close()
        output, errors = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, output, errors

    def discard(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=SECONDS)
        self.connection.close()
        os.close(self._status)


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(1 << 20)
    yield made
    made.close()


@pytest.fixture
def worker(tmp_path: Path, arena: Arena) -> Iterator[WorkerProcess]:
    directory = tmp_path / "model"
    directory.mkdir()
    started = WorkerProcess(directory, arena)
    yield started
    started.discard()


def request(name: str, body: bytes | Shared, content_type: str = "text/plain") -> Request:
    return Request(name, pack_headers([("Accept", "*/*")]), [Part("body", content_type, body)])


def single(batch_id: int, body: bytes | Shared, content_type: str = "text/plain") -> Batch:
    return Batch(batch_id, [(100 + batch_id, request(f"r{batch_id}", body, content_type))])


def test_batches_of_one_frame_are_answered_by_job_id(worker: WorkerProcess) -> None:
    assert Loaded(**worker.load("echo")) == Loaded(True, "loaded model net")
    pair = Batch(3, [(7, request("a", b"seven")), (8, request("b", b"eight"))])
    worker.send(single(1, b"one"), single(2, b'{"two": 2}', "application/json"), pair)
    answers = {reply.job_id: reply.body for reply in worker.replies(4)}
    assert answers == {101: b"one", 102: b'{\n  "two": 2\n}', 7: b"seven", 8: b"eight"}


def test_a_frame_of_many_large_bodies_comes_back_whole(worker: WorkerProcess) -> None:
    worker.load("echo")
    bodies = {100 + index: bytes([index]) * 70_000 for index in range(1, 33)}
    worker.send(*(single(job - 100, body, "image/png") for job, body in bodies.items()))
    assert {reply.job_id: reply.body for reply in worker.replies(32)} == bodies


def test_a_body_in_shared_memory_reaches_the_handler(worker: WorkerProcess, arena: Arena) -> None:
    worker.load("echo")
    slot = arena.allocate(5000)
    assert slot is not None
    slot.view[:] = bytes(range(250)) * 20
    worker.send(single(1, Shared(slot.offset, slot.size), "image/png"))
    (reply,) = worker.replies(1)
    assert reply.body == bytes(slot.view)
    slot.release()


def test_pieces_of_a_stream_arrive_in_order(worker: WorkerProcess) -> None:
    worker.load("streams")
    worker.send(single(1, b"p"))
    replies = worker.replies(4)
    assert [(reply.body, reply.more) for reply in replies] == [
        (b"p0 ", True),
        (b"p1 ", True),
        (b"p2 ", True),
        (b"end", False),
    ]


def test_a_failed_batch_leaves_the_others_alone(worker: WorkerProcess) -> None:
    worker.load("raises")
    bodies = [b"fine", b"value", b"memory", b"cuda", b"prediction", b"length", b"fine"]
    worker.send(*(single(index, body) for index, body in enumerate(bodies, 1)))
    answers = {reply.job_id: (reply.failed, reply.status, reply.body) for reply in worker.replies(len(bodies))}
    assert [answers[job] for job in sorted(answers)] == [
        (False, 200, b"fine"),
        (True, 503, b"Prediction failed"),
        (True, 507, b"Out of resources"),
        (True, 507, b"Out of resources"),
        (True, 422, b"no such label"),
        (True, 503, b"number of batch response mismatched"),
        (False, 200, b"fine"),
    ]
    assert worker.end()[1].count("Traceback") == 5


def test_the_process_runs_in_the_model_directory(worker: WorkerProcess) -> None:
    (worker.directory / "beside.py").write_text("VALUE = 42")
    worker.load("looks")
    worker.send(single(1, b""))
    seen = json.loads(bytes(worker.replies(1)[0].body))
    assert seen["cwd"] == seen["properties"]["model_dir"] == str(worker.directory)
    assert seen["beside"] == 42
    assert seen["torch"] is False
    assert seen["path"][:2] == [HOME, str(worker.directory)]
    assert seen["python_path"] == f"{HOME}{os.pathsep}{worker.directory}"
    assert not {"", "/", str(Path(ts.__file__).parent)} & set(seen["path"])


def test_metrics_and_output_reach_the_server(worker: WorkerProcess) -> None:
    worker.load("counts")
    for index in range(1, 4):
        worker.send(Batch(index, [(index * 10 + job, request(f"{index}-{job}", b"")) for job in range(2)]))
        worker.replies(2)
    while sum(sample.value for sample in worker.metrics if sample.name == "Seen") < 6:
        kind, rows = worker.next()  # an idle worker sends what is left by itself
        assert kind is FrameKind.METRICS
        worker.metrics += [Sample(*row) for row in rows]
    took = [sample for sample in worker.metrics if sample.name == "Took"]
    assert (took[0].unit, took[0].type, took[0].value) == ("Milliseconds", "gauge", 1.5)
    assert list(map(tuple, took[0].dimensions)) == [("ModelName", "net"), ("Level", "Model")]
    assert worker.end() == (0, "logged while loading\n" + 3 * "printed while predicting\n", "")


def test_a_coroutine_runs_on_the_loop_that_initialize_saw(worker: WorkerProcess) -> None:
    worker.load("awaits")
    worker.send(single(1, b""))
    assert worker.replies(1)[0].body == b"true"


def test_a_handler_that_cannot_be_loaded_is_explained(worker: WorkerProcess) -> None:
    loaded = worker.load("looks")  # nothing lies beside it
    assert (loaded["ok"], loaded["out_of_memory"]) == (False, False)
    assert loaded["message"] == "ModuleNotFoundError: No module named 'beside'"
    assert "import beside" in loaded["traceback"]
    code, _, errors = worker.end()
    assert code == 1
    assert loaded["traceback"] in errors


@pytest.mark.parametrize(
    ("line", "message", "out_of_memory"),
    [
        ("raise MemoryError", "System out of memory", True),
        ("raise RuntimeError('CUDA out of memory')", "System out of memory", True),
        ("raise RuntimeError('first\\n  second')", "RuntimeError: first second", False),
        ("raise ValueError('no CUDA')", "ValueError: no CUDA", False),
        ("import sys; sys.exit(3)", "SystemExit: 3", False),
        ("oops oops", "SyntaxError: invalid syntax (broken.py, line 1)", False),
    ],
)
def test_every_way_to_fail_while_loading_is_answered(
    worker: WorkerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str, out_of_memory: bool
) -> None:
    (tmp_path / "broken.py").write_text(line)
    monkeypatch.setattr(sys.modules[__name__], "HANDLERS", tmp_path)
    loaded = worker.load("broken")
    assert (loaded["ok"], loaded["message"], loaded["out_of_memory"]) == (False, message, out_of_memory)
    assert worker.end()[0] == 1


def test_a_model_directory_that_is_gone_is_explained(worker: WorkerProcess) -> None:
    worker.next()
    worker.connection.sendall(b"".join(encode_json(FrameKind.LOAD, Load("net", "/no/such/model", "echo"))))
    kind, loaded = worker.next()
    assert kind is FrameKind.LOADED
    assert (loaded["ok"], loaded["message"][:17]) == (False, "FileNotFoundError")


def test_the_end_of_the_connection_ends_the_process(worker: WorkerProcess) -> None:
    worker.load("echo")
    assert worker.end() == (0, "", "")


def test_the_end_of_the_connection_before_a_model_ends_the_process_too(worker: WorkerProcess) -> None:
    assert worker.next()[0] is FrameKind.STARTED
    assert worker.end() == (0, "", "")


def wait_until_running(worker: WorkerProcess) -> None:
    (worker.directory / "running").read_text()  # returns when the handler writes


@pytest.fixture
def waiting(worker: WorkerProcess) -> WorkerProcess:
    """A worker that runs the second of three batches and waits in it."""
    for pipe in ("running", "go"):
        os.mkfifo(worker.directory / pipe)
    worker.load("waits")
    worker.send(single(1, b""), single(2, b"wait"), single(3, b""))
    wait_until_running(worker)
    return worker


def test_a_killed_worker_leaves_the_id_of_its_batch(waiting: WorkerProcess) -> None:
    assert waiting.running == 2
    waiting.process.kill()
    assert waiting.process.wait(SECONDS) == -signal.SIGKILL
    assert waiting.running == 2


def test_an_idle_worker_runs_no_batch(waiting: WorkerProcess) -> None:
    (waiting.directory / "go").write_text("")
    waiting.replies(3)
    assert waiting.running == 0


def test_sigterm_lets_the_frame_finish(waiting: WorkerProcess) -> None:
    waiting.process.send_signal(signal.SIGTERM)
    (waiting.directory / "go").write_text("")
    assert sorted(reply.job_id for reply in waiting.replies(3)) == [101, 102, 103]
    assert waiting.process.wait(SECONDS) == 0


def test_sigterm_ends_an_idle_worker(worker: WorkerProcess) -> None:
    worker.load("echo")
    worker.send(single(1, b"x"))
    worker.replies(1)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(SECONDS) == 0


def test_sigint_is_for_the_server(worker: WorkerProcess) -> None:
    worker.load("echo")
    worker.process.send_signal(signal.SIGINT)
    worker.send(single(1, b"x"))
    assert worker.replies(1)[0].body == b"x"
    assert worker.end()[0] == 0


@pytest.mark.parametrize(("body", "code"), [(b"crash", 9), (b"exit", 7)])
def test_a_handler_that_ends_the_process_is_blamed(worker: WorkerProcess, body: bytes, code: int) -> None:
    worker.load("raises")
    worker.send(single(1, b"fine"), single(2, body))
    assert worker.process.wait(SECONDS) == code
    assert worker.running == 2


def test_a_handler_that_exits_does_not_lose_finished_batches(worker: WorkerProcess) -> None:
    worker.load("raises")
    worker.send(single(1, b"fine"), single(2, b"exit"))
    assert [reply.job_id for reply in worker.replies(1)] == [101]


def test_a_forked_child_dies_of_sigterm(worker: WorkerProcess) -> None:
    worker.load("forks")
    worker.send(single(1, b"fork"), single(2, b"end"))
    assert worker.replies(2)[1].body == b"ended by 15"


def test_a_forked_child_does_not_hold_the_connection(worker: WorkerProcess) -> None:
    worker.load("forks")
    worker.send(single(1, b"fork"))
    child = int(worker.replies(1)[0].body)
    try:
        worker.process.kill()
        with pytest.raises(StopIteration):
            worker.next()
    finally:
        os.kill(child, signal.SIGKILL)


def test_bytes_that_are_no_frames_end_the_process_with_a_reason(worker: WorkerProcess) -> None:
    worker.load("echo")
    worker.connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
    code, _, errors = worker.end()
    assert code == 1
    assert "wire version" in errors
