"""Micro-batching: the steps of a handler overlap, each in threads of its own, on slices of one batch."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

__all__ = ["MicroBatching"]

STEPS = ("preprocess", "inference", "postprocess")
PROFILER_OFF = ("", "0", "false", "no", "off")


class MicroBatching:
    """The entry point of a handler that works on its batch in slices: ``self.handle = MicroBatching(self)``.

    An exception in a step is raised to the caller once the slices under way have come to rest; those that wait are
    dropped and the threads go on.

    Args:
        parent_handler: has the methods ``preprocess``, ``inference`` and ``postprocess``, as ``BaseHandler`` does.
        micro_batch_size: requests in a slice.
        parallelism: step to number of threads; 1 for each step that is not named.

    Attributes:
        handler: the handler.
        micro_batch_size: requests in a slice; may be changed between batches.
        thread_groups: step to its threads.
        terminate: set once the threads are told to end.
    """

    def __init__(
        self, parent_handler: Any, micro_batch_size: int = 1, parallelism: Mapping[str, int] | None = None
    ) -> None:
        self.handler = parent_handler
        self.micro_batch_size = micro_batch_size
        self.terminate = threading.Event()
        self._local = threading.local()
        self._stages: list[_Stage] = []
        following: Callable[[_Slice], None] = _finish
        for step in reversed(STEPS):
            stage = _Stage(step, getattr(parent_handler, step), following, self._local)
            self._stages.insert(0, stage)
            following = stage.put
        self._parallelism = dict.fromkeys(STEPS, 1)
        self.parallelism = dict(parallelism or {})

    @property
    def thread_groups(self) -> dict[str, list[threading.Thread]]:
        """Step to its threads."""
        return {stage.step: list(stage.threads) for stage in self._stages}

    @property
    def parallelism(self) -> dict[str, int]:
        """Step to number of threads, as a copy; assigning changes the steps that are named, at once.

        Raises:
            AssertionError: a step has another name.
            ValueError: a number is less than 1.
        """
        return dict(self._parallelism)

    @parallelism.setter
    def parallelism(self, parallelism: Mapping[str, int]) -> None:
        unknown = sorted(set(parallelism) - set(STEPS))
        if unknown:
            raise AssertionError(f"No such step: {', '.join(unknown)}. The steps are {', '.join(STEPS)}.")
        for step, count in parallelism.items():
            if count < 1:
                raise ValueError(f"The step {step} needs at least one thread, not {count}.")
        self._parallelism.update(parallelism)
        if not self.terminate.is_set():
            for stage in self._stages:
                stage.resize(self._parallelism[stage.step])

    def __call__(self, data: Any, context: Any) -> Any:
        """Answers a batch.

        Args:
            data: one element for each request.
            context: the context of the batch.

        Returns:
            A list with one element for each request.
        """
        started = time.perf_counter()
        handler = self.handler
        handler.context = context
        if context.get_request_header(0, "describe") == "True":
            output: Any = [handler.describe_handle()]
        elif os.environ.get("ENABLE_TORCH_PROFILER", "").strip().lower() not in PROFILER_OFF:
            output, _ = handler._infer_with_profiler(data)  # noqa: SLF001  # handlers replace it under this name
        elif context.get_request_header(0, "explain") == "True":
            handler.explain = True
            output = handler.explain_handle(handler.preprocess(data), data)
        else:
            output = self.handle(data)
        if context.metrics is not None:
            context.metrics.add_time("HandlerTime", round((time.perf_counter() - started) * 1000, 2), None, "ms")
        return output

    def handle(self, data: Any) -> list[Any]:
        """Sends the slices of a batch through the steps.

        Args:
            data: one element for each request.

        Returns:
            What the last step returned for all slices, in the order of the requests.

        Raises:
            Exception: whatever a step raised first.
            RuntimeError: the threads have ended.
            ValueError: the size of a slice is less than 1.
        """
        size = self.micro_batch_size
        if size < 1:
            raise ValueError(f"micro_batch_size must be at least 1, not {size}.")
        slices = [data[start : start + size] for start in range(0, len(data), size)]
        ids = getattr(getattr(self.handler, "context", None), "request_ids", None) or {}
        run = _Run(len(slices))
        for index, part in enumerate(slices):
            start = index * size
            own = {place: ids[start + place] for place in range(len(part)) if start + place in ids}
            self._stages[0].put(_Slice(run, index, own, part))
        return run.wait()

    def get_micro_batch_idx(self) -> int | None:
        """The index of the slice that the current thread works on, None outside of the steps."""
        current = getattr(self._local, "current", None)
        return None if current is None else current.place

    def get_micro_batch_request_ids(self) -> dict[int, str]:
        """Index in the slice to request id, for the slice that the current thread works on.

        Meant for :func:`ts.handler_utils.utils.send_intermediate_predict_response`; ``context.request_ids`` are those
        of the whole batch.
        """
        current = getattr(self._local, "current", None)
        return {} if current is None else dict(current.request_ids)

    def shutdown(self) -> None:
        """Ends the threads and waits for them. Slices that still wait for one fail."""
        self.terminate.set()
        threads = [thread for group in self.thread_groups.values() for thread in group]
        for stage in self._stages:
            stage.close()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()


# -- slices ----------------------------------------------------------------------------------------------------------


class _Run:
    """One batch on its way through the steps."""

    def __init__(self, count: int) -> None:
        self.error: BaseException | None = None
        self._open = count
        self._results: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._done = threading.Event()
        if not count:
            self._done.set()

    def settle(self, index: int, result: Any = None, error: BaseException | None = None) -> None:
        """A slice has gone through, or will not."""
        with self._lock:
            self._results[index] = result
            self.error = self.error or error
            self._open -= 1
            if not self._open:
                self._done.set()

    def wait(self) -> list[Any]:
        """The results of all slices in one list."""
        self._done.wait()
        if self.error is not None:
            raise self.error
        return [result for _, results in sorted(self._results.items()) for result in results]


class _Slice(NamedTuple):
    run: _Run
    place: int  # among the slices of its batch
    request_ids: Mapping[int, str]
    data: Any


def _finish(piece: _Slice) -> None:
    if isinstance(piece.data, (str, bytes, Mapping)) or not hasattr(piece.data, "__iter__"):
        kind = type(piece.data).__name__
        raise TypeError(f"postprocess must return a list with one element for each request, not {kind}.")
    piece.run.settle(piece.place, list(piece.data))


# -- steps -----------------------------------------------------------------------------------------------------------


class _Stage:
    """One step, the slices that wait for it and the threads that run it."""

    def __init__(
        self,
        step: str,
        function: Callable[[Any], Any],
        following: Callable[[_Slice], None],
        local: threading.local,
    ) -> None:
        self.step = step
        self.threads: list[threading.Thread] = []
        self._function = function
        self._following = following
        self._local = local
        self._waiting: deque[_Slice] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, piece: _Slice) -> None:
        """Lets a slice wait for a thread."""
        with self._changed:
            if not self._closed:
                self._waiting.append(piece)
                self._changed.notify()
                return
        piece.run.settle(piece.place, error=RuntimeError("The threads of MicroBatching were shut down."))

    def resize(self, count: int) -> None:
        """Starts threads, or lets the youngest end after what they are at."""
        with self._changed:
            del self.threads[count:]
            while len(self.threads) < count:
                thread = threading.Thread(target=self._work, name=f"micro-batching-{self.step}", daemon=True)
                self.threads.append(thread)
                thread.start()
            self._changed.notify_all()

    def close(self) -> None:
        """Lets all threads end; what waits fails."""
        with self._changed:
            self._closed = True
            dropped = list(self._waiting)
            self._waiting.clear()
        self.resize(0)
        for piece in dropped:
            self.put(piece)

    def _work(self) -> None:
        while (piece := self._next()) is not None:
            if piece.run.error is not None:
                piece.run.settle(piece.place)
                continue
            self._local.current = piece
            try:
                self._following(piece._replace(data=self._function(piece.data)))
            except BaseException as error:  # noqa: BLE001  # goes to the caller, SystemExit too
                piece.run.settle(piece.place, error=error)
            finally:
                self._local.current = None
            del piece  # a thread that waits keeps no batch in memory

    def _next(self) -> _Slice | None:
        """The next slice, None if this thread is to end."""
        with self._changed:
            while threading.current_thread() in self.threads:
                if self._waiting:
                    return self._waiting.popleft()
                self._changed.wait()
            # The notification of a new slice may have met this thread.
            self._changed.notify()
            return None
