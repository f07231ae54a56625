"""Stages that run side by side: a thread before the edit reads ahead, one behind it writes; both
wait when they must.

The queues between are short, so memory does not grow with the clip. torch, pipes and ffmpeg all let
go of the interpreter's lock while they work.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
DEPTH = 3


@dataclass(frozen=True)
class _End:
    """The last thing in a queue; with the error of the thread that ended."""

    error: BaseException | None = None


class Ahead(Generic[T]):
    """The same items, made by another thread up to `depth` in advance; its error is raised where
    they run out.

    Leaving the `with` early waits for the item that is being made.
    """

    def __init__(self, items: Iterator[T], depth: int = DEPTH) -> None:
        self._items = items
        self._made: queue.Queue[T | _End] = queue.Queue(depth)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "Ahead[T]":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()

    def __iter__(self) -> Iterator[T]:
        while not isinstance(item := self._made.get(), _End):
            yield item
        # Whoever asks again gets the same answer.
        self._made.put(item)
        if item.error is not None:
            raise item.error

    def _work(self) -> None:
        try:
            for item in self._items:
                self._put(item)
                if self._left.is_set():
                    return
            self._put(_End())
        # Raised again by whoever takes.
        except BaseException as error:  # noqa: BLE001
            self._put(_End(error))

    def _put(self, item: T | _End) -> None:
        while not self._left.is_set():
            with contextlib.suppress(queue.Full):
                return self._made.put(item, timeout=0.1)


class Behind(Generic[T]):
    """Hands items to `sink` in another thread, in order; what the sink raises is raised by `put`,
    or on leaving.

    Left without an error, all items were handed over; with one, those that wait are dropped.
    """

    def __init__(self, sink: Callable[[T], None], depth: int = DEPTH) -> None:
        self._sink = sink
        self._waiting: queue.Queue[T | _End] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._dropped = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "Behind[T]":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._dropped.set()
        self._waiting.put(_End())
        self._thread.join()
        if kind is None:
            self._raise()

    def put(self, item: T) -> None:
        """Waits while `depth` items wait already."""
        self._raise()
        self._waiting.put(item)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while not isinstance(item := self._waiting.get(), _End):
            if self._dropped.is_set():
                continue
            try:
                self._sink(item)
            # Raised again by whoever puts.
            except BaseException as error:  # noqa: BLE001
                self._error = error
                self._dropped.set()
