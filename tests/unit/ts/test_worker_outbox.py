from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from ts.wire import Frame, FrameDecoder, FrameKind, Reply, Sample, decode_replies
from ts.worker import HELD_BYTES, METRICS_ROWS, Outbox, Samples


class Server:
    """The other end of the connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._decoder = FrameDecoder()

    def frames(self) -> list[tuple[FrameKind, list[Reply] | list[object]]]:
        found: list[tuple[FrameKind, list[Reply] | list[object]]] = []
        try:
            while True:
                received = self._connection.recv(1 << 20, socket.MSG_DONTWAIT)
                found.extend((frame.kind, self._content(frame)) for frame in self._decoder.feed(received))
        except BlockingIOError:
            return found

    @staticmethod
    def _content(frame: Frame) -> list[Reply] | list[object]:
        if frame.kind is FrameKind.REPLIES:
            return decode_replies(frame.payload)
        content: list[object] = frame.json()
        return content


@pytest.fixture
def pair() -> Iterator[tuple[Outbox, Server]]:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    with ours, theirs:
        yield Outbox(ours), Server(theirs)


def sample(name: str, kind: str, value: float, label: str = "a") -> Sample:
    return Sample(name, "unit", kind, value, [("Label", label)])


def test_replies_are_held_until_they_are_flushed(pair: tuple[Outbox, Server]) -> None:
    outbox, server = pair
    outbox.hold([Reply(1, b"a")])
    outbox.hold([Reply(2, b"b")])
    assert server.frames() == []
    outbox.flush()
    assert server.frames() == [(FrameKind.REPLIES, [Reply(1, b"a"), Reply(2, b"b")])]


def test_many_bytes_are_not_held(pair: tuple[Outbox, Server]) -> None:
    outbox, server = pair
    body = bytes(HELD_BYTES // 8)
    for job in range(8):
        outbox.hold([Reply(job, body)])
    frames = server.frames()
    assert len(frames) == 1
    assert frames[0][1] == [Reply(job, body) for job in range(8)]


def test_a_piece_leaves_at_once_and_takes_held_replies_along(pair: tuple[Outbox, Server]) -> None:
    outbox, server = pair
    outbox.hold([Reply(1, b"a")])
    outbox.send_piece(Reply(2, b"b", more=True))
    assert server.frames() == [(FrameKind.REPLIES, [Reply(1, b"a"), Reply(2, b"b", more=True)])]


def test_metrics_leave_with_the_replies_when_they_are_due(pair: tuple[Outbox, Server]) -> None:
    outbox, server = pair
    outbox.add_sample(sample("A", "gauge", 1.0))
    assert outbox.metrics_waiting
    outbox.hold([Reply(1, b"a")])
    outbox.flush()
    outbox.add_sample(sample("A", "gauge", 2.0))
    outbox.flush()  # too early for more metrics
    assert [kind for kind, _ in server.frames()] == [FrameKind.REPLIES, FrameKind.METRICS]
    assert 0 < outbox.metrics_due_in() <= 0.05
    outbox.send_metrics()
    assert server.frames() == [(FrameKind.METRICS, [["A", "unit", "gauge", 2.0, [["Label", "a"]], ""]])]
    assert not outbox.metrics_waiting


def test_a_handler_that_emits_in_a_loop_does_not_fill_the_memory(pair: tuple[Outbox, Server]) -> None:
    outbox, server = pair
    for _ in range(METRICS_ROWS):
        outbox.add_sample(sample("A", "histogram", 1.0))
    assert [(kind, len(rows)) for kind, rows in server.frames()] == [(FrameKind.METRICS, METRICS_ROWS)]


def test_counters_add_up_gauges_keep_the_last_and_histograms_keep_all() -> None:
    samples = Samples()
    for kind in ("counter", "gauge", "histogram"):
        for value in (1.0, 2.0):
            samples.add(sample(kind, kind, value))
    assert [(row.name, row.value) for row in samples.take()] == [
        ("counter", 3.0),
        ("gauge", 2.0),
        ("histogram", 1.0),
        ("histogram", 2.0),
    ]
    assert samples.take() == []


def test_all_updates_are_kept_in_order_where_each_is_wanted(pair: tuple[Outbox, Server]) -> None:
    outbox, server = pair
    outbox.keep_all_metrics()
    for value, kind in enumerate(("counter", "gauge", "counter", "gauge"), 1):
        outbox.add_sample(sample("A", kind, value))
    outbox.send_metrics()
    ((_, rows),) = server.frames()
    assert [row[2:4] for row in rows if isinstance(row, list)] == [
        ["counter", 1],
        ["gauge", 2],
        ["counter", 3],
        ["gauge", 4],
    ]


def test_samples_with_other_labels_are_kept_apart() -> None:
    samples = Samples()
    samples.add(sample("A", "counter", 1.0, "a"))
    assert samples.add(sample("A", "counter", 1.0, "b")) == 2
