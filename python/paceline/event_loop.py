"""How coroutines wait for the engine: its thread rings a bell, the event loop reads who it was for."""

import asyncio
import weakref

from paceline import _core


class LoopBell:
    """The bell of one event loop, for all its requests of all engines: one descriptor, one callback however many have something new."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._bell = _core.Bell()
        self._waiting: dict[int, asyncio.Future[None]] = {}
        loop.add_reader(self._bell.descriptor, self._wake)

    async def wait(self, submission: _core.Submission, whole: bool, kept: int) -> None:
        """Until the submission may have something to take, or with `whole` its last. kept: as of the core's Submission. One coroutine at a time for each, which the caller
        sees to."""
        future = asyncio.get_running_loop().create_future()
        self._waiting[submission.serial] = future
        submission.ring(self._bell, whole, kept)  # at once, if there is something already
        try:
            await future
        finally:
            del self._waiting[submission.serial]

    def _wake(self) -> None:
        for serial in self._bell.rung() or list(self._waiting):
            future = self._waiting.get(serial)
            if future is not None and not future.done():
                future.set_result(None)


_bells: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopBell] = weakref.WeakKeyDictionary()


def bell_of_this_loop() -> LoopBell:
    loop = asyncio.get_running_loop()
    bell = _bells.get(loop)
    if bell is None:
        bell = _bells[loop] = LoopBell(loop)
    return bell
