"""What can go wrong in the worker, as one tree.

WorkerError                 has a code that the broker understands, and a sentence that a user does
├── InvalidParams           the requested edit cannot be made of this video
├── SourceNotFound
├── InvalidMedia            not a video, or damaged
├── UnsupportedMedia        a video, but not one that we take
├── FileTooLarge            more bytes than the limit
├── MediaTooLarge           more pixels than the limit
├── MediaTooLong
├── TooManyStreams
├── OutputTooLarge
├── OutputTooLong
├── ExecutionTimeout        more wall-clock time than the limit
├── CpuTimeout              more CPU time than the limit
├── ModelUnavailable        the worker has no model for the export mode
├── OutOfMemory
├── StorageUnavailable      the bucket failed or could not be reached
├── Cancelled               the attempt was cancelled or superseded: stop, publish nothing
├── HandedBack              the worker must end, or is too old: another one may do the job
├── TooManyDeliveries       the workers before this one died of the job
├── JoinFailed              the parts of a result do not fit together
└── FfmpegFailed            ffmpeg ended badly: a bug of ours, or of the machine
    └── HardwareEncoderFailed   with the GPU's encoder: software may do it
"""

from schemas.jobs import ErrorCode


class WorkerError(Exception):
    """Base of all errors with a meaning.

    Args:
        sentence: the message for the user.
        detail: the output of the tools, for the log.
    """

    code = ErrorCode.INTERNAL

    def __init__(self, sentence: str, detail: str = "") -> None:
        super().__init__(sentence)
        self.detail = detail


class InvalidParams(WorkerError):
    """The edit cannot be made of this video; names the field."""

    code = ErrorCode.INVALID_PARAMS


class SourceNotFound(WorkerError):
    """The input object does not exist."""

    code = ErrorCode.SOURCE_NOT_FOUND


class InvalidMedia(WorkerError):
    """The file is not a video, or too damaged to be one."""

    code = ErrorCode.INVALID_MEDIA


class UnsupportedMedia(WorkerError):
    """The file is a video of a kind that is not taken."""

    code = ErrorCode.UNSUPPORTED_MEDIA


class FileTooLarge(WorkerError):
    """The file has more bytes than this worker takes."""

    code = ErrorCode.FILE_TOO_LARGE


class MediaTooLarge(WorkerError):
    """The picture has more pixels than this worker takes."""

    code = ErrorCode.MEDIA_TOO_LARGE


class MediaTooLong(WorkerError):
    """The video is longer than this worker takes."""

    code = ErrorCode.MEDIA_TOO_LONG


class TooManyStreams(WorkerError):
    """The file has more streams than any camera writes."""

    code = ErrorCode.TOO_MANY_STREAMS


class OutputTooLarge(WorkerError):
    """The result has become larger than this worker makes."""

    code = ErrorCode.OUTPUT_TOO_LARGE


class OutputTooLong(WorkerError):
    """The result would be longer than this worker makes."""

    code = ErrorCode.OUTPUT_TOO_LONG


class ExecutionTimeout(WorkerError):
    """The export took longer than it may."""

    code = ErrorCode.EXECUTION_TIMEOUT


class CpuTimeout(WorkerError):
    """One of the tools used more CPU time than it may."""

    code = ErrorCode.CPU_TIMEOUT


class ModelUnavailable(WorkerError):
    """The worker lacks the requested model; a plain resize never replaces it."""

    code = ErrorCode.MODEL_UNAVAILABLE


class OutOfMemory(WorkerError):
    """The device has too little memory for the job."""

    code = ErrorCode.OUT_OF_MEMORY


class StorageUnavailable(WorkerError):
    """The bucket did not answer as it should."""

    code = ErrorCode.STORAGE_UNAVAILABLE


class Cancelled(WorkerError):
    """The attempt is not wanted any more."""

    code = ErrorCode.CANCELLED


class HandedBack(WorkerError):
    """This worker ends before the job does, or is too old for it; another one may do it."""

    code = ErrorCode.WORKER_LOST


class TooManyDeliveries(WorkerError):
    """The workers of all earlier deliveries died; the job may be what kills them."""

    code = ErrorCode.WORKER_LOST


class JoinFailed(WorkerError):
    """The parts of a result do not fit together: a bug of ours, or of the machine."""

    code = ErrorCode.INTERNAL


class FfmpegFailed(WorkerError):
    """ffmpeg ended with an error that the source does not explain."""

    code = ErrorCode.INTERNAL


class HardwareEncoderFailed(FfmpegFailed):
    """The GPU's encoder ended with an error; the CPU's may do what it could not."""
