"""The fork servers of the tests; see `forked.py`. Each starts when a test first needs it."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile

from tests.support.forked import ForkServer

# What launches and Modal's containers import: libraries alone, for a container gets the project's
# modules from the client, not from the checkout.
LAUNCHER_LIBRARIES = (
    "antlr4.LL1Analyzer",
    "cloudpickle",
    "dotenv.main",
    "hydra._internal.core_plugins.bash_completion",
    "hydra._internal.core_plugins.basic_launcher",
    "hydra._internal.core_plugins.basic_sweeper",
    "hydra._internal.core_plugins.file_config_source",
    "hydra._internal.core_plugins.fish_completion",
    "hydra._internal.core_plugins.importlib_resources_config_source",
    "hydra._internal.core_plugins.structured_config_source",
    "hydra._internal.core_plugins.zsh_completion",
    "hydra._internal.hydra",
    "hydra._internal.logging_config",
    "hydra.core.utils",
    "hydra.main",
    "modal",
    "modal._runtime.container_io_manager",
    "modal._runtime.task_lifecycle_manager",
    "modal._runtime.user_code_event_loop",
    "modal._runtime.user_code_imports",
    "omegaconf._impl",
    "rich._emoji_codes",
    "rich.progress",
    "tenacity",
)
# What training imports.
TRAINING_LIBRARIES = (
    "PIL.BmpImagePlugin",
    "PIL.GifImagePlugin",
    "PIL.JpegImagePlugin",
    "PIL.PpmImagePlugin",
    "datasets",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "openai",
    "peft",
    "transformers.models.qwen3.modeling_qwen3",
    "trl.trainer.grpo_trainer",
)
# The project's own modules, of which these import the others.
PROJECT = (
    "environments.game2048.env",
    "hydra_modal_jobs.launch",
    "hydra_modal_jobs.worker.run_job",
    "hydra_plugins.modal_launcher.launcher",
    "rl_experiments.cli",
    "rl_experiments.commands.evaluate",
    "rl_experiments.commands.train",
    "rl_experiments.training.build",
    "rl_experiments.training.reporter",
)


@functools.cache
def launcher_server() -> ForkServer:
    """Return the server with the libraries of the launcher."""
    # No token of the developer's reaches a test.
    hidden = ("MODAL_", "HYDRA_", "PYTHONPATH")
    variables = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    return ForkServer(LAUNCHER_LIBRARIES, {**variables, "MODAL_CONFIG_PATH": os.devnull})


@functools.cache
def training_server() -> ForkServer:
    """Return the server with the libraries of training, too."""
    variables = {k: v for k, v in program_variables().items() if k != "PYTHONPATH"}
    return ForkServer(TRAINING_LIBRARIES, variables, base=launcher_server())


def program_server() -> ForkServer:
    """Return a server that has imported this checkout's own modules as well."""
    return ForkServer(PROJECT, program_variables(), base=training_server())


@functools.cache
def program_variables() -> dict[str, str]:
    """Return the variables of the programs that tests run, with caches of the tests' own."""
    cache = tempfile.mkdtemp(prefix="cache-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    return {
        **os.environ,
        "XDG_CACHE_HOME": cache,
        "TRACKIO_DIR": f"{cache}/trackio",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "120",
    }
