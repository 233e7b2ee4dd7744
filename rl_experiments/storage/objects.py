"""Files in a folder or on an S3 server: calls that outlast passing faults, and what errors mean."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager
from inspect import iscoroutine
from itertools import count
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import urlsplit

from rl_experiments.errors import UserError, is_storage_error, storage_error
from rl_experiments.storage.files import sha256_of, write_atomically

_PART = 16 << 20  # bytes of one part of a large file
_PARTS = 4  # in memory at once
_SLOWEST = 1 << 20  # bytes a second, below which a transfer is given up and tried again

ObjectInfo = Mapping[str, Any]  # what the file system says of an object: `size`, and `ETag` on S3


class ObjectStore:
    """All below one folder of a store."""

    def __init__(self, fs: Any, root: str, *, label: str) -> None:
        self.fs = fs
        self.root = root  # as the file system takes it
        self.label = label  # the setting and its value, as messages name it
        self.is_remote = bool(fs.async_impl)
        self.patience = 60.0  # seconds a call is tried for, besides the time for its bytes
        self.pause = 0.5  # seconds before the second try; it doubles, up to 15
        self._stopped = threading.Event()
        self._running: set[Any] = set()

    @classmethod
    def open(
        cls, url: str, below: str, *, writes: bool, setting: str, patience: float
    ) -> ObjectStore:
        """Raises a `UserError` for whatever would fail later; `setting` is what names the url."""
        fs, root, shown = _file_system(url, setting)
        objects = cls(fs, f"{root}/{below}".rstrip("/"), label=f"{setting}={shown}")
        objects.patience, retries = patience, getattr(fs, "retries", 0)
        fs.retries = 1  # s3fs's own, which take minutes; `call` has its limit
        with objects.told():
            objects.list()
        if writes:
            probe = f".probe-{os.getpid()}"
            with objects.told("it cannot be written: "):
                objects.write(probe, "may this job write here, and delete?")
                objects.remove(probe)
        objects.patience, fs.retries = 60.0, retries
        return objects

    def path(self, key: str) -> str:
        return f"{self.root}/{key}".rstrip("/")

    def list(self, under: str = "") -> dict[str, ObjectInfo]:
        """What there is, by its name below the root."""
        found = self.call("find", self.path(under), detail=True)
        return {self.fs._strip_protocol(k).removeprefix(f"{self.root}/"): found[k] for k in found}

    def read(self, key: str) -> bytes:
        return bytes(self.call("cat_file", self.path(key)))

    def write(self, key: str, text: str) -> None:
        if self.is_remote:
            self.call("pipe_file", self.path(key), text.encode())
        else:
            write_atomically(Path(self.path(key)), text)

    def remove(self, key: str) -> None:
        self.call("rm_file", self.path(key))

    def put(self, path: Path, key: str) -> None:
        options = {"chunksize": _PART, "max_concurrency": _PARTS} if self.is_remote else {}
        size = path.stat().st_size
        self.call("put_file", str(path), self.path(key), bytes_moved=size, **options)

    def get(self, key: str, path: Path, *, size: int) -> None:
        # One stream: s3fs goes on where it broke off, but starts parallel parts all over again.
        options = {"max_concurrency": 1} if self.is_remote else {}
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.call("get_file", self.path(key), str(path), bytes_moved=size, **options)
        except OSError as error:
            if _is_of_disk(error):
                error.filename = str(path)  # a write does not say where
            raise

    def copy(self, key: str, to: str, *, size: int) -> None:
        """Within the store."""
        self.call("cp_file", self.path(key), self.path(to), bytes_moved=size)

    def call(
        self, method: str | Callable[..., Any], *args: Any, bytes_moved: int = 0, **kwargs: Any
    ) -> Any:
        """A method of the file system, or a function of a coroutine, tried until its deadline.

        s3fs and botocore try again by themselves, but with no limit of time.
        """
        do: Callable[..., Any] = (
            getattr(self.fs, f"_{method}" if self.is_remote else method)
            if isinstance(method, str)
            else method
        )
        said: Exception | None = None
        deadline = time.monotonic() + self.patience + bytes_moved / _SLOWEST
        for attempt in count():
            if self._stopped.is_set():
                raise CancelledError
            try:
                return self._once(do(*args, **kwargs), deadline - time.monotonic())
            except Exception as error:
                pause = backoff(attempt, first=self.pause, longest=15)
                if _lasts(error):
                    raise
                if not (isinstance(error, TimeoutError) and said):  # that was our own impatience
                    said = error
                if time.monotonic() + pause >= deadline:
                    raise said from said.__cause__
            self._stopped.wait(pause)
        raise AssertionError

    @property
    def is_stopped(self) -> bool:
        return self._stopped.is_set()

    def stop(self) -> None:
        """End what another thread is doing here, and all that it would do."""
        self._stopped.set()
        for future in list(self._running):
            future.cancel()

    @contextmanager
    def told(self, what: str = "") -> Iterator[None]:
        """Whatever the store says becomes one line."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if self.is_remote and _is_of_disk(error):
                raise storage_error(error) from error
            raise UserError(f"{self.label}: {what}{reason(error)}") from error

    def _once(self, result: Any, limit: float) -> Any:
        if not iscoroutine(result):
            return result
        future = asyncio.run_coroutine_threadsafe(result, self.fs.loop)
        self._running.add(future)
        try:
            return future.result(max(0.1, limit))
        finally:
            future.cancel()  # nothing where it is done
            self._running.discard(future)


class Sameness:
    """Whether objects hold what local files hold, told by their ETag on S3."""

    def __init__(self) -> None:
        self._etags: dict[Path, str] = {}

    def __call__(self, path: Path, info: ObjectInfo | None) -> bool:
        if info is None or info["size"] != path.stat().st_size:
            return False
        if "ETag" not in info:
            return sha256_of(Path(info["name"])) == sha256_of(path)
        if path not in self._etags:
            self._etags[path] = _etag(path)
        return bool(info["ETag"].strip('"') == self._etags[path])


def backoff(attempt: int, *, first: float, longest: float) -> float:
    """Seconds; drawn, so that many jobs do not come back at once."""
    return min(longest, first * 2.0 ** min(attempt, 30)) * random.uniform(0.5, 1.0)


def code(error: BaseException) -> str:
    """What the S3 server calls it; empty where it was not the server that spoke."""
    for said in (error, error.__cause__):
        response = getattr(said, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def reason(error: BaseException) -> str:
    """What went wrong and what to look at; never the server's own text, which may hold secrets."""
    said, kind = code(error), type(error).__name__
    for names, line in _REASONS.items():
        if (said or kind) in names.split():
            return line.format(said or kind)
    if isinstance(error, OSError) and not said and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return f"the store says {said}" if said else f"the store cannot be used ({kind})"


# To a conditional write, rather than faults.
_ANSWERS = ("PreconditionFailed", "412", "ConditionalRequestConflict", "NotImplemented", "501")
_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
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
    "ValueError InvalidURL SSLError": "AWS_ENDPOINT_URL or the bucket's name is of no use ({})",
}


def _file_system(url: str, setting: str) -> tuple[Any, str, str]:
    """The file system, the path in it, and the url as it may be shown."""
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(f"{setting}: no credentials or options in the address; set {_KEYS}")
    if parts.scheme == "s3" and parts.netloc and ".." not in parts.path.split("/"):
        import s3fs  # type: ignore[import-untyped]  # slow to import

        fs = s3fs.S3FileSystem(
            default_block_size=_PART,
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


def _etag(path: Path) -> str:
    """As S3 has it for a file sent by `Objects.put`: an MD5.

    Under some kinds of encryption it is something else; then the file is merely sent again.
    """
    if path.stat().st_size < 2 * _PART:
        return hashlib.md5(path.read_bytes()).hexdigest()
    with path.open("rb") as file:
        parts = [hashlib.md5(part).digest() for part in iter(lambda: file.read(_PART), b"")]
    return f"{hashlib.md5(b''.join(parts)).hexdigest()}-{len(parts)}"


def _lasts(error: Exception) -> bool:
    """Whether trying again is of no use."""
    if isinstance(error, FileNotFoundError | PermissionError | ValueError | CancelledError):
        return True
    if code(error):
        return code(error) in (*_ANSWERS, "RequestTimeTooSkewed")  # botocore has set its own clock
    return is_storage_error(error) or "Credentials" in type(error).__name__


def _is_of_disk(error: Exception) -> TypeGuard[OSError]:
    """Whether it is this machine's disk that fails, and not the store."""
    return is_storage_error(error) and not code(error)
