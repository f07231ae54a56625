"""The worker's log: one line of key=value pairs an event, to standard error."""

import sys

import structlog


def log_lines() -> None:
    """Configures the log of this process."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("action"),
            structlog.processors.LogfmtRenderer(
                key_order=["timestamp", "level", "action"], drop_missing=True
            ),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
