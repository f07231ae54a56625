"""The operator's overview: queue, workers, ended jobs and their cost."""

from schemas.jobs import ErrorCode, JobType, Phase, Wire


class Workers(Wire):
    """A place's workers by what they do; those that the provider has scaled away are in none of
    these. Null: the provider does not count them.
    """

    idle: int
    running: int
    starting: int | None
    throttled: int | None  #: wanted, and no GPU is free for them
    unhealthy: int | None


class Place(Wire):
    """A provider's report about one of its endpoints or functions; other brokers' jobs there count
    too.
    """

    provider: str
    target: str
    #: Null while the provider does not answer; `error` has the reason.
    queued: int | None = None
    running: int | None = None
    workers: Workers | None = None
    error: str | None = None


class Tally(Wire):
    """The jobs that ended within a time, and what they took; cost_usd is null where there is no
    price.
    """

    complete: int = 0
    error: int = 0
    cancelled: int = 0
    gpu_seconds: float = 0.0
    cost_usd: float | None = None


class Hour(Tally):
    """A clock hour; `at` is its beginning (ISO 8601)."""

    at: str


class StalledJob(Wire):
    """A job without progress for long."""

    job_id: str
    user_id: str
    type: JobType
    phase: Phase
    progress: int
    since: str


class Orphan(Wire):
    """A given-up run that may still be at the provider; the cost is the most it can be: as if it
    ran since its submit.
    """

    job_id: str
    attempt: int
    provider: str
    runpod_job_id: str | None
    modal_call_id: str | None
    given_up_at: str | None
    why: str
    seconds_at_most: int
    usd_at_most: float | None


class Fleet(Wire):
    """All users' jobs, the provider's workers, and 24 hours of what was done."""

    at: str
    draining: bool
    #: Open jobs by phase; a phase that no job is in is left out.
    open_jobs: dict[Phase, int]
    #: How long the job that has waited longest for a worker has done so.
    oldest_wait_seconds: float | None
    places: list[Place]  #: where new jobs go, the preferred one first
    today: Tally  #: since 00:00 UTC
    #: The same by the provider of each job's newest attempt.
    today_by_provider: dict[str, Tally]
    hours: list[Hour]  #: the last 24, the oldest first; the last one is not over
    error_codes: dict[ErrorCode, int]  #: of the jobs that failed within these hours
    stalled: list[StalledJob]
    orphans: list[Orphan]
