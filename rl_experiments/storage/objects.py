"""Files in a folder or on an S3 server, by fsspec: retried for a limited time, errors in one line.

No other module knows fsspec; the conditions of S3's writes are known to `checkpoints.lease` alone.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from inspect import iscoroutine
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import urlsplit

from rl_experiments.errors import UserError
from rl_experiments.retry import RetryPolicy
from rl_experiments.storage.disk_errors import disk_error, is_disk_error
from rl_experiments.storage.files import write_atomically

_PATIENCE_SECONDS = 60.0
_PART_BYTES = 16 << 20  # of a large file, which is sent in parts
_PARTS_IN_MEMORY = 4
_SLOWEST_BYTES_PER_SECOND = 1 << 20  # a slower transfer is given up and tried again

ObjectInfo = Mapping[str, Any]  # what fsspec knows of an object; `size` in bytes is always there


class ObjectStore:
    """The objects below one folder of a store, by their names relative to it."""

    def __init__(self, fs: Any, root: str, *, label: str) -> None:
        self.fs = fs
        self.root = root  # the folder, as the file system names it
        self.label = label  # the setting and its value, for messages
        self.is_remote = bool(fs.async_impl)
        # How long a call is tried for, besides the time that the bytes it moves may take.
        self.patience_seconds = _PATIENCE_SECONDS
        self.first_pause_seconds = 0.5  # before a call is tried again; it doubles
        self._stopped = threading.Event()
        self._running: set[Any] = set()

    @classmethod
    def open(
        cls, url: str, below: str, *, writes: bool, setting: str, patience_seconds: float
    ) -> ObjectStore:
        """Return the folder `below` of the store at `url`, after a test that it can be used.

        `setting` is the name of the setting that holds the url. Raises a `UserError` that says
        what is wrong, within about `patience_seconds`.
        """
        fs, root, shown = _file_system(url, setting)
        objects = cls(fs, f"{root}/{below}".rstrip("/"), label=f"{setting}={shown}")
        objects.patience_seconds, retries = patience_seconds, getattr(fs, "retries", 0)
        fs.retries = 1  # s3fs's own retries take minutes; `call` keeps to its limit
        with objects.as_user_error():
            objects.list()
        if writes:
            probe = f".probe-{os.getpid()}"
            with objects.as_user_error("it cannot be written: "):
                objects.write(probe, "a test whether this job may write and delete here")
                objects.remove(probe)
        objects.patience_seconds, fs.retries = _PATIENCE_SECONDS, retries
        return objects

    def path(self, key: str) -> str:
        """Return where an object is, as the file system names it."""
        return f"{self.root}/{key}".rstrip("/")

    def list(self, under: str = "") -> dict[str, ObjectInfo]:
        """Return the objects in a folder and below, by their names relative to the root."""
        infos = self.call("find", self.path(under), detail=True)
        prefix = f"{self.root}/"
        return {self.fs._strip_protocol(k).removeprefix(prefix): v for k, v in infos.items()}

    def read(self, key: str) -> bytes:
        """Return the content of an object."""
        return bytes(self.call("cat_file", self.path(key)))

    def write(self, key: str, text: str) -> None:
        """Create or replace an object, in one step."""
        if self.is_remote:
            self.call("pipe_file", self.path(key), text.encode())
        else:
            write_atomically(Path(self.path(key)), text)

    def remove(self, key: str) -> None:
        """Delete an object."""
        self.call("rm_file", self.path(key))

    def put(self, path: Path, key: str) -> None:
        """Upload a file."""
        in_parts = {"chunksize": _PART_BYTES, "max_concurrency": _PARTS_IN_MEMORY}
        options = in_parts if self.is_remote else {}
        size = path.stat().st_size
        self.call("put_file", str(path), self.path(key), bytes_moved=size, **options)

    def get(self, key: str, path: Path, *, size: int) -> None:
        """Download an object of `size` bytes to a file."""
        # As one stream: s3fs goes on where it broke off, but starts parallel parts all over again.
        options = {"max_concurrency": 1} if self.is_remote else {}
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.call("get_file", self.path(key), str(path), bytes_moved=size, **options)
        except OSError as error:
            if _is_of_local_disk(error):
                error.filename = str(path)  # a failed write does not name its file
            raise

    def call(
        self, method: str | Callable[..., Any], *args: Any, bytes_moved: int = 0, **kwargs: Any
    ) -> Any:
        """Call a method of the file system by name, or a coroutine function, until it succeeds.

        It is given up after `patience_seconds`, and some more for the bytes that it moves. s3fs
        and botocore try again by themselves, but without a limit of time. Where the credentials
        are refused, they are read once more: those of a file may have been renewed.
        """
        if callable(method):
            function = method
        else:
            function = getattr(self.fs, f"_{method}" if self.is_remote else method)
        limit_seconds = self.patience_seconds + bytes_moved / _SLOWEST_BYTES_PER_SECOND
        deadline = time.monotonic() + limit_seconds
        answer: Exception | None = None  # the latest error that is no time-out of ours

        def try_once() -> Any:
            return self._wait_for(function(*args, **kwargs), deadline - time.monotonic())

        def attempt() -> Any:
            nonlocal answer
            if self.is_stopped:
                raise CancelledError
            try:
                try:
                    return try_once()
                except Exception as error:
                    if not self._reads_credentials_again(error, deadline - time.monotonic()):
                        raise
                    answer = error
                    return try_once()
            except TimeoutError as error:
                raise answer or error  # noqa: B904  # an earlier answer says more than our limit
            except Exception as error:
                answer = error
                raise

        policy = RetryPolicy(
            first_pause_seconds=self.first_pause_seconds,
            limit_seconds=limit_seconds,
            is_temporary=lambda error: not _is_final(error),
        )
        return policy.call(attempt, sleep=self._stopped.wait)

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Cancel the calls of other threads, those under way and those to come."""
        self._stopped.set()
        for future in list(self._running):
            future.cancel()

    @contextmanager
    def as_user_error(self, prefix: str = "") -> Iterator[None]:
        """Turn whatever error the store raises inside the block into a `UserError` of one line."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if self.is_remote and _is_of_local_disk(error):
                raise disk_error(error) from error
            raise UserError(f"{self.label}: {prefix}{reason_of(error)}") from error

    def _reads_credentials_again(self, error: Exception, limit_seconds: float) -> bool:
        """Begin a session with the credentials of now, if the old ones may have expired."""
        if not hasattr(self.fs, "set_session") or not _may_be_of_credentials(error):
            return False
        with suppress(Exception):  # then it is the call that fails
            self._wait_for(self.fs.set_session(refresh=True), limit_seconds)
        return True

    def _wait_for(self, result: Any, limit_seconds: float) -> Any:
        if not iscoroutine(result):
            return result
        future = asyncio.run_coroutine_threadsafe(result, self.fs.loop)
        self._running.add(future)
        try:
            return future.result(max(0.1, limit_seconds))
        finally:
            future.cancel()  # has no effect if it is done
            self._running.discard(future)


def error_code(error: BaseException) -> str:
    """Return the S3 server's code of the error; "" if the error is not an answer of the server."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def reason_of(error: BaseException) -> str:
    """Return what went wrong and what to look at.

    The server's own text is never in it, since that may hold secrets.
    """
    code, kind = error_code(error), type(error).__name__
    for names, line in _REASONS.items():
        if (code or kind) in names.split():
            return line.format(code or kind)
    if isinstance(error, OSError) and not code and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return f"the store answers {code}" if code else f"the store cannot be used ({kind})"


# Answers to a conditional PUT, not failures.
_CONDITION_CODES = (
    *("PreconditionFailed", "412", "ConditionalRequestConflict", "NotImplemented", "501"),
)
_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_CREDENTIAL_CODES = (
    *("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"),
    *("InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity"),
    *("AccessDenied", "400", "401", "403"),
)
# By the server's codes or the names of exceptions: what a user can do about it.
_REASONS = {
    "NoSuchBucket": "there is no such bucket",
    "InvalidAccessKeyId SignatureDoesNotMatch InvalidToken ExpiredToken": (
        f"the store refuses the credentials ({{}}); see {_KEYS}"
    ),
    "NoCredentialsError PartialCredentialsError": f"no credentials were found; set {_KEYS}",
    "RequestTimeTooSkewed": "the clock of this machine is wrong ({}); set it",
    "AccessDenied AllAccessDisabled MethodNotAllowed 403 405": (
        f"these credentials may not read and write here ({{}}); see {_KEYS}, and what they permit"
    ),
    "AuthorizationHeaderMalformed PermanentRedirect IllegalLocationConstraintException 301": (
        "the bucket is in another region ({}); see AWS_DEFAULT_REGION"
    ),
    "EndpointConnectionError ConnectTimeoutError ReadTimeoutError TimeoutError ConnectionError "
    "ClientConnectorError ConnectionClosedError HTTPClientError": (
        "the store does not answer ({}); see AWS_ENDPOINT_URL and the network"
    ),
    "ValueError InvalidURL SSLError": (
        "AWS_ENDPOINT_URL or the bucket's name is not a valid one ({})"
    ),
}


def _file_system(url: str, setting: str) -> tuple[Any, str, str]:
    """Return the file system, the path in it, and the url as it may be shown."""
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(f"{setting}: no credentials or options in the address; set {_KEYS}")
    if parts.scheme == "s3" and parts.netloc and ".." not in parts.path.split("/"):
        import s3fs  # type: ignore[import-untyped]  # slow to import

        fs = s3fs.S3FileSystem(
            default_block_size=_PART_BYTES,
            use_listings_cache=False,
            skip_instance_cache=True,  # the variables may have changed
            config_kwargs={"retries": {"mode": "standard", "total_max_attempts": 4}},
        )
        return fs, f"{parts.netloc}/{parts.path.strip('/')}".rstrip("/"), url
    if url and parts.scheme in ("", "file"):
        from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

        path = Path(parts.path if parts.scheme else url).expanduser().absolute()
        return LocalFileSystem(auto_mkdir=True), str(path), str(path)
    raise UserError(f"{setting}={url}: give a folder or s3://bucket/prefix")


def _is_final(error: Exception) -> bool:
    """Return whether trying again cannot help."""
    if isinstance(error, FileNotFoundError | PermissionError | ValueError | CancelledError):
        return True
    code = error_code(error)
    if code:
        # After the first RequestTimeTooSkewed, botocore has corrected for the clock by itself.
        return code in (*_CONDITION_CODES, "RequestTimeTooSkewed")
    return is_disk_error(error) or "Credentials" in type(error).__name__


def _may_be_of_credentials(error: Exception) -> bool:
    """Return whether other credentials might succeed; an answer to HEAD has no reason."""
    kind = type(error).__name__
    return error_code(error) in _CREDENTIAL_CODES or "Credential" in kind or "Token" in kind


def _is_of_local_disk(error: Exception) -> TypeGuard[OSError]:
    """Return whether it is this machine's disk that fails, and not the store."""
    return is_disk_error(error) and not error_code(error)
