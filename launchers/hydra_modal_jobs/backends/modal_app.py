"""Jobs on Modal: one app for a launch, one function for each kind of container."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import modal
from modal import exception

from hydra_modal_jobs import bundle as _source
from hydra_modal_jobs.config import ImageConf, ModalJobsConf
from hydra_modal_jobs.errors import LaunchRefused
from hydra_modal_jobs.jobs.job import CONTROL, DAY, Job
from hydra_modal_jobs.manifest import name_of
from hydra_modal_jobs.names import app_name, volume_names
from hydra_modal_jobs.plan import gpu_words
from hydra_modal_jobs.secrets import Secrets

T = TypeVar("T")

# The service does not answer now, which says nothing about the jobs.
UNREACHABLE = (
    exception.ConnectionError,
    exception.InternalError,
    exception.ResourceExhaustedError,
    exception.ServiceError,
)
_PATIENCE = 10.0  # seconds for the first answer
_MOST_RETRIES = 10
_NEEDED = ("hydra-core", "omegaconf", "python-dotenv", "cloudpickle")  # in a container
_STAYS = ("attempt.json", "outcome.json", "stop")  # between the supervisor and its job


@dataclass(frozen=True)
class App:
    """What was deployed."""

    id: str
    name: str
    url: str


def check_resources(job: Job) -> None:
    """What Modal would refuse late, or take silently for something else."""
    settings = job.settings
    if settings.gpu_count < 1 or settings.gpu_count > 8:
        raise LaunchRefused(f"hydra.launcher.gpu_count={settings.gpu_count}: from 1 to 8")
    if settings.gpu is None and settings.gpu_count > 1:
        raise LaunchRefused(f"hydra.launcher.gpu_count={settings.gpu_count}: name the gpu as well")
    for name in ("cpu", "memory"):
        value = getattr(settings, name)
        if value is not None and value <= 0:
            raise LaunchRefused(f"hydra.launcher.{name}={value}: must be above 0")
    if settings.timeout < 1:
        raise LaunchRefused(f"hydra.launcher.timeout={settings.timeout}: at least 1 second")
    if not 0 <= retries(settings) <= _MOST_RETRIES:
        raise LaunchRefused(
            f"hydra.launcher.retries={settings.retries}: from 0 to {_MOST_RETRIES}, each day of "
            "hydra.launcher.timeout after the first counted as one"
        )
    for path in (settings.volumes.cache, settings.volumes.outputs):
        refused = path in ("/", "/root", "/tmp") or os.path.normpath(path) != path
        if refused or not path.startswith("/"):
            raise LaunchRefused(f"hydra.launcher.volumes: nothing can be mounted at {path}")
    python, needed = settings.image.python or _python(), job.payload["task"].get("python")
    if needed and needed != python:
        raise LaunchRefused(
            f"hydra.launcher.image.python={python}: the job's function has no name to import it "
            f"by, and by value it needs Python {needed}"
        )


def retries(settings: ModalJobsConf) -> int:
    """Modal's retries of a call: those asked for, and the attempts that a long job is made of."""
    return settings.retries + -(-settings.timeout // DAY) - 1


def remote_folder(job: Job) -> PurePosixPath:
    """Where a job's files are in the container."""
    run = name_of(job.sweep_folder)
    return PurePosixPath(job.settings.volumes.outputs) / run / str(job.payload["subdir"])


def outputs_volume(settings: ModalJobsConf) -> str:
    return volume_names(settings)[settings.volumes.outputs]


def _sent(job: Job) -> dict[str, Any]:
    """The payload with the folders of the container."""
    sweep = str(PurePosixPath(job.settings.volumes.outputs) / name_of(job.sweep_folder))
    volume = outputs_volume(job.settings)
    return {**job.payload, "dir": sweep, "outputs_volume": volume}


def refuse_taken(jobs: Sequence[Job]) -> None:
    """Refuse to mix with files of another run of the same name."""
    there: dict[tuple[str, str], set[str]] = {}
    for job in jobs:
        volume, run = outputs_volume(job.settings), name_of(job.sweep_folder)
        if (volume, run) not in there:
            there[volume, run] = _names_in(volume, run)
        if _first(job) in there[volume, run]:
            raise LaunchRefused(
                f"{remote_folder(job)} of the volume {volume} holds a run of this name already; "
                "take another name, or resume it"
            )


def _names_in(volume: str, folder: str) -> set[str]:
    with _explained():
        try:
            entries = modal.Volume.from_name(volume).listdir(folder)
        except exception.NotFoundError:
            return set()
    return {PurePosixPath(entry.path).name for entry in entries}


def start(
    jobs: Sequence[Job], secrets: Secrets, *, batch: int, note: Callable[[App, Job, str], None]
) -> None:
    """Deploy an app, which outlives this process, and queue every job in it.

    `note` is told of each call as soon as it is made. If anything fails, nothing goes on.
    """
    settings = jobs[0].settings
    run = name_of(jobs[0].sweep_folder)
    name = app_name(settings, f"{run}-{batch}" if batch else run)
    app = modal.App(name, include_source=False, tags={"run": name[-63:]})
    image = _image(jobs)
    functions: dict[str, Any] = {}
    kinds = _kinds(jobs)
    parallel = _parallel(kinds, settings.max_parallel)
    from hydra_modal_jobs.worker import container as _container

    for kind, members in kinds.items():
        options = _options(members[0].settings, secrets)
        options["max_containers"] = parallel.get(kind)
        functions[kind] = app.function(name=kind, image=image, **options)(_container.run)
    _refuse_live(name)
    with _explained():
        with modal.enable_output() if sys.stdout.isatty() else nullcontext():
            app.deploy(name=name)  # an image may take minutes to build
        deployed = App(str(app.app_id), name, app.get_dashboard_url())
        try:
            for kind, members in kinds.items():
                for job in members:
                    note(deployed, job, functions[kind].spawn(_sent(job)).object_id)
        except BaseException:
            stop(deployed.id)
            raise


def stop(app_id: str) -> None:
    """Take the app away; what runs in it is ended."""
    with suppress(exception.NotFoundError):
        modal.App.lookup(app_id).stop()


def pull(
    volume: str, remote: PurePosixPath, folder: Path, *, skip: str | None, mount: str
) -> list[str]:
    """Fetch a job's files into its folder here: those that are new or of another size.

    `skip` is a pattern of what stays there. Returns the names of the files fetched.
    """
    handle = modal.Volume.from_name(volume)
    inside = remote.relative_to(mount)
    try:
        entries = list(handle.iterdir(str(inside), recursive=True))
    except exception.NotFoundError:
        return []
    fetched = []
    for entry in entries:
        name = PurePosixPath(entry.path).relative_to(inside)
        target = folder / name
        if entry.type.name != "FILE" or (skip and _matches(name, skip)):
            continue
        if name.parts[0] == CONTROL and name.name in _STAYS:
            continue
        here = target.stat() if target.exists() else None
        if here and here.st_size == entry.size and here.st_mtime >= entry.mtime:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        building = target.with_name(f".{target.name}.{os.getpid()}")
        with building.open("wb") as file:
            for chunk in handle.read_file(entry.path) if entry.size else ():
                file.write(chunk)
        building.replace(target)
        fetched.append(str(name))
    return fetched


def _matches(name: PurePosixPath, pattern: str) -> bool:
    top = pattern.partition("/")[0]
    return name.parts[0] == top if "*" not in top else name.match(pattern)


def _first(job: Job) -> str:
    return Path(job.payload["subdir"]).parts[0]


def _kinds(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """The jobs by the container that they need, each with a name for its function."""
    kinds: dict[str, list[Job]] = {}
    keys: dict[Any, str] = {}
    for job in jobs:
        s = job.settings
        key = (
            *(s.gpu, tuple(s.gpu_fallback), s.gpu_count),
            *(s.cpu, s.memory, s.timeout, s.retries, s.region),
        )
        if key not in keys:
            word = gpu_words(job).lower().replace(":", "x").replace("/", "-").replace("!", "")
            taken = sum(name.startswith(word) for name in kinds)
            keys[key] = f"{word}-{taken + 1}" if taken else word
        kinds.setdefault(keys[key], []).append(job)
    return kinds


def _parallel(kinds: dict[str, list[Job]], most: int | None) -> dict[str, int]:
    """How many containers each function may have, so that all have no more than asked for."""
    if most is None:
        return {}
    if most < len(kinds):
        raise LaunchRefused(
            f"hydra.launcher.max_parallel={most}: the jobs need {len(kinds)} kinds of container, "
            f"each at least one at a time; give {len(kinds)} or more, or launch them apart"
        )
    shares = dict.fromkeys(kinds, 1)
    for _ in range(most - len(kinds)):
        neediest = max(kinds, key=lambda kind: len(kinds[kind]) / shares[kind])
        shares[neediest] += 1
    return shares


def _options(settings: ModalJobsConf, secrets: Secrets) -> dict[str, Any]:
    """A function's options, in the exact types that the client does not take for others."""
    count = f":{settings.gpu_count}" if settings.gpu_count > 1 else ""
    kinds = [settings.gpu, *settings.gpu_fallback] if settings.gpu else []
    gpus = [f"{kind}{count}" for kind in kinds]
    named = [modal.Secret.from_name(name) for name in settings.secrets.modal]
    own = [modal.Secret.from_dict(dict(secrets.values()))] if secrets.names else []
    options: dict[str, Any] = {
        "timeout": min(settings.timeout, DAY),
        "startup_timeout": 1800,  # a large image, a slow registry
        "retries": modal.Retries(
            max_retries=retries(settings), initial_delay=1.0, backoff_coefficient=2.0
        ),
        "secrets": [*named, *own],
        "volumes": {
            path: modal.Volume.from_name(name, create_if_missing=True)
            for path, name in volume_names(settings).items()
        },
    }
    if gpus:
        options["gpu"] = gpus if len(gpus) > 1 else gpus[0]
    if settings.cpu is not None:
        options["cpu"] = float(settings.cpu)
    if settings.memory is not None:
        options["memory"] = int(settings.memory)
    if settings.region:
        options["region"] = settings.region
    return options


def _image(jobs: Sequence[Job]) -> Any:
    images, cache = [job.settings.image for job in jobs], jobs[0].settings.volumes.cache
    conf, *others = [replace(image, pip=[], pip_no_deps=[]) for image in images]
    different = next((job for job, o in zip(jobs[1:], others, strict=True) if o != conf), None)
    pip = dict.fromkeys(name for image in images for name in image.pip)
    pip_no_deps = dict.fromkeys(name for image in images for name in image.pip_no_deps)
    if different is not None:
        raise LaunchRefused(
            f"hydra.launcher.image: job {different.num} has another image than job {jobs[0].num}; "
            "a launch has one"
        )
    image = _base(conf)
    if conf.apt:
        image = image.apt_install(*conf.apt)
    if conf.requirements:
        if not Path(conf.requirements).is_file():
            raise LaunchRefused(
                f"hydra.launcher.image.requirements={conf.requirements}: no such file"
            )
        image = image.uv_pip_install(requirements=[conf.requirements])
    # The versions here, unless the requirements have their own: what is installed stays.
    needed = [name if conf.requirements else f"{name}=={version(name)}" for name in _NEEDED]
    image = image.uv_pip_install(*needed, *pip)
    if pip_no_deps:
        image = image.uv_pip_install(*pip_no_deps, extra_options="--no-deps")
    image = image.env(
        {
            "HF_HOME": f"{cache}/huggingface",
            "PIP_CACHE_DIR": f"{cache}/pip",
            "UV_CACHE_DIR": f"{cache}/uv",
            "XDG_CACHE_HOME": cache,
            "VLLM_CACHE_ROOT": f"{cache}/vllm",
            "TORCHINDUCTOR_CACHE_DIR": f"{cache}/torchinductor",
            "TRITON_CACHE_DIR": f"{cache}/triton",
            "PYTHONUNBUFFERED": "1",
            **conf.env,
        }
    )
    for path, remote in _source.sources(list(jobs)).items():
        if path.is_file():
            image = image.add_local_file(path, str(remote))
            continue
        config = _source.is_config(path, list(jobs))
        ignore = _source.not_config if config else _source.ignored
        image = image.add_local_dir(path, str(remote), ignore=ignore)
    return image


def _base(conf: ImageConf) -> Any:
    python = conf.python or _python()
    if conf.base:
        return modal.Image.from_registry(conf.base, add_python=python)
    return modal.Image.debian_slim(python_version=python)


def _python() -> str:
    return ".".join(map(str, sys.version_info[:2]))


def _refuse_live(name: str) -> None:
    """A deployed app of the same name is somebody's run that goes on."""
    with _explained():
        try:
            modal.App.lookup(name)
        except exception.NotFoundError:
            return
    raise LaunchRefused(
        f"an app {name} is deployed already: another run of this name; take another name"
    )


@contextmanager
def _explained() -> Iterator[None]:
    """What the service says, as one line that names what to change."""
    try:
        yield
    except exception.AuthError as error:
        line = f"Modal does not know this account ({error}); run: modal token new"
    except UNREACHABLE as error:
        line = f"Modal cannot be reached ({error}); nothing was started"
    except exception.ImageBuildError as error:
        line = (
            f"hydra.launcher.image: the image could not be built: {error} "
            f"(its log: modal image logs {error.image_id})"
        )
    except exception.NotFoundError as error:
        line = f"{error} (hydra.launcher.secrets.modal names Modal secrets)"
    except exception.InvalidError as error:
        word = "hydra.launcher.gpu: " if "gpu" in str(error).lower() else ""
        line = f"{word}{error}"
    except exception.Error as error:
        line = f"Modal refused: {error}"
    else:
        return
    raise LaunchRefused(" ".join(line.split()))


def check_account() -> None:
    """Whether there is an account to run jobs with, before anything else is done."""
    config = modal.config.config
    if not (config.get("token_id") and config.get("token_secret")):
        raise LaunchRefused("no Modal account is set up; run: modal token new (or use gpu=local)")
    with _explained():
        within(_PATIENCE, lambda: modal.Client.from_env().hello())


def within(seconds: float, ask: Callable[[], T]) -> T:
    """What the service answers; the client itself tries for a minute to reach it."""
    answers: queue.SimpleQueue[T | BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put(ask())
        except BaseException as error:
            answers.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise exception.ConnectionError(f"no answer in {seconds:.0f} s") from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def cancel(call: str) -> None:
    """End a job; it is interrupted first, so that it can say its last."""
    modal.FunctionCall.from_id(call).cancel()


def is_pending(call: str) -> bool:
    try:
        modal.FunctionCall.from_id(call).get(timeout=0)
    except TimeoutError:
        return True
    except (Exception, SystemExit):
        return False
    return False


def read(entry: dict[str, Any], name: str) -> str:
    """A file of a job on its volume, as it is now; empty if there is none yet."""
    path = PurePosixPath(entry["remote"]).relative_to(entry["mount"]) / name
    try:
        chunks = list(modal.Volume.from_name(entry["volume"]).read_file(str(path)))
    except (FileNotFoundError, exception.NotFoundError):
        return ""
    return b"".join(chunks).decode(errors="replace")
