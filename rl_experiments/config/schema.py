"""Every setting with its type, default and meaning; Hydra checks the composed configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING


class Dtype(Enum):
    """The number format of a model's weights, by torch's names."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class LossType(Enum):
    """How token losses are averaged and clipped, by TRL's names (`GRPOConfig.loss_type`)."""

    grpo = "grpo"
    dr_grpo = "dr_grpo"
    dapo = "dapo"
    bnpo = "bnpo"
    cispo = "cispo"
    sapo = "sapo"
    luspo = "luspo"
    vespo = "vespo"


class ScaleRewards(Enum):
    """Where the standard deviation that advantages are divided by is taken."""

    group = "group"  # among the episodes of one group
    batch = "batch"  # among all episodes of a generation
    none = "none"  # advantages are not divided


class ImportanceSamplingLevel(Enum):
    """What has one importance ratio: each token, or a whole sequence."""

    token = "token"
    sequence = "sequence"


class Credit(Enum):
    """How an episode's rewards become advantages."""

    episode = "episode"  # plain GRPO: every token of the episode has the same advantage
    turn = "turn"  # a turn's discounted return against the mean of the group at that turn


class ResponseFormat(Enum):
    """How a judge's answer is constrained."""

    json_schema = "json_schema"  # a JSON schema, in the dialect that all services accept
    bounded_schema = "bounded_schema"  # also the number of scores and their range; vLLM takes it
    json_object = "json_object"  # any JSON object
    none = "none"  # not constrained


class Fallback(Enum):
    """The reward of a group for which the judge gave no scores."""

    environment = "environment"  # the environment's own reward
    none = "none"  # no reward: nothing is learned from the group


class OnBudget(Enum):
    """What happens when the judge's budget is spent."""

    stop = "stop"  # training stops
    fallback = "fallback"  # the remaining groups get `reward.ruler.fallback`


ALL_LINEAR = "all-linear"


@dataclass
class LoraConfig:
    """Low-rank adapters (LoRA): train these small matrices and leave the weights as they are."""

    enabled: bool = True  # false: train all weights
    r: int = 8  # rank of the adapters
    alpha: int = 16  # the adapters' output is scaled by alpha / r
    dropout: float = 0.0
    # Names of the layers that get an adapter; [all-linear]: all linear layers but the last. These
    # defaults are all of them in Llama and Qwen, and mean the same for other models.
    target_modules: list[str] = field(
        default_factory=lambda: [
            *("q_proj", "k_proj", "v_proj", "o_proj"),
            *("gate_proj", "up_proj", "down_proj"),
        ]
    )


@dataclass
class ScratchConfig:
    """A small Qwen3 model with random weights, warmed up on random replies in the right format."""

    hidden_size: int = 64
    intermediate_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    num_key_value_heads: int = 2
    head_dim: int = 32
    vocab_size: int | None = None  # null: as many tokens as the environment's texts need
    initializer_range: float = 0.1  # near 1 / sqrt(hidden_size); 0.02 delays learning
    warmup_episodes: int = 300  # played at random to get the texts of the warm-up
    warmup_steps: int = 150  # optimizer steps of the warm-up
    warmup_learning_rate: float = 3e-3


@dataclass
class EndpointConfig:
    """A model behind an OpenAI-compatible API, and the limits on what is asked of it."""

    base_url: str | None = None  # such as https://host/v1; null: the model runs here
    api_key_env: str | None = None  # environment variable with the key; null: no key is sent
    concurrency: int = 16  # requests at once
    timeout: float = 120.0  # seconds for one attempt at a request
    deadline: float = 600.0  # seconds for a request with all its attempts
    stream: bool = False  # receive answers in pieces, for servers that cut off long silences
    # US dollars for a million tokens of prompts and of replies; null: only what answers state.
    input_usd: float | None = None
    output_usd: float | None = None
    max_requests: int | None = None  # budget, retries included; null: no limit
    max_total_tokens: int | None = None  # budget of prompt and reply tokens; null: no limit
    max_usd: float | None = None  # budget in US dollars; needs both prices; null: no limit
    body: dict[str, Any] = field(default_factory=dict)  # further fields of each request


@dataclass
class ModelConfig(EndpointConfig):
    """The policy: a model to train or to evaluate."""

    name: str = MISSING  # how it is called in tables; behind an API, the name that is asked for
    path: str | None = None  # a Hugging Face name or a folder; null: see `scratch`, `base_url`
    scratch: ScratchConfig | None = None  # make a random model; null: load `path`
    dtype: Dtype = Dtype.bfloat16  # of the weights that play; full training keeps fp32 masters
    attn_implementation: str = "sdpa"  # by transformers' names
    max_length: int = 4096  # tokens of prompt and reply together
    lora: LoraConfig = field(default_factory=LoraConfig)
    license: str = "apache-2.0"  # for the card of an exported model; none: not stated


@dataclass
class JudgeConfig(EndpointConfig):
    """The model that compares the attempts of a group; `reward.ruler` says whether it is used."""

    model: str = MISSING  # the name that is asked for
    temperature: float = 0.0
    max_tokens: int = 4096  # of an answer, including what the judge thinks first
    response_format: ResponseFormat = ResponseFormat.json_schema
    timeout: float = 60.0  # seconds for one attempt at a request
    deadline: float = 180.0  # seconds for the judgement of a group, with all its questions


@dataclass
class GpuConfig:
    """Where a job runs: `type: local` is this machine, any other type is a GPU on Modal."""

    type: str = MISSING  # local, or Modal's name of a GPU, such as A10G
    count: int = 1  # GPUs of the job
    fallback: list[str] = field(default_factory=list)  # other types to take if there is none
    cpu: float | None = None  # physical cores; null: Modal's default
    memory: int | None = None  # MiB of main memory; null: Modal's default
    timeout: int = 14400  # seconds of an attempt; above a day the job is split over attempts
    region: str | None = None  # by Modal's names; null: anywhere
    retries: int = 3  # further attempts after a failure that may pass


@dataclass
class TrainerConfig:
    """The settings of GRPO by TRL's own names (`trl.GRPOConfig`)."""

    learning_rate: float = 1e-5
    max_steps: int = 40  # optimizer steps
    num_generations: int = 8  # episodes in a group, which play the same task
    per_device_train_batch_size: int = 8  # episodes in one pass
    gradient_accumulation_steps: int = 1  # passes in an optimizer step
    steps_per_generation: int = 1  # passes that the episodes of one generation are split into
    num_iterations: int = 1  # how often the episodes of a generation are learned from
    max_completion_length: int = 128  # new tokens of one turn
    temperature: float = 1.0  # of sampling while training
    beta: float = 0.0  # weight of the KL term against the reference model; 0: no such model
    epsilon: float = 0.2  # how far importance ratios may be below 1 before they are clipped
    epsilon_high: float | None = None  # and how far above 1; null: like `epsilon`
    loss_type: LossType = LossType.dapo
    scale_rewards: ScaleRewards = ScaleRewards.group
    importance_sampling_level: ImportanceSamplingLevel = ImportanceSamplingLevel.token
    adam_beta1: float = 0.9
    adam_beta2: float = 0.99
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # gradients are clipped to this norm
    lr_scheduler_type: str = "constant"  # by transformers' names
    warmup_steps: int = 0  # optimizer steps until the learning rate is reached
    # Save memory by computing activations twice; null: where the GPU's memory is too small.
    gradient_checkpointing: bool | None = False
    # package.module:function(config, run), which trains in place of GRPO; null: GRPO.
    target: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)  # other settings of GRPOConfig


@dataclass
class CheckpointConfig:
    """When checkpoints are made, where they go, and which are kept.

    A checkpoint that any of the `keep_` rules names is kept. On the command line `checkpoint=...`
    stands for `checkpoint.path=...`.
    """

    path: str | None = None  # a checkpoint to load in place of the model; null: the model itself
    every_steps: int = 1  # optimizer steps
    # s3://bucket/prefix or a folder, for copies that outlive the machine; null: no copies.
    store: str | None = None
    project: str = "rl-experiments"  # folder of the store that this run's copies go to
    keep_latest: int = 2  # checkpoints
    keep_every: int | None = None  # keep those of each multiple of so many steps; null: no such
    keep_best: str | None = None  # keep the one with the greatest value of this metric
    trust_store: bool = False  # resume from copies that this run folder cannot vouch for
    close_timeout: float = 600.0  # seconds to wait for uploads at the end of the run


@dataclass
class MemoryConfig:
    """How a run is made to fit the GPU's memory."""

    # Tokens in one forward and backward pass, padding included; null: as many as fit.
    micro_batch_tokens: int | None = None
    gpu_gib: float | None = None  # GiB of the GPU's memory to plan with; null: all it has


@dataclass
class FitConfig:
    """The names of `memory.*` before 0.2, which are accepted for one release."""

    micro_batch_tokens: int | None = None
    memory_gib: float | None = None


@dataclass
class RulerConfig:
    """RULER: a judge compares the episodes of a group, and its scores are the rewards."""

    enabled: bool | None = False  # null: enabled if the judge's API key is set
    weight: float = 1.0  # of the judge's scores; the environment's reward has 1 - weight
    rubric: str | None = None  # what to judge by; null: the environment's rubric or a general one
    max_chars: int = 4000  # characters of each episode that the judge is shown
    fallback: Fallback = Fallback.environment  # the reward of a group without scores
    max_failures: float = 0.5  # training stops if a larger share of groups has no scores
    on_budget: OnBudget = OnBudget.stop  # what happens when the judge's budget is spent


@dataclass
class RewardConfig:
    """How the rewards of episodes are made and used."""

    credit: Credit = Credit.episode
    gamma: float = 0.5  # discount of one turn, for credit=turn
    ruler: RulerConfig = field(default_factory=RulerConfig)


@dataclass
class ChecksConfig:
    """When training stops because something must be wrong."""

    # The log-probabilities of sampler and trainer may differ by this many times what the rounding
    # of the trainer's dtype makes, which is measured.
    noise_factor: float = 2.5
    # A limit of one's own for their mean absolute difference, in nats: of the replies that are
    # learned from, and of fixed prompts after each sync of the weights; null: by noise_factor.
    max_logp_difference: float | None = None
    max_sync_difference: float | None = None
    max_invalid: float = 0.9  # share of episodes that end on an unreadable reply
    # Generations in a row in which no reward varies, or too many replies are unreadable.
    patience: int = 5


@dataclass
class EvaluationConfig:
    """How policies are evaluated on unseen seeds."""

    temperature: float | None = None  # of sampling; null: the training temperature
    batch_size: int = 250  # episodes played at once
    samples: int = 1  # episodes of each seed, for pass@k
    every_steps: int | None = None  # optimizer steps between evaluations while training; null: none
    validation_examples: int = 100  # episodes of each of those, on other seeds than the final one


@dataclass
class LoggerConfig:
    """Services that metrics and episodes are sent to."""

    report_to: list[str] = field(default_factory=list)  # any of wandb, trackio, tensorboard
    project: str = "rl-experiments"  # in W&B and Trackio
    entity: str | None = None  # W&B's team; null: the one that the API key belongs to
    tags: list[str] = field(default_factory=list)  # in W&B


class SamplerKind(Enum):
    """What generates replies."""

    auto = "auto"  # vLLM on a GPU; transformers without one, and for model=tiny
    vllm = "vllm"
    transformers = "transformers"


class VllmMode(Enum):
    """Where vLLM's engine runs."""

    colocate = "colocate"  # in the training process, on the same GPU
    server = "server"  # in a process of its own; while training, on GPUs of its own


@dataclass
class VllmConfig:
    """vLLM's settings by its own names."""

    mode: VllmMode = VllmMode.colocate
    gpu_memory_utilization: float | None = None  # share of the GPU; null: what is needed and fits
    max_model_len: int | None = None  # tokens of prompt and reply; null: model.max_length
    max_num_seqs: int = 256  # turns in the engine's batch at once
    block_size: int = 32  # tokens in a block of the cache; a CPU needs a multiple of 32
    enforce_eager: bool = False  # true: no CUDA graphs, so it starts sooner and generates slower
    dtype: Dtype | None = None  # null: model.dtype
    tensor_parallel_size: int = 1  # GPUs that share the model, for mode=server
    # mode=colocate: release the engine's memory during the update; null: if both do not fit.
    sleep: bool | None = None
    enable_auto_tool_choice: bool = False  # mode=server: parse tool calls out of the replies
    tool_call_parser: str | None = None  # mode=server: by the names of `vllm serve`; null: none
    extra: dict[str, Any] = field(default_factory=dict)  # further arguments of vLLM's engine


@dataclass
class BudgetConfig:
    """A limit on what the jobs of a launch may cost."""

    max_usd: float | None = None  # of all jobs together, in US dollars; null: no limit


@dataclass
class Config:
    """The configuration of a job; each nested group is one of the dataclasses above."""

    name: str = MISSING  # of the run, and of its folder under runs/; by default it is dated
    seed: int = 0
    resume: bool = False  # continue the run of this name
    num_examples: int = 1000  # evaluation seeds
    policy: str | None = None  # a scripted policy to evaluate or watch; null: the model
    # Policies for `evaluate` to compare: scripted ones, names in conf/model, checkpoints, models at
    # model.base_url; `model` stands for the model of this configuration. Empty: only the latter.
    policies: list[str] = field(default_factory=list)
    env: dict[str, Any] = field(default_factory=dict)  # `_target_` is the class; its own settings
    gpu: GpuConfig = field(default_factory=GpuConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    sampler: SamplerKind = SamplerKind.auto
    vllm: VllmConfig = field(default_factory=VllmConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    fit: FitConfig = field(default_factory=FitConfig)  # the former name of `memory`
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
