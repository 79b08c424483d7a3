"""The codec between server and worker."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts.wire import (
    VERSION,
    Batch,
    Buffer,
    Frame,
    FrameDecoder,
    FrameKind,
    Load,
    Loaded,
    Part,
    Reply,
    Request,
    Shared,
    WireError,
    decode_predict,
    decode_replies,
    encode_frame,
    encode_json,
    encode_predict,
    encode_reply,
    pack_headers,
    unpack_headers,
)

header_text = st.text(st.characters(max_codepoint=255, exclude_characters="\0\r\n"), max_size=20)
headers = st.lists(st.tuples(header_text.filter(bool), header_text), max_size=5)
values = st.binary(max_size=200) | st.builds(Shared, st.integers(0, 1 << 40), st.integers(0, 1 << 30))
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
parts = st.lists(st.builds(Part, text, text, values), max_size=4)
requests = st.builds(Request, text, headers.map(pack_headers), parts)
job_ids = st.integers(0, (1 << 64) - 1)
batches = st.lists(st.builds(Batch, job_ids, st.lists(st.tuples(job_ids, requests), max_size=4)), max_size=4)
replies = st.lists(
    st.builds(
        Reply,
        job_ids,
        st.binary(max_size=200),
        st.integers(0, 65_535),
        text,
        headers.map(pack_headers),
        st.booleans(),
        st.booleans(),
        st.floats(0, 1000, width=32),
    ),
    max_size=6,
)


def joined(buffers: Iterable[Buffer]) -> bytes:
    return b"".join(bytes(buffer) for buffer in buffers)


def only_frame(data: bytes) -> Frame:
    (frame,) = FrameDecoder().feed(data)
    return frame


def plain(batch: Batch) -> Batch:
    """A batch whose values can be compared."""
    return Batch(
        batch.id,
        [(id_, request._replace(parts=[_plain_part(part) for part in request.parts])) for id_, request in batch.jobs],
    )


def _plain_part(part: Part) -> Part:
    return part if isinstance(part.value, Shared) else part._replace(value=bytes(part.value))


@given(batches)
def test_batches_arrive_as_they_were_sent(sent: list[Batch]) -> None:
    frame = only_frame(joined(encode_predict(sent)))
    assert frame.kind is FrameKind.PREDICT
    assert [plain(batch) for batch in decode_predict(frame.payload)] == sent


@given(replies)
def test_replies_arrive_as_they_were_sent(sent: list[Reply]) -> None:
    frame = only_frame(joined(encode_frame(FrameKind.REPLIES, [part for r in sent for part in encode_reply(r)])))
    assert decode_replies(frame.payload) == sent


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5), st.lists(st.integers(0, 300), max_size=20))
def test_frames_survive_every_way_of_cutting_the_stream(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(joined(encode_frame(FrameKind.METRICS, [payload])) for payload in payloads)
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    decoder = FrameDecoder()
    received = [bytes(frame.payload) for start, end in pairwise(places) for frame in decoder.feed(stream[start:end])]
    assert received == payloads


@given(headers)
def test_headers_come_out_as_they_went_in(pairs: list[tuple[str, str]]) -> None:
    assert unpack_headers(pack_headers(pairs)) == pairs


@pytest.mark.parametrize("bad", ["a\0b", "a\rb", "a\nb"])
def test_a_header_cannot_smuggle_another(bad: str) -> None:
    with pytest.raises(ValueError, match="control character"):
        pack_headers([("X-Name", bad)])


@pytest.mark.parametrize("message", [Load("m", "/d", "h.py", gpu_id=1), Loaded(False, "no", True, "trace")])
def test_control_messages_arrive_as_they_were_sent(message: Load | Loaded) -> None:
    kind = FrameKind.LOAD if isinstance(message, Load) else FrameKind.LOADED
    assert type(message)(**only_frame(joined(encode_json(kind, message))).json()) == message


@given(st.binary(max_size=300))
def test_noise_is_refused_or_waited_for_but_never_crashes(noise: bytes) -> None:
    with suppress(WireError):
        for frame in FrameDecoder(limit=1000).feed(noise):
            for decode in (decode_predict, decode_replies):
                with suppress(WireError):
                    decode(frame.payload)


@given(batches.filter(bool), st.data())
def test_a_predict_frame_that_is_cut_short_is_refused(sent: list[Batch], data: st.DataObject) -> None:
    payload = joined(encode_predict(sent)[1:])
    cut = data.draw(st.integers(1, len(payload) - 1))
    try:
        decoded = decode_predict(memoryview(payload[:cut]))
    except WireError:
        return
    assert len(decoded) < len(sent)  # the cut fell between two batches


@given(replies.filter(bool), st.data())
def test_a_replies_frame_that_is_cut_short_is_refused(sent: list[Reply], data: st.DataObject) -> None:
    payload = b"".join(joined(encode_reply(reply)) for reply in sent)
    cut = data.draw(st.integers(1, len(payload) - 1))
    try:
        decoded = decode_replies(memoryview(payload[:cut]))
    except WireError:
        return
    assert len(decoded) < len(sent)


def test_another_version_is_refused_with_both_versions_named() -> None:
    stream = bytearray(joined(encode_frame(FrameKind.STARTED, [b"{}"])))
    stream[4] = VERSION + 1
    with pytest.raises(WireError, match=f"wire version {VERSION + 1}, this side {VERSION}"):
        list(FrameDecoder().feed(stream))


def test_a_frame_over_the_limit_is_refused_before_it_is_received() -> None:
    head = joined(encode_frame(FrameKind.REPLIES, [bytes(2000)]))[:8]
    with pytest.raises(WireError, match="over the limit of 1000"):
        list(FrameDecoder(limit=1000).feed(head))


def test_an_unknown_kind_is_refused() -> None:
    stream = bytearray(joined(encode_frame(FrameKind.STARTED, [b"{}"])))
    stream[5] = 99
    with pytest.raises(WireError, match="kind 99"):
        list(FrameDecoder().feed(stream))


def test_the_bytes_of_a_predict_frame_are_the_documented_ones() -> None:
    request = Request("id", b"A\0b", [Part("body", "t", b"xyz"), Part("s", "", Shared(4096, 9))])
    assert joined(encode_predict([Batch(1, [(2, request)])])).hex() == (
        "52000000"  # payload length
        "02020000"  # version, kind, reserved
        "010000000000000001000000"  # batch id, jobs
        "0200000000000000" "0200" "0200" "03000000"  # job id, lengths of request id, parts, headers
        "6964" "410062"
        "04000000" "0100" "0000" "03000000" "ffffffffffffffff" "626f6479" "74" "78797a"
        "01000000" "0000" "0000" "09000000" "0010000000000000" "73"
    )  # fmt: skip


def test_the_bytes_of_a_reply_are_the_documented_ones() -> None:
    assert joined(encode_reply(Reply(2, b"xyz", 404, "No", b"A\0b", True, False, 0.5))).hex() == (
        "0200000000000000" "0100" "9401" "0200" "0000" "03000000" "03000000" "0000003f" "4e6f" "410062" "78797a"
    )  # fmt: skip
