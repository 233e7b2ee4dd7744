"""The Modal app of a launch: one function for each kind of container, one call for each job."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import modal
from modal import exception

from hydra_modal_jobs.backends.modal_errors import (
    ANSWER_SECONDS,
    as_refusal,
    ends_call,
    within,
)
from hydra_modal_jobs.backends.modal_image import build_image, python_version, refuse_other_images
from hydra_modal_jobs.backends.modal_volume import outputs_volume
from hydra_modal_jobs.config import ModalJobsConf
from hydra_modal_jobs.errors import LaunchRefused
from hydra_modal_jobs.jobs.job import Job, gpu_label
from hydra_modal_jobs.manifest import run_name
from hydra_modal_jobs.names import app_name, volume_names
from hydra_modal_jobs.prices import GPUS, max_gpu_count
from hydra_modal_jobs.secrets import Secrets

DAY_SECONDS = 86400  # Modal's limit of an attempt
_IMAGE_START_SECONDS = 1800  # a large image, a slow registry
_MAX_RETRIES = 10  # Modal's limit


@dataclass(frozen=True)
class App:
    """A deployed app; `url` is its page."""

    id: str
    name: str
    url: str


def check_resources(job: Job) -> None:
    """Refuse what Modal would refuse late, or take silently for something else."""
    settings = job.settings
    _check_gpus(settings)
    requirements = settings.image.requirements
    if requirements and not Path(requirements).is_file():
        raise LaunchRefused(f"hydra.launcher.image.requirements={requirements}: no such file")
    for name in ("cpu", "memory"):
        value = getattr(settings, name)
        if value is not None and value <= 0:
            raise LaunchRefused(f"hydra.launcher.{name}={value}: must be above 0")
    if settings.timeout < 1:
        raise LaunchRefused(f"hydra.launcher.timeout={settings.timeout}: at least 1 second")
    if not 0 <= _call_retries(settings) <= _MAX_RETRIES:
        raise LaunchRefused(
            f"hydra.launcher.retries={settings.retries}: from 0 to {_MAX_RETRIES}, where each day "
            "of hydra.launcher.timeout after the first counts as one"
        )
    for path in (settings.volumes.cache, settings.volumes.outputs):
        is_reserved = path in ("/", "/root", "/tmp") or os.path.normpath(path) != path
        if is_reserved or not path.startswith("/"):
            raise LaunchRefused(f"hydra.launcher.volumes: nothing can be mounted at {path}")
    python, needed = python_version(settings.image), job.payload["task"].get("python")
    if needed and needed != python:
        raise LaunchRefused(
            f"hydra.launcher.image.python={python}: the job's function cannot be imported by name, "
            f"and pickled it needs Python {needed}"
        )


def check_together(jobs: Sequence[Job]) -> None:
    """Refuse jobs that cannot be in one launch."""
    refuse_other_images(jobs)
    _parallel(_container_kinds(jobs), jobs[0].settings.max_parallel)


def check_account() -> None:
    """Refuse a launch without a Modal account that answers."""
    if not has_account():
        raise LaunchRefused("no Modal account is set up; run: modal token new (or use gpu=local)")
    with as_refusal():
        within(ANSWER_SECONDS, hello)


def hello() -> None:
    """Ask the service for an answer. Raises an error of Modal's if there is none."""
    if not has_account():
        raise exception.AuthError("no Modal account is set up; run: modal token new")
    modal.Client.from_env().hello()


def has_account() -> bool:
    """Return whether this machine has the token of an account."""
    config = modal.config.config
    return bool(config.get("token_id") and config.get("token_secret"))


class Launch:
    """An app that is deployed for the jobs of a launch, and outlives this process.

    `note_app` gets the app before a job is queued in it, `note_call` each call as soon as there
    is one.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        secrets: Secrets,
        *,
        note_app: Callable[[App], None],
        note_call: Callable[[Job, str], None],
    ) -> None:
        run, batch = run_name(jobs[0].sweep_folder), jobs[0].num
        self.name = app_name(jobs[0].settings, f"{run}-{batch}" if batch else run)
        self._jobs = jobs
        self._secrets = secrets
        self._note_app = note_app
        self._note_call = note_call
        self._is_deploying = False
        self.is_queueing = False  # from here on there may be jobs that cost money

    def start(self, *, is_stopped: Callable[[], bool]) -> None:
        """Deploy the app, then queue each job until `is_stopped`."""
        app = modal.App(self.name, include_source=False, tags={"run": self.name[-63:]})
        functions = self._define_functions(app)
        _refuse_deployed(self.name)
        if is_stopped():
            return
        self._is_deploying = True
        with as_refusal():
            with modal.enable_output() if sys.stdout.isatty() else nullcontext():
                app.deploy(name=self.name)  # building an image may take minutes
            self._note_app(App(str(app.app_id), self.name, app.get_dashboard_url()))
            for kind, members in _container_kinds(self._jobs).items():
                for job in members:
                    if is_stopped():
                        return
                    self.is_queueing = True
                    self._note_call(job, functions[kind].spawn(_remote_payload(job)).object_id)

    def withdraw(self) -> None:
        """Stop the app if it has come so far. Raises an error of Modal's if that is not sure."""
        if self._is_deploying:
            within(ANSWER_SECONDS, lambda: stop(self.name))

    def _define_functions(self, app: modal.App) -> dict[str, Any]:
        from hydra_modal_jobs.worker import container

        image = build_image(self._jobs)
        kinds = _container_kinds(self._jobs)
        parallel = _parallel(kinds, self._jobs[0].settings.max_parallel)
        functions: dict[str, Any] = {}
        for kind, members in kinds.items():
            options = _function_options(members[0].settings, self._secrets)
            options["max_containers"] = parallel.get(kind)
            functions[kind] = app.function(name=kind, image=image, **options)(container.run)
        return functions


def stop(app_id: str) -> None:
    """Stop an app, by its id or its name; what runs in it is ended."""
    with suppress(exception.NotFoundError):
        modal.App.lookup(app_id).stop()


def is_pending(call: str) -> bool:
    """Return whether a call has no result yet. Raises the error of asking for it."""
    try:
        modal.FunctionCall.from_id(call).get(timeout=0)
    except TimeoutError:
        return True
    except (Exception, SystemExit) as error:
        if not ends_call(error):
            raise
    return False


def _check_gpus(settings: ModalJobsConf) -> None:
    """Refuse kinds of GPU that Modal does not have, and counts that a container cannot have."""
    count = settings.gpu_count
    if settings.gpu is None and count > 1:
        raise LaunchRefused(f"hydra.launcher.gpu_count={count}: name the gpu as well")
    kinds = [settings.gpu, *settings.gpu_fallback] if settings.gpu else []
    for kind in kinds:
        if kind.upper() not in GPUS:
            name = "gpu" if kind == settings.gpu else "gpu_fallback"
            spelled = {re.sub("[^A-Z0-9!+]", "", gpu): gpu for gpu in GPUS}
            known = spelled.get(re.sub("[^A-Z0-9!+]", "", kind.upper()))
            hint = f"; write {known}" if known else f" (Modal has {', '.join(GPUS)})"
            raise LaunchRefused(f"hydra.launcher.{name}: {kind} is not a valid GPU type{hint}")
    limit = min((max_gpu_count(kind) for kind in kinds), default=1)
    if not 1 <= count <= max(limit, 1):
        smallest = min(kinds, key=max_gpu_count, default="no GPU")
        raise LaunchRefused(
            f"hydra.launcher.gpu_count={count}: from 1 to {limit} {smallest} in a container"
        )


def _call_retries(settings: ModalJobsConf) -> int:
    """Return Modal's retries of a call: those asked for, and the attempts of a long job."""
    return settings.retries + -(-settings.timeout // DAY_SECONDS) - 1


def _remote_payload(job: Job) -> dict[str, Any]:
    """Return the payload with the folders of the container."""
    sweep = str(PurePosixPath(job.settings.volumes.outputs) / run_name(job.sweep_folder))
    return {**job.payload, "dir": sweep, "outputs_volume": outputs_volume(job.settings)}


def _container_kinds(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """Group the jobs by the container that they need, under a name for its function."""
    kinds: dict[str, list[Job]] = {}
    names: dict[Any, str] = {}
    for job in jobs:
        s = job.settings
        resources = (
            *(s.gpu, tuple(s.gpu_fallback), s.gpu_count),
            *(s.cpu, s.memory, s.timeout, s.retries, s.region),
        )
        if resources not in names:
            label = gpu_label(job).lower().replace(":", "x").replace("/", "-").replace("!", "")
            taken = sum(name.startswith(label) for name in kinds)
            names[resources] = f"{label}-{taken + 1}" if taken else label
        kinds.setdefault(names[resources], []).append(job)
    return kinds


def _parallel(kinds: dict[str, list[Job]], max_parallel: int | None) -> dict[str, int]:
    """Return how many containers each function may have, `max_parallel` in all."""
    if max_parallel is None:
        return {}
    if max_parallel < len(kinds):
        raise LaunchRefused(
            f"hydra.launcher.max_parallel={max_parallel}: the jobs need {len(kinds)} kinds of "
            f"container, each at least one at a time; give {len(kinds)} or more, or launch them "
            "apart"
        )
    shares = dict.fromkeys(kinds, 1)
    for _ in range(max_parallel - len(kinds)):
        neediest = max(kinds, key=lambda kind: len(kinds[kind]) / shares[kind])
        shares[neediest] += 1
    return shares


def _function_options(settings: ModalJobsConf, secrets: Secrets) -> dict[str, Any]:
    """Return a function's options, in the exact types that Modal's client expects."""
    count = f":{settings.gpu_count}" if settings.gpu_count > 1 else ""
    kinds = [settings.gpu, *settings.gpu_fallback] if settings.gpu else []
    gpus = [f"{kind}{count}" for kind in kinds]
    modal_secrets = [modal.Secret.from_name(name) for name in settings.secrets.modal]
    variables = secrets.values()
    sent_secrets = [modal.Secret.from_dict(dict(variables))] if variables else []
    options: dict[str, Any] = {
        "timeout": min(settings.timeout, DAY_SECONDS),
        "startup_timeout": _IMAGE_START_SECONDS,
        "retries": modal.Retries(
            max_retries=_call_retries(settings), initial_delay=1.0, backoff_coefficient=2.0
        ),
        "secrets": [*modal_secrets, *sent_secrets],
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


def _refuse_deployed(name: str) -> None:
    """Refuse a name that a deployed app has, since it belongs to a run that goes on."""
    with as_refusal():
        try:
            modal.App.lookup(name)
        except exception.NotFoundError:
            return
    raise LaunchRefused(
        f"an app {name} is deployed already: another run of this name; take another name"
    )
