"""The types of every setting; Hydra checks the composed configuration against them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import MISSING, OmegaConf

_PACKAGE = Path(__file__).parent.parent
# The versions that a job is given on Modal: the very ones that are installed here.
_LOCK = "requirements.lock"
_DISTRIBUTION = "rl-experiments"
# By environment: what asks for gigabytes that it has no use for here.
_NO_DEPS = {"bfcl_single_turn": "bfcl-eval==2026.3.23"}


class Dtype(Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class LossType(Enum):
    """TRL's names."""

    grpo = "grpo"
    dr_grpo = "dr_grpo"
    dapo = "dapo"
    bnpo = "bnpo"
    cispo = "cispo"
    sapo = "sapo"
    luspo = "luspo"
    vespo = "vespo"


class ScaleRewards(Enum):
    """What advantages are divided by the standard deviation of."""

    group = "group"
    batch = "batch"
    none = "none"


class ImportanceSamplingLevel(Enum):
    token = "token"
    sequence = "sequence"


class Credit(Enum):
    """How an episode's rewards become advantages."""

    episode = "episode"  # plain GRPO: one advantage for every token of the episode
    turn = "turn"  # return-to-go of each turn against the group's mean at that turn


class ResponseFormat(Enum):
    """What a judge's answer is held to."""

    json_schema = "json_schema"  # in the dialect that all services take
    bounded_schema = "bounded_schema"  # with the number of scores and their range: vLLM
    json_object = "json_object"
    none = "none"


class Fallback(Enum):
    """The reward of a group that the judge gave no scores."""

    environment = "environment"
    none = "none"  # nothing is learned from it


class OnBudget(Enum):
    """What happens when the judge's budget is spent."""

    stop = "stop"
    fallback = "fallback"


@dataclass
class LoraConfig:
    enabled: bool = True
    r: int = 8
    alpha: int = 16
    dropout: float = 0.0
    target_modules: list[str] = field(
        default_factory=lambda: [
            *("q_proj", "k_proj", "v_proj", "o_proj"),
            *("gate_proj", "up_proj", "down_proj"),
        ]
    )


@dataclass
class ScratchConfig:
    """A Qwen3 architecture made at random, with a warm-up on random replies in the right format."""

    hidden_size: int = 64
    intermediate_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    num_key_value_heads: int = 2
    head_dim: int = 32
    vocab_size: int | None = None  # null: what the environment's texts need
    initializer_range: float = 0.1  # near 1 / sqrt(hidden_size); 0.02 delays learning
    warmup_episodes: int = 300
    warmup_steps: int = 150
    warmup_learning_rate: float = 3e-3


@dataclass
class EndpointConfig:
    """A model behind an OpenAI-compatible address, and what may be asked of it."""

    base_url: str | None = None  # https://host/v1
    api_key_env: str | None = None  # the variable that has the key; null: none is sent
    concurrency: int = 16  # requests at once
    timeout: float = 120.0  # seconds of one try
    deadline: float = 600.0  # seconds of a request with all its tries
    stream: bool = False  # answers in pieces, for servers that cut long ones off
    input_usd: float | None = None  # per million tokens; null: known only if answers tell it
    output_usd: float | None = None
    max_requests: int | None = None  # tries included
    max_total_tokens: int | None = None  # of prompts and replies
    max_usd: float | None = None
    body: dict[str, Any] = field(default_factory=dict)  # other fields of each request


@dataclass
class ModelConfig(EndpointConfig):
    name: str = MISSING
    path: str | None = None  # a Hugging Face name or a folder; null with `scratch`
    scratch: ScratchConfig | None = None
    dtype: Dtype = Dtype.bfloat16
    attn_implementation: str = "sdpa"
    max_length: int = 4096  # tokens of prompt and reply together
    lora: LoraConfig = field(default_factory=LoraConfig)
    license: str = "apache-2.0"


@dataclass
class JudgeConfig(EndpointConfig):
    """A model that compares the attempts of a group."""

    model: str = MISSING
    temperature: float = 0.0
    max_tokens: int = 4096  # of an answer, with what the judge thinks first
    response_format: ResponseFormat = ResponseFormat.json_schema
    timeout: float = 60.0
    deadline: float = 180.0  # seconds of a group, asked again or not


@dataclass
class GpuConfig:
    """Where a job runs. `type: local` is this machine; any other is a Modal GPU."""

    type: str = MISSING
    count: int = 1
    fallback: list[str] = field(default_factory=list)
    cpu: float | None = None  # physical cores
    memory: int | None = None  # MiB
    timeout: int = 14400  # seconds an attempt; above a day it is chained over attempts
    region: str | None = None
    retries: int = 3


@dataclass
class TrainerConfig:
    """TRL's own names (`trl.GRPOConfig`); `extra` takes any other of its settings."""

    learning_rate: float = 1e-5
    max_steps: int = 40  # optimizer steps
    num_generations: int = 8  # episodes in a group
    per_device_train_batch_size: int = 8  # episodes
    gradient_accumulation_steps: int = 1
    steps_per_generation: int = 1
    num_iterations: int = 1
    max_completion_length: int = 128  # new tokens a turn
    temperature: float = 1.0
    beta: float = 0.0
    epsilon: float = 0.2
    epsilon_high: float | None = None
    loss_type: LossType = LossType.dapo
    scale_rewards: ScaleRewards = ScaleRewards.group
    importance_sampling_level: ImportanceSamplingLevel = ImportanceSamplingLevel.token
    adam_beta1: float = 0.9
    adam_beta2: float = 0.99
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    lr_scheduler_type: str = "constant"
    warmup_steps: int = 0
    gradient_checkpointing: bool | None = False  # null: where memory asks for it
    target: str | None = None  # package.module:function(config, run), which trains instead of GRPO
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class CheckpointConfig:
    """When checkpoints are made, where they go, which stay; all that any of the rules names.

    On the command line `checkpoint=...` stands for `checkpoint.path=...`.
    """

    path: str | None = None  # what to load instead of the model
    every_steps: int = 1  # optimizer steps
    store: str | None = None  # s3://bucket/prefix or a folder, for copies that outlive the machine
    project: str = "rl-experiments"  # the folder in the store
    keep_latest: int = 2
    keep_every: int | None = None  # steps
    keep_best: str | None = None  # a metric, the greater the better, such as eval/reward
    trust_store: bool = False  # unpickle what this run folder cannot vouch for
    close_timeout: float = 600.0  # seconds to wait for uploads at the end


@dataclass
class MemoryConfig:
    """How a run fits the GPU's memory; null: chosen by what fits."""

    micro_batch_tokens: int | None = None  # in one forward and backward pass, padding included
    gpu_gib: float | None = None  # memory to plan for; null: what the GPU has


@dataclass
class FitConfig:
    """The names of `memory.*` before 0.2, accepted for one release."""

    micro_batch_tokens: int | None = None
    memory_gib: float | None = None


@dataclass
class RulerConfig:
    """Whether a judge rewards episodes, by comparing those of a group."""

    enabled: bool | None = False  # null: if the judge's key is there
    weight: float = 1.0  # of the judge's scores; the rest is the environment's reward
    rubric: str | None = None  # null: the environment's own, else a general one
    max_chars: int = 4000  # that the judge sees of an attempt
    fallback: Fallback = Fallback.environment
    max_failures: float = 0.5  # share of groups without scores, above which training stops
    on_budget: OnBudget = OnBudget.stop


@dataclass
class RewardConfig:
    credit: Credit = Credit.episode
    gamma: float = 0.5  # discount a turn, for credit=turn
    ruler: RulerConfig = field(default_factory=RulerConfig)


@dataclass
class ChecksConfig:
    """When training stops because it cannot be right."""

    max_logp_difference: float = 0.05  # mean |sampler - trainer| log-probability, nats
    max_invalid: float = 0.9  # share of episodes that end on an unreadable reply
    max_sync_difference: float = 0.05  # the same on fixed prompts after each weight sync, nats
    patience: int = 5  # generations in a row without a reward that varies, or too many invalid


@dataclass
class EvaluationConfig:
    temperature: float | None = None  # null: the training temperature
    batch_size: int = 250  # episodes played at once
    samples: int = 1  # episodes of each seed, for pass@k
    every_steps: int | None = None  # optimizer steps between evaluations while training
    validation_examples: int = 100  # episodes of each of those, on seeds of their own


@dataclass
class LoggerConfig:
    """`report_to`: wandb, trackio, tensorboard; several of them, or none."""

    report_to: list[str] = field(default_factory=list)
    project: str = "rl-experiments"  # in W&B and Trackio
    entity: str | None = None  # W&B's team; null: the key's own
    tags: list[str] = field(default_factory=list)  # W&B's


class SamplerKind(Enum):
    """What generates replies."""

    auto = "auto"  # vllm for a model of use on a GPU, else transformers
    vllm = "vllm"
    transformers = "transformers"


class VllmMode(Enum):
    """Where the engine runs."""

    colocate = "colocate"  # in the training process, on its GPU
    server = "server"  # a process of its own, on GPUs of its own where a policy is trained


@dataclass
class VllmConfig:
    """vLLM's own names; null: chosen by what fits the GPU."""

    mode: VllmMode = VllmMode.colocate
    gpu_memory_utilization: float | None = None  # share of the GPU that the engine may take
    max_model_len: int | None = None  # null: model.max_length
    max_num_seqs: int = 256  # turns in its batch at once
    block_size: int = 32  # tokens; a CPU needs a multiple of 32
    enforce_eager: bool = False  # no CUDA graphs: starts sooner, generates slower
    dtype: Dtype | None = None  # null: model.dtype
    tensor_parallel_size: int = 1  # GPUs that share the server's model
    sleep: bool | None = None  # colocate: give its memory to the update
    enable_auto_tool_choice: bool = False  # server
    tool_call_parser: str | None = None  # server: as in `vllm serve --tool-call-parser`
    extra: dict[str, Any] = field(default_factory=dict)  # other arguments of vLLM's engine


@dataclass
class BudgetConfig:
    max_usd: float | None = None  # of all jobs of a launch together


@dataclass
class Config:
    name: str = MISSING  # of the run: its folder under runs/
    seed: int = 0
    resume: bool = False  # go on with the run of this name
    num_examples: int = 1000  # evaluation episodes
    policy: str | None = None  # a scripted policy, for evaluate and play
    # For evaluate: scripted policies, names of conf/model, checkpoints, models at model.base_url;
    # `model` stands for the configuration's own.
    policies: list[str] = field(default_factory=list)
    env: dict[str, Any] = field(default_factory=dict)
    gpu: GpuConfig = field(default_factory=GpuConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    sampler: SamplerKind = SamplerKind.auto
    vllm: VllmConfig = field(default_factory=VllmConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    fit: FitConfig = field(default_factory=FitConfig)  # the old name of `memory`
    reward: RewardConfig = field(default_factory=RewardConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    checks: ChecksConfig = field(default_factory=ChecksConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)

    def __post_init__(self) -> None:
        if self.memory.micro_batch_tokens is None:
            self.memory.micro_batch_tokens = self.fit.micro_batch_tokens
        if self.memory.gpu_gib is None:
            self.memory.gpu_gib = self.fit.memory_gib


def default_model(gpu: str, env: str) -> str:
    """The model when none is named: tiny on this machine, else what the environment recommends."""
    if gpu == "local":
        return "tiny"
    return str(_environment_class(env).recommended_model)


def _environment_class(env: str) -> Any:
    from rl_experiments.config.environment import environment_class

    for source in GlobalHydra.instance().config_loader().get_sources():
        if source.is_config(f"env/{env}"):
            return environment_class(source.load_config(f"env/{env}").config["_target_"])
    raise LookupError(env)


class _Outside(SearchPathPlugin):
    """The folders of `hydra.searchpath=[...]`, where `default_model` must look as well."""

    paths: ClassVar[list[str]] = []

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for path in self.paths:
            search_path.append("command line", path)


def search_outside(overrides: Sequence[str]) -> None:
    """Make the folders known that an override adds; Hydra itself tells when it cannot be read."""
    for word in overrides:
        if word.startswith("hydra.searchpath="):
            with suppress(HydraException):
                value = OverridesParser.create().parse_override(word).value()
                _Outside.paths = [str(path) for path in value] if isinstance(value, list) else []
            Plugins.instance().register(_Outside)


def register() -> None:
    """Make the schema and the resolvers of the configuration known to Hydra."""
    ConfigStore.instance().store("schema", Config)
    resolver: Callable[..., str] = default_model
    OmegaConf.register_new_resolver("default_model", resolver, replace=True)
    OmegaConf.register_new_resolver("requirements", _requirements, replace=True)
    OmegaConf.register_new_resolver("extras", _extras, replace=True)
    OmegaConf.register_new_resolver("extras_no_deps", _extras_no_deps, replace=True)
    OmegaConf.register_new_resolver("processes", _processes, replace=True)


def _processes(gpus: int, mode: VllmMode | str, served: int) -> int:
    """How many processes train: one a GPU, but for those of the server."""
    is_served = getattr(mode, "value", mode) == VllmMode.server.value
    return max(1, gpus - served) if is_served else gpus


def _extras(*names: str) -> list[str]:
    """What the optional dependencies of these names are: those of an environment have its name."""
    wanted = {re.sub(r"[-_.]+", "-", name) for name in names}
    found: list[str] = []
    try:
        lines = requires(_DISTRIBUTION) or []
    except PackageNotFoundError:  # a source folder on the path, which starts no jobs elsewhere
        return found
    for line in lines:
        requirement, _, extra = line.partition(" extra == ")
        if extra.strip("'\"") in wanted:
            found.append(re.sub(r"\s*(;|and)$", "", requirement))
    return found


def _extras_no_deps(name: str) -> list[str]:
    return [_NO_DEPS[name]] if name in _NO_DEPS else []


def _requirements() -> str:
    return str(next(f for f in (_PACKAGE / _LOCK, _PACKAGE.parent / _LOCK) if f.is_file()))
