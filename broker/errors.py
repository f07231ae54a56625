"""The broker's errors, as one tree.

BrokerError
├── RequestError             the caller's; broker/api/problems.py answers a 4xx problem
│   ├── InvalidRequest       fields are wrong; has one (pointer, detail) for each
│   ├── BodyTooLarge
│   ├── NotFound             no such job, or another user's
│   ├── AlreadyFinished      a cancel came after the end
│   ├── NotRetryable         a retry of a job that did not fail
│   ├── IdTaken              the id that the client chose is in use
│   ├── KeyReused            an id or idempotency key came again with another request
│   ├── FileTooLarge         an upload that is over the limit
│   ├── UploadIncomplete     the file is not in the bucket, or has another size
│   ├── TooSlow              the body did not arrive in time
│   ├── QuotaExceeded        one job more than the user may have
│   └── RateLimited          too many requests; has the seconds to wait
├── Unavailable              the broker accepts no new jobs from anybody; has the code
├── ProviderError            the provider's; only ProviderRefused alone ends a job in `error`
│   ├── ProviderUnreachable  nothing was accepted: the same request may be sent again
│   │   ├── ProviderNotReady the account, the key or the place is wrong: an operator must act
│   │   ├── ProviderHeld     nothing was sent: the breaker is open
│   │   └── ProviderPaced    too many calls of one kind: a 429, or not sent to avoid one
│   ├── ProviderUncertain    the request may have been carried out: do not repeat it blindly
│   └── ProviderRefused      the provider will never accept this request
├── StorageError             the bucket failed
├── DatabaseError            the database cannot be opened, copied or restored
│   └── DatabaseInUse        another process has it
├── IllegalTransition        a transition that jobs/model.py does not allow: a bug
└── StackError               a part of the embedded stack could not start or stay up
"""

#: How many wrong fields the message of an InvalidRequest names; `fields` has all.
NAMED_FIELDS = 10


class BrokerError(Exception):
    """Base of all errors that the broker raises."""


class RequestError(BrokerError):
    """The request cannot be carried out as it is."""


class InvalidRequest(RequestError):
    """Fields of the request are wrong.

    Args:
        fields: one (JSON pointer, sentence) for each wrong field.
        status: for older clients, another one than 422.
    """

    def __init__(self, fields: list[tuple[str, str]], status: int = 422) -> None:
        named = [f"{pointer or '/'}: {detail}" for pointer, detail in fields[:NAMED_FIELDS]]
        if len(fields) > NAMED_FIELDS:
            named.append(f"and {len(fields) - NAMED_FIELDS} more")
        super().__init__("; ".join(named))
        self.fields = fields
        self.status = status


class BodyTooLarge(RequestError):
    """The request's body is over the limit."""


class NotFound(RequestError):
    """The user has no such job or object."""


class AlreadyFinished(RequestError):
    """The job has ended, so it cannot be cancelled."""


class NotRetryable(RequestError):
    """Only a job that failed or was cancelled can be retried."""


class FileTooLarge(RequestError):
    """The uploaded file is over the limit."""


class UploadIncomplete(RequestError):
    """The file is not in the bucket, or has another size than announced."""


class TooSlow(RequestError):
    """The request's body took too long to arrive."""


class QuotaExceeded(RequestError):
    """The user has used up the quota."""


class RateLimited(RequestError):
    """The user sends too many requests.

    Args:
        seconds: until the next request is allowed.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"Too many requests; come again in {seconds:.1f} s.")
        self.seconds = seconds


class Unavailable(BrokerError):
    """The broker accepts no new jobs at the moment.

    Args:
        code: of the problem document.
    """

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class IdTaken(RequestError):
    """The job id that the client chose cannot be used."""


class KeyReused(RequestError):
    """The id or idempotency key came before with another request."""


class DatabaseError(BrokerError):
    """The database cannot be opened, copied or restored."""


class DatabaseInUse(DatabaseError):
    """Another process has the database open."""


class ProviderError(BrokerError):
    """A call to the GPU provider failed."""


class ProviderUnreachable(ProviderError):
    """The provider accepted nothing: no connection, or a wrong account or endpoint."""


class ProviderNotReady(ProviderUnreachable):
    """The provider is up, and takes nothing until an operator changes the account or the settings.

    The message is one clause for users and operators alike, without the provider's own text.
    """


class ProviderHeld(ProviderUnreachable):
    """Nothing was sent, because the last calls failed.

    Args:
        cause: the error of the last call.
    """

    def __init__(self, message: str, cause: ProviderError | None = None) -> None:
        super().__init__(message)
        self.cause = cause


class ProviderPaced(ProviderUnreachable):
    """The provider is up, and takes no more calls of this kind for the moment."""


class ProviderUncertain(ProviderError):
    """The provider may have carried out the request: read timeout, 5xx, or a malformed answer."""


class ProviderRefused(ProviderError):
    """The provider will never accept this request."""


class StorageError(BrokerError):
    """The object store failed or could not be reached."""


class IllegalTransition(BrokerError):
    """A transition that a job must never make."""


class StackError(BrokerError):
    """A part of the embedded stack could not start."""
