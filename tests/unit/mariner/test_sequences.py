"""Which jobs of which sequences form the next batch of which worker; the clock is a number, workers are texts."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from mariner.errors import MarinerError, QueueFull, RequestTimeout, SequenceEnded, TooManySequences
from mariner.jobs import Job, JobState, Outcome, Reply, Request, pack_headers, unpack_headers
from mariner.sequences import Rules, SequenceJob, SequenceQueue


class Told:
    """A queue whose clock and workers say what they are told, and what its jobs were told."""

    def __init__(self, *, batch_size: int = 3, delay: float = 0.0, **rules: Any) -> None:
        self.now = 100.0
        self.workers = ["w1"]
        self.outcomes: dict[str, list[Outcome]] = {}
        self.queue = self.make(batch_size, delay, **rules)

    def make(self, batch_size: int = 3, delay: float = 0.0, **rules: Any) -> SequenceQueue:
        queue = SequenceQueue(
            "m",
            Rules(**{"max_open": 8, "max_waiting": 4, "max_idle": 10.0, **rules}),
            batch_size=batch_size,
            max_delay=delay,
            capacity=5,
            clock=lambda: self.now,
            new_id=map("ts-seq-{}".format, itertools.count(1)).__next__,
        )
        queue.crew = lambda: self.workers
        return queue

    def put(
        self, name: str, sequence: str = "", *, timeout: float = math.inf, alone: bool = False, **headers: str
    ) -> SequenceJob:
        if sequence:
            headers["ts_request_sequence_id"] = sequence
        self.outcomes[name] = []
        job = SequenceJob(
            Request(name, pack_headers(headers.items()), []),
            self.outcomes[name].append,
            deadline=self.now + timeout,
            created=self.now,
            alone=alone,
        )
        self.queue.put(job)
        return job

    def take(self, worker: str = "w1") -> list[Job]:
        """The next batch of a worker, begun as workers do."""
        batch = self.queue.take(worker=worker)
        for job in batch:
            job.begin(self.now)
        return batch

    def run(self, worker: str = "w1", **headers: str) -> list[str]:
        """Takes a batch and answers it; the names of its jobs."""
        batch = self.take(worker)
        for job in batch:
            job.end(Reply(1, b"", headers=pack_headers(headers.items())))
        return ids(batch)

    def error(self, name: str) -> MarinerError:
        (outcome,) = self.outcomes[name]
        assert isinstance(outcome, MarinerError)
        return outcome


def ids(batch: list[Job]) -> list[str]:
    return [job.request.id for job in batch]


def headers_of(job: Job) -> dict[str, str]:
    return dict(unpack_headers(job.request.headers))


# -- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_has_one_request_of_each_sequence_in_the_order_they_came() -> None:
    told = Told()
    for name, sequence in [("a1", "a"), ("a2", "a"), ("b1", "b"), ("c1", "c"), ("d1", "d")]:
        told.put(name, sequence)
    assert ids(told.take()) == ["a1", "b1", "c1"]
    assert ids(told.take()) == ["d1"]


def test_a_request_waits_for_the_one_before_it() -> None:
    told = Told()
    told.put("a1", "a")
    told.put("a2", "a")
    (first,) = told.take()
    assert told.take() == []
    first.end(Reply(1, b""))
    assert ids(told.take()) == ["a2"]


def test_in_continuous_batches_it_joins_the_one_before_it() -> None:
    told = Told(batch_size=1, side_by_side=True)
    told.put("a1", "a")
    told.put("a2", "a")
    assert [ids(told.take()), ids(told.take())] == [["a1"], ["a2"]]


def test_a_request_whose_client_has_gone_does_not_hold_up_the_next() -> None:
    told = Told()
    gone = told.put("a1", "a")
    told.put("a2", "a")
    gone.cancel()
    assert ids(told.take()) == ["a2"]


def test_a_request_whose_client_has_gone_does_not_count_as_waiting() -> None:
    told = Told(max_open=1, max_waiting=1)
    told.put("a1", "a").cancel()
    told.put("a2", "a").cancel()
    told.now += 10
    told.put("b1", "b")
    assert told.run() == ["b1"]


def test_a_request_that_runs_without_its_client_still_holds_up_the_next() -> None:
    told = Told()
    told.put("a1", "a")
    told.put("a2", "a")
    (running,) = told.take()
    running.cancel()
    assert told.take() == []
    running.end(Reply(1, b""))
    assert ids(told.take()) == ["a2"]


def test_what_asks_alone_shares_its_batch_with_no_other() -> None:
    told = Told()
    told.put("a1", "a")
    told.put("b1", "b", alone=True)
    told.put("c1", "c")
    assert [ids(told.take()) for _ in range(3)] == [["a1"], ["b1"], ["c1"]]


def test_a_job_without_a_sequence_goes_to_any_worker() -> None:
    told = Told()
    told.queue.put(Job(Request("describe", b"", []), lambda _: None, alone=True))
    assert ids(told.queue.take(worker="stranger")) == ["describe"]


def test_batches_may_wait_until_they_are_full_or_it_took_long_enough() -> None:
    told = Told(batch_size=2, delay=0.5)
    told.put("a1", "a")
    assert told.take() == []
    assert told.queue.wake_at() == 100.5
    told.now = 100.5
    assert ids(told.take()) == ["a1"]
    told.put("a2", "a")
    told.now = 102.0
    assert told.queue.wake_at() == math.inf  # it waits for its sequence, and a timer would not help


def test_a_busy_worker_takes_only_full_batches() -> None:
    told = Told(batch_size=2)
    told.put("a1", "a")
    assert told.queue.take(partial=False, worker="w1") == []
    told.put("b1", "b")
    assert ids(told.queue.take(partial=False, worker="w1")) == ["a1", "b1"]


# -- workers ---------------------------------------------------------------------------------------------------------


def test_sequences_are_spread_over_the_workers_and_stay_where_they_are() -> None:
    told = Told()
    told.workers = ["w1", "w2"]
    for sequence in "abcd":
        told.put(f"{sequence}1", sequence)
    assert [told.run("w1"), told.run("w2")] == [["a1", "c1"], ["b1", "d1"]]
    for sequence in "dcba":
        told.put(f"{sequence}2", sequence)
    assert [told.run("w1"), told.run("w2")] == [["c2", "a2"], ["d2", "b2"]]
    assert [told.queue.pinned("w1"), told.queue.pinned("w2")] == [2, 2]


def test_a_sequence_that_began_before_a_worker_was_ready_goes_to_the_first_that_is() -> None:
    told = Told()
    told.workers = []
    told.put("a1", "a")
    told.workers = ["w2"]
    assert told.run("w1") == []
    assert told.run("w2") == ["a1"]


def test_a_worker_takes_its_sequences_with_it() -> None:
    told = Told(batch_size=1)
    told.workers = ["w1", "w2"]
    told.put("a1", "a")
    told.put("b1", "b")
    told.put("a2", "a")
    (running,) = told.take("w1")
    running.end(QueueFull("as if it had died"))
    told.queue.forget("w1")
    assert told.error("a2").message == "m: sequence a has ended: the worker that kept its state is gone."
    with pytest.raises(SequenceEnded, match="sequence a has ended: the worker that kept its state is gone"):
        told.put("a3", "a")
    assert told.run("w2") == ["b1"]


def test_what_a_dead_worker_had_not_begun_ends_with_its_sequence() -> None:
    told = Told()
    told.put("a1", "a")
    told.queue.put_back(told.take())
    told.queue.forget("w1")
    assert isinstance(told.error("a1"), SequenceEnded)
    assert (told.queue.take(worker="w1"), len(told.queue)) == ([], 0)


def test_what_comes_back_after_its_sequence_has_ended_is_refused() -> None:
    told = Told()
    told.put("a1", "a")
    batch = told.take()
    told.queue.forget("w1")
    told.queue.put_back(batch)
    assert isinstance(told.error("a1"), SequenceEnded)
    assert len(told.queue) == 0


def test_a_lost_sequence_begins_anew_when_its_client_says_so() -> None:
    told = Told()
    told.put("a1", "a")
    told.run()
    told.queue.forget("w1")
    told.put("a2", "a", TS_Request_Sequence_Start="true")
    told.run()
    told.put("a3", "a")
    assert told.run() == ["a3"]


def test_a_lost_sequence_is_remembered_for_as_long_as_it_could_have_idled() -> None:
    told = Told(max_idle=10.0)
    told.put("a1", "a")
    told.run()
    told.queue.forget("w1")
    told.now += 9.9
    with pytest.raises(SequenceEnded):
        told.put("a2", "a")
    told.now += 0.1
    told.put("a3", "a")
    assert told.run() == ["a3"]


def test_a_lost_sequence_takes_no_place() -> None:
    told = Told(max_open=1)
    told.put("a1", "a")
    told.run()
    told.queue.forget("w1")
    told.put("b1", "b")
    assert told.run() == ["b1"]


def test_jobs_of_another_queue_bring_their_sequence_along() -> None:
    told = Told()
    told.workers = []
    told.put("a1", "a")
    old, told.queue = told.queue, told.make()
    told.queue.put_back(old.remove_all())
    told.workers = ["w9"]
    told.put("a2", "a")
    assert [told.run("w9"), told.run("w9")] == [["a1"], ["a2"]]


# -- limits ----------------------------------------------------------------------------------------------------------


def test_no_more_sequences_are_opened_than_may_be() -> None:
    told = Told(max_open=2)
    told.put("a1", "a")
    told.put("b1", "b")
    with pytest.raises(
        TooManySequences, match=r"m takes no further sequence: as .* maxNumSequence allows \(2\)"
    ) as full:
        told.put("c1", "c")
    assert (full.value.status, full.value.wire_name) == (503, "ServiceUnavailableException")
    told.put("a2", "a")


def test_one_request_runs_n_wait_and_the_next_is_refused() -> None:
    told = Told(max_waiting=1)
    told.put("a1", "a")
    told.take()
    told.put("a2", "a")
    with pytest.raises(QueueFull, match="m: 1 requests of sequence a wait, maxSequenceJobQueueSize is 1"):
        told.put("a3", "a")
    told.put("b1", "b")


def test_a_sequence_that_idled_gives_its_place_away() -> None:
    told = Told(max_open=1, max_idle=10.0)
    told.put("a1", "a")
    told.now += 50
    told.run()  # it idles from its answer on
    told.now += 9.9
    with pytest.raises(TooManySequences):
        told.put("b1", "b")
    told.now += 0.1
    assert told.queue.pinned("w1") == 0
    told.put("b2", "b")
    assert told.run() == ["b2"]


def test_an_id_that_idled_begins_anew_and_may_go_to_another_worker() -> None:
    told = Told(max_idle=10.0)
    told.put("a1", "a")
    told.run()
    told.workers = ["w2"]
    told.now += 10
    told.put("a2", "a")
    assert told.run("w2") == ["a2"]


def test_a_sequence_does_not_idle_while_a_request_of_it_waits_or_runs() -> None:
    told = Told(max_open=1, max_idle=10.0)
    told.put("a1", "a")
    told.now += 11
    with pytest.raises(TooManySequences):
        told.put("b1", "b")
    told.take()
    told.now += 11
    with pytest.raises(TooManySequences):
        told.put("b2", "b")


def test_a_sequence_ends_when_it_has_lasted_long_enough_however_busy_it_is() -> None:
    told = Told(max_open=1, max_life=30.0)
    for _ in range(4):
        told.put("a", "a")
        told.run()
        told.now += 9
    told.put("b", "b")
    assert told.run() == ["b"]


def test_one_that_has_lasted_too_long_gives_its_place_away_before_those_with_older_news() -> None:
    told = Told(max_open=2, max_life=30.0, max_idle=100.0)
    told.put("a1", "a")
    told.now += 5
    told.put("b1", "b")
    told.run()
    told.now += 20
    told.put("a2", "a")
    told.run()
    told.now += 5
    told.put("c1", "c")
    assert told.run() == ["c1"]


def test_a_request_behind_the_end_of_its_sequence_is_refused_while_others_still_run() -> None:
    told = Told(max_life=30.0)
    told.put("a1", "a")
    told.take()
    told.now += 30
    with pytest.raises(SequenceEnded, match="m: sequence a has lasted for 30 s, which is all it may"):
        told.put("a2", "a")


def test_a_deadline_that_passes_in_the_queue_is_answered() -> None:
    told = Told()
    told.put("a1", "a", timeout=1)
    told.put("a2", "a", timeout=9)
    told.now += 2
    assert told.run() == ["a2"]
    assert isinstance(told.error("a1"), RequestTimeout)


# -- ids -------------------------------------------------------------------------------------------------------------


def test_a_request_without_an_id_gets_one_and_is_the_first() -> None:
    told = Told()
    job = told.put("x", accept="*/*")
    assert headers_of(job) == {
        "accept": "*/*",
        "ts_request_sequence_id": "ts-seq-1",
        "ts_request_sequence_start": "true",
    }
    assert headers_of(told.put("y")) == {"ts_request_sequence_id": "ts-seq-2", "ts_request_sequence_start": "true"}


def test_an_id_of_the_client_is_passed_on_as_it_is() -> None:
    assert headers_of(Told().put("x", "mine")) == {"ts_request_sequence_id": "mine"}


def test_the_answer_tells_an_id_that_the_server_chose() -> None:
    told = Told()
    told.put("x")
    told.run(etag="1")
    (reply,) = told.outcomes["x"]
    assert isinstance(reply, Reply)
    assert unpack_headers(reply.headers) == [("etag", "1"), ("ts_request_sequence_id", "ts-seq-1")]


@pytest.mark.parametrize(("sequence", "headers"), [("", {"TS_Request_Sequence_Id": "of the handler"}), ("mine", {})])
def test_the_answer_tells_no_id_that_the_client_knows(sequence: str, headers: dict[str, str]) -> None:
    told = Told()
    told.put("x", sequence)
    told.run(**headers)
    (reply,) = told.outcomes["x"]
    assert isinstance(reply, Reply)
    assert dict(unpack_headers(reply.headers)) == headers


def test_a_stream_tells_it_with_its_first_piece() -> None:
    told = Told()
    told.put("x")
    (job,) = told.take()
    job.piece(Reply(1, b"piece", more=True))
    (reply,) = told.outcomes["x"]
    assert isinstance(reply, Reply)
    assert unpack_headers(reply.headers) == [("ts_request_sequence_id", "ts-seq-1")]


@pytest.mark.parametrize("outcome", [QueueFull("refused"), Reply(1, b"boom", 503, failed=True)])
def test_an_id_that_its_client_never_learned_keeps_no_place(outcome: Outcome) -> None:
    told = Told(max_open=1)
    told.put("x")
    (job,) = told.take()
    job.end(outcome)
    told.put("y")
    assert told.run() == ["y"]


def test_an_id_that_came_with_a_piece_is_known_though_the_stream_fails() -> None:
    told = Told(max_open=1)
    told.put("x")
    (job,) = told.take()
    job.piece(Reply(1, b"piece", more=True))
    job.end(Reply(1, b"boom", 503, failed=True))
    with pytest.raises(TooManySequences):
        told.put("y")
    told.put("x2", "ts-seq-1")
    assert told.run() == ["x2"]


def test_an_answer_that_reaches_nobody_makes_no_id_known() -> None:
    told = Told(max_open=1)
    told.put("x").cancel()
    told.put("y")
    (job,) = told.take()
    job.cancel()
    job.end(Reply(1, b""))
    told.put("z")
    assert told.run() == ["z"]


def test_names_of_headers_can_be_chosen() -> None:
    told = Told(id_header="X-Session", start_header="X-First", end_header="X-Last", max_open=1)
    told.put("x", X_Session="no: underscores")
    assert headers_of(told.put("y", **{"x-session": "ts-seq-1"})) == {"x-session": "ts-seq-1"}
    assert told.run(**{"X-Last": "ts-seq-1"}) == ["x"]
    told.put("z")
    assert told.run() == ["z"]


# -- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listed", ["a", "b; a", "a;b;c", "nobody;a;"])
def test_a_handler_ends_the_sequences_that_it_lists(listed: str) -> None:
    told = Told(max_open=2)
    told.put("a1", "a")
    told.put("b1", "b")
    assert told.run(ts_request_sequence_end=listed) == ["a1", "b1"]
    told.put("c1", "c")
    assert told.run() == ["c1"]


def test_a_piece_of_a_stream_can_end_a_sequence_too() -> None:
    told = Told(max_open=1, side_by_side=True)
    told.put("a1", "a")
    (job,) = told.take()
    job.piece(Reply(1, b"", headers=pack_headers([("ts_request_sequence_end", "a")]), more=True))
    told.put("b1", "b")
    job.end(Reply(1, b""))
    assert told.run() == ["b1"]


def test_what_waits_when_the_handler_ends_its_sequence_is_told_so() -> None:
    told = Told()
    told.put("a1", "a")
    told.put("a2", "a")
    told.run(ts_request_sequence_end="a")
    assert told.error("a2").message == "m: sequence a was closed before the turn of this request came."
    told.put("a3", "a")  # the id is free
    assert told.run() == ["a3"]


def test_a_client_ends_its_sequence_with_its_last_request() -> None:
    told = Told(max_open=1)
    told.put("a1", "a")
    told.put("a2", "a", ts_request_sequence_end="True")
    assert told.run() == ["a1"]
    with pytest.raises(TooManySequences):
        told.put("b1", "b")
    assert told.run() == ["a2"]
    told.put("b2", "b")
    assert told.run() == ["b2"]


def test_a_last_request_that_failed_may_be_sent_again() -> None:
    told = Told(max_open=1)
    told.put("a1", "a", ts_request_sequence_end="true")
    (job,) = told.take()
    job.end(Reply(1, b"boom", 503, failed=True))
    with pytest.raises(TooManySequences):
        told.put("b1", "b")
    told.put("a2", "a", ts_request_sequence_end="true")
    told.run()
    told.put("b1", "b")


def test_a_sequence_that_is_ended_while_others_of_it_wait_goes_when_they_are_answered() -> None:
    told = Told(max_open=1)
    told.put("a1", "a", ts_request_sequence_end="true")
    told.put("a2", "a")
    told.run()
    with pytest.raises(TooManySequences):
        told.put("b1", "b")
    assert told.run() == ["a2"]
    told.put("b2", "b")


def test_a_sequence_that_is_ended_by_one_request_goes_when_the_streams_beside_it_are_over() -> None:
    told = Told(max_open=1, side_by_side=True, batch_size=1)
    told.put("a1", "a")
    told.put("a2", "a", ts_request_sequence_end="true")
    (stream,) = told.take()
    assert told.run() == ["a2"]
    with pytest.raises(TooManySequences):
        told.put("b1", "b")
    stream.end(Reply(1, b""))
    told.put("b2", "b")


def test_a_sequence_that_is_begun_anew_behind_its_end_goes_on() -> None:
    told = Told(max_open=1)
    told.put("a1", "a", ts_request_sequence_end="true")
    told.put("a2", "a")
    told.run()
    told.put("a3", "a", ts_request_sequence_start="true")
    assert [told.run(), told.run()] == [["a2"], ["a3"]]
    with pytest.raises(TooManySequences):
        told.put("b1", "b")


def test_every_job_ends_once() -> None:
    told = Told()
    told.put("a1", "a")
    (job,) = told.take()
    job.end(Reply(1, b""))
    job.end(Reply(1, b""))
    assert (len(told.outcomes["a1"]), job.state) == (1, JobState.ENDED)
    assert job.sequence.running == 0
