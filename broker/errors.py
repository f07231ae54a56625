"""What can go wrong in the broker, as one tree.

BrokerError
├── RequestError             the caller's: answered as a 4xx problem by broker/api/problems.py
│   ├── InvalidRequest       a field is wrong; carries one (pointer, detail) per field
│   ├── BodyTooLarge
│   ├── NotFound             no such job, or another user's
│   ├── AlreadyFinished      a cancel came after the end
│   ├── NotRetryable         a retry of a job that did not fail
│   ├── IdTaken              the id that the client chose is in use elsewhere
│   ├── KeyReused            an id or idempotency key came again with another request
│   ├── FileTooLarge         an upload that is over the limit
│   ├── UploadIncomplete     the file is not in the bucket, or not of the size announced
│   ├── TooSlow              the body did not arrive in time
│   ├── QuotaExceeded        one job more than the user may have
│   └── RateLimited          too many requests; carries when to come again
├── Unavailable              no new job is taken at the moment, from nobody; carries the code
├── ProviderError            the provider's; none of these alone ever moves a job to `error`, but ProviderRefused
│   ├── ProviderUnreachable  nothing was accepted: the same request may be sent again
│   │   ├── ProviderHeld     it was not even sent: the breaker is open
│   │   └── ProviderPaced    too many calls of one kind: a 429, or not sent so as not to get one
│   ├── ProviderUncertain    the request may have been carried out: look for evidence before repeating it
│   └── ProviderRefused      this request will never be accepted as it is
├── StorageError             the bucket did not answer as it should
├── DatabaseError            the database cannot be opened, copied or restored
│   └── DatabaseInUse        another process has it
├── IllegalTransition              a transition that the table in models.py does not have: a bug of ours
└── StackError               a part of the embedded stack could not start or stay up
"""

#: How many wrong fields the sentence of an InvalidRequest names; `fields` has all.
TOLD_FIELDS = 10


class BrokerError(Exception):
    """Base of all errors raised by the broker itself."""


class RequestError(BrokerError):
    """The caller asked for something that cannot be done as asked."""


class InvalidRequest(RequestError):
    """Fields of the request are wrong.

    Args:
        fields: one (JSON pointer, sentence) for each wrong field.
        status: what older clients expect instead of 422.
    """

    def __init__(self, fields: list[tuple[str, str]], status: int = 422) -> None:
        told = [f"{pointer or '/'}: {detail}" for pointer, detail in fields[:TOLD_FIELDS]]
        if len(fields) > TOLD_FIELDS:
            told.append(f"and {len(fields) - TOLD_FIELDS} more")
        super().__init__("; ".join(told))
        self.fields = fields
        self.status = status


class BodyTooLarge(RequestError):
    """The request's body is over the limit."""


class NotFound(RequestError):
    """There is nothing here for this user."""


class AlreadyFinished(RequestError):
    """The job has ended, so it cannot be cancelled any more."""


class NotRetryable(RequestError):
    """Only a job that failed or was cancelled can be retried."""


class FileTooLarge(RequestError):
    """The file that a client uploaded is over the limit."""


class UploadIncomplete(RequestError):
    """The file has not arrived as it was announced."""


class TooSlow(RequestError):
    """The request's body took too long to arrive."""


class QuotaExceeded(RequestError):
    """The user has as much as one may have."""


class RateLimited(RequestError):
    """The user asks too often.

    Args:
        seconds: when the next request is welcome.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"Too many requests; come again in {seconds:.1f} s.")
        self.seconds = seconds


class Unavailable(BrokerError):
    """No new job is taken at the moment.

    Args:
        code: what the problem document says.
    """

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class IdTaken(RequestError):
    """The job id that the client chose cannot be used."""


class KeyReused(RequestError):
    """The id or idempotency key was sent before, with another request."""


class DatabaseError(BrokerError):
    """The database cannot be opened, copied or restored."""


class DatabaseInUse(DatabaseError):
    """Another process has the database open."""


class ProviderError(BrokerError):
    """The GPU provider did not do what was asked."""


class ProviderUnreachable(ProviderError):
    """The provider accepted nothing: refused connection, or an account or endpoint that needs mending."""


class ProviderHeld(ProviderUnreachable):
    """Nothing was sent, since the provider is down."""


class ProviderPaced(ProviderUnreachable):
    """The provider is there, and takes no more calls of this kind for the moment."""


class ProviderUncertain(ProviderError):
    """The provider may or may not have carried out the request: read timeout, 5xx, or an answer without sense."""


class ProviderRefused(ProviderError):
    """The provider says that this very request is wrong."""


class StorageError(BrokerError):
    """The object store failed or could not be reached."""


class IllegalTransition(BrokerError):
    """A job was asked to make a transition that it must never make."""


class StackError(BrokerError):
    """A part of the embedded stack could not start."""
