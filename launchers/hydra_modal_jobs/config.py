"""The launcher's settings; the plugin stores them as `hydra/launcher=modal_jobs`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ImageConf:
    """What is installed in a container. The application's own source is added without a word.

    A launch has one image: with what any of its jobs names under `pip` and `pip_no_deps`.
    """

    python: str | None = None  # the version here, such as "3.11"
    base: str | None = None  # an image of a registry; else Debian slim
    apt: list[str] = field(default_factory=list)
    requirements: str | None = None  # a file of pip requirements, best pinned
    pip: list[str] = field(default_factory=list)  # more of them
    pip_no_deps: list[str] = field(default_factory=list)  # without what they ask for
    env: dict[str, str] = field(default_factory=dict)  # variables; nothing secret
    source: list[str] = field(default_factory=list)  # packages that nothing imports here


@dataclass
class VolumesConf:
    """Volumes `{prefix}-{cache,outputs}-{experimenter}-{experiment_name}` and where they are."""

    prefix: str = "hydra-jobs"
    experimenter: str | None = None  # EXPERIMENTER of the environment or .env; else the login
    experiment_name: str | None = None  # EXPERIMENT_NAME of the same; else "default"
    cache: str = "/cache"
    outputs: str = "/outputs"


@dataclass
class SecretsConf:
    """Variables for the jobs. Only their names are ever written down."""

    dotenv: str | None = ".env"  # all of its variables, where there is such a file
    environment: list[str] = field(default_factory=list)  # and these, where they are set here
    modal: list[str] = field(default_factory=list)  # names of Modal secrets
    required: list[str] = field(default_factory=list)  # refused before the start without these


@dataclass
class ModalJobsConf:
    """Every job may have other values: a sweep over `gpu` gives each its own."""

    _target_: str = "hydra_plugins.modal_launcher.launcher.ModalJobsLauncher"

    # Where a job runs
    gpu: str | None = None  # a Modal GPU; null: a container without one; local: this machine
    gpu_count: int = 1
    processes: int | None = None  # of each job, started by torchrun if several; null: one a GPU
    gpu_fallback: list[str] = field(default_factory=list)  # taken when `gpu` cannot be had
    cpu: float | None = None  # physical cores
    memory: int | None = None  # MiB
    timeout: int = 14400  # seconds an attempt; above a day it is chained over attempts
    retries: int = 3  # of an attempt that ran out of time, crashed, or failed in passing
    region: str | None = None
    max_parallel: int | None = None  # jobs at a time; local: 1 is this very process

    # How a launch goes
    app_name: str = "${hydra.job.name}"
    detach: bool = False  # return as soon as the jobs are queued
    plan_only: bool = False  # show what would run and what it would cost
    max_usd: float | None = None  # for all jobs together
    on_interrupt: str = "ask"  # Ctrl-C: ask, cancel or leave; without a terminal, ask is cancel
    resume: bool = False  # go on in the folders of an earlier launch
    resume_key: str | None = None  # the application's setting for that; attempts get it as true

    # What a job needs
    image: ImageConf = field(default_factory=ImageConf)
    volumes: VolumesConf = field(default_factory=VolumesConf)
    secrets: SecretsConf = field(default_factory=SecretsConf)

    # What the launcher knows of the application
    check: str | None = None  # module:function of a composed config, raises what is wrong
    shape: list[str] = field(default_factory=list)  # settings that tell how long a job takes
    metrics: str = "metrics.jsonl"  # in a job's folder: a line of JSON whenever something is new
    show: list[str] = field(default_factory=lambda: ["step"])  # keys of it for the live line
    metric: str = "metric"  # what the returned value is called
    checkpoints: str = "checkpoints/**"  # files that are kept at once, and fetched on request
    hints: dict[str, str] = field(default_factory=dict)  # kind of failure: what to change
    command: str = "python -m hydra_modal_jobs"  # what `runs` and `resume` belong to
