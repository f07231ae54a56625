"""The operator's switch: while the broker drains, no job is taken and none is sent; those that run go on."""

from starlette.concurrency import run_in_threadpool

from broker.store.jobs import JobStore

#: The flag in the database, so that a restart changes nothing.
DRAINING = "draining"


class DrainSwitch:
    """Whether the broker drains, as the database has it."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self.is_on = False

    async def turn(self, on: bool) -> None:
        """Turns it, for good and for all brokers on the database."""
        await run_in_threadpool(self._store.set_flag, DRAINING, on)
        self.is_on = on

    async def read(self) -> None:
        """Learns how it stands; of several brokers on one database, another may have turned it."""
        before = self.is_on
        flag = await run_in_threadpool(self._store.flag, DRAINING)
        if self.is_on is before:  # else it was turned here meanwhile
            self.is_on = flag
