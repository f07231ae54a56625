"""Builds the engine, for the broker, for an operator's commands, and for tests."""

from collections.abc import Callable
from dataclasses import dataclass

from broker.bucket import Bucket
from broker.clock import now_ms
from broker.engine.apply import Applier
from broker.engine.dispatch import Dispatch
from broker.engine.drain import DrainSwitch
from broker.engine.listing import Listings
from broker.engine.observe import Observer
from broker.engine.orphans import Orphans
from broker.engine.reconciler import Reconciler
from broker.engine.sources import Sources
from broker.jobs.decide import Rules
from broker.providers.registry import Providers
from broker.settings import Settings
from broker.store.jobs import JobStore
from broker.store.uploads import UploadStore


@dataclass(frozen=True)
class Core:
    """The parts that the scheduler and the service use."""

    drain: DrainSwitch
    listings: Listings
    reconciler: Reconciler
    orphans: Orphans


def make_core(
    settings: Settings,
    store: JobStore,
    uploads: UploadStore,
    bucket: Bucket,
    providers: Providers,
    clock: Callable[[], int] = now_ms,
    on_reconcile: Callable[[float], None] = lambda late: None,
) -> Core:
    """Builds the engine.

    Args:
        clock: milliseconds since the epoch; tests bring their own.
        on_reconcile: called with how many seconds after its due time each job is reconciled.
    """
    rules = Rules(
        submit_grace=settings.submit_grace_seconds,
        lost_after=settings.lost_after_seconds,
        cancel_grace=settings.cancel_grace_seconds,
        stalled_after=settings.stalled_after_seconds,
        unreachable_after=settings.unreachable_after_seconds,
    )
    drain = DrainSwitch(store)
    listings = Listings(store, bucket, clock)
    observer = Observer(bucket, listings, providers, rules, clock)
    sources = Sources(uploads, bucket, settings.max_upload_bytes)
    dispatch = Dispatch(settings, sources, providers, clock)
    applier = Applier(
        store, bucket, providers, observer, dispatch, rules, settings.gpu_prices, clock
    )
    return Core(
        drain,
        listings,
        Reconciler(store, observer, applier, drain, rules, clock, on_reconcile),
        Orphans(store, observer, providers, clock),
    )
