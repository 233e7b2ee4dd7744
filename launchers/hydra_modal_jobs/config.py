"""The settings below `hydra.launcher`; the plugin stores them as `hydra/launcher=modal_jobs`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ImageConf:
    """What is installed in a container; the application's own source is added by itself.

    A launch has one image. It holds what any of its jobs names under `pip` and `pip_no_deps`.
    """

    python: str | None = None  # such as "3.11"; null: the version on this machine
    base: str | None = None  # an image from a registry; null: Debian slim
    apt: list[str] = field(default_factory=list)
    requirements: str | None = None  # a pip requirements file, best with exact versions
    pip: list[str] = field(default_factory=list)  # further pip requirements
    pip_no_deps: list[str] = field(default_factory=list)  # installed without their dependencies
    env: dict[str, str] = field(default_factory=dict)  # environment variables, none secret
    source: list[str] = field(default_factory=list)  # local packages that nothing imports here


@dataclass
class VolumesConf:
    """The volumes `{prefix}-{cache,outputs}-{experimenter}-{experiment_name}` and their paths."""

    prefix: str = "hydra-jobs"
    experimenter: str | None = None  # null: EXPERIMENTER (environment, .env), else the login
    experiment_name: str | None = None  # null: EXPERIMENT_NAME (environment, .env), else "default"
    cache: str = "/cache"
    outputs: str = "/outputs"


@dataclass
class SecretsConf:
    """Variables for the jobs. Of the secret ones only the names are ever written down.

    Secret is what is called so (`..._KEY`, `..._TOKEN`, `..._PASSWORD`), and what `names` has.
    """

    dotenv: str | None = ".env"  # all variables of this file, if it exists
    environment: list[str] = field(default_factory=list)  # variables of this environment
    names: list[str] = field(default_factory=list)  # further variables that are secret
    modal: list[str] = field(default_factory=list)  # names of Modal secrets
    required: list[str] = field(default_factory=list)  # a launch is refused without these


@dataclass
class ModalJobsConf:
    """The settings of a job; in a sweep over `gpu` each job has a GPU of its own."""

    _target_: str = "hydra_plugins.modal_launcher.launcher.ModalJobsLauncher"

    # Where a job runs
    gpu: str | None = None  # a Modal GPU; null: a container without one; local: this machine
    backend: str | None = None  # local, modal, debug (this process); null: what `gpu` says
    gpu_count: int = 1
    processes: int | None = None  # of each job, started by torchrun; null: one for each GPU
    gpu_fallback: list[str] = field(default_factory=list)  # GPUs to take if `gpu` is not free
    cpu: float | None = None  # physical cores
    memory: int | None = None  # MiB
    timeout: int = 14400  # seconds of an attempt; more than a day is split into attempts
    retries: int = 3  # further attempts after a timeout, a crash or a passing failure
    region: str | None = None
    max_parallel: int | None = None  # jobs at a time; null: on this machine one

    # How a launch goes
    app_name: str = "${hydra.job.name}"
    detach: bool = False  # return as soon as the jobs are queued
    plan_only: bool = False  # show what would run and what it would cost
    max_usd: float | None = None  # for all jobs of the run together
    on_interrupt: str = "ask"  # Ctrl-C: ask, cancel or leave; without a terminal ask is cancel
    resume: bool = False  # continue in the folders of an earlier launch
    resume_key: str | None = None  # a setting of the application that is true in such an attempt

    # What a job needs
    image: ImageConf = field(default_factory=ImageConf)
    volumes: VolumesConf = field(default_factory=VolumesConf)
    secrets: SecretsConf = field(default_factory=SecretsConf)

    # What the launcher knows of the application
    check: str | None = None  # module:function that gets each configuration and raises mistakes
    code: list[str] = field(default_factory=list)  # settings that name code, as module:function
    shape: list[str] = field(default_factory=list)  # settings on which a job's duration depends
    metrics: str = "metrics.jsonl"  # in a job's folder: JSON lines, the newest last
    show: list[str] = field(default_factory=lambda: ["step"])  # keys of it for the live line
    metric: str = "metric"  # the name of the returned value
    checkpoints: str = "checkpoints/**"  # files to keep as soon as written, fetched on request
    hints: dict[str, str] = field(default_factory=dict)  # kind of failure: what to change
    command: str = "python -m hydra_modal_jobs"  # the command that has `runs` and `resume`
