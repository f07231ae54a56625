"""The drain switch: a draining broker accepts and submits no jobs; jobs that run go on."""

from starlette.concurrency import run_in_threadpool

from broker.store.jobs import JobStore

#: The flag in the database, so that a restart changes nothing.
DRAINING = "draining"


class DrainSwitch:
    """The operator's switch, kept in the database."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self.is_on = False

    async def turn(self, on: bool) -> None:
        """Turns the switch for all brokers on the database; a restart keeps it."""
        await run_in_threadpool(self._store.set_flag, DRAINING, on)
        self.is_on = on

    async def read(self) -> None:
        """Reads the switch; another broker on the database may have turned it."""
        before = self.is_on
        flag = await run_in_threadpool(self._store.flag, DRAINING)
        # Otherwise `turn` was called meanwhile.
        if self.is_on is before:
            self.is_on = flag
