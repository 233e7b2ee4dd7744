"""The launcher composes the jobs of a sweep as Hydra does, but faster."""

from __future__ import annotations

from typing import Any

import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import setup_globals
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from hydra_modal_jobs.jobs.sweep_loader import SweepLoader
from omegaconf import DictConfig, OmegaConf, open_dict

from environments.bfcl_single_turn import official
from rl_experiments.config.registration import register
from rl_experiments.paths import CONF_DIR

JOBS = [
    ["seed=3"],
    ["seed=4"],
    ["gpu=a10g"],
    ["gpu=h100", "trainer.max_steps=7"],
    ["gpu=h100", "trainer.max_steps=8", "experiment=game2048_art"],
    ["model=qwen3_0_6b", "+trainer.extra.top_entropy_quantile=0.5"],
    ["+note.of=mine", "~logger"],
    ["hydra.sweep.subdir=${hydra.job.override_dirname}", "env.win_value=16"],
]


@pytest.fixture
def hydra(hydra_restore_singletons: None) -> Hydra:
    """Hydra, as a command line of the program begins it."""
    register()
    setup_globals()
    search_path = create_config_search_path(str(CONF_DIR))
    return Hydra.create_main_hydra2(task_name="test", config_search_path=search_path)


@pytest.fixture
def master(hydra: Hydra) -> tuple[ConfigLoader, DictConfig]:
    """Return Hydra's own loader and what it composed for the sweep."""
    overrides = ["hydra.verbose=false"]
    return hydra.config_loader, hydra.compose_config("config", overrides, RunMode.MULTIRUN)


def content(config: DictConfig) -> tuple[str, dict[str, Any]]:
    """Return the values, interpolations kept, and the types of the top-level nodes."""
    nodes = {"": config, **{str(key): config._get_node(key) for key in config}}
    return OmegaConf.to_yaml(config), {key: OmegaConf.get_type(nodes[key]) for key in nodes}


@pytest.mark.slow
def test_every_job_is_composed_as_by_hydra(master: tuple[ConfigLoader, DictConfig]) -> None:
    hydras, sweep = master
    quick = SweepLoader.over(hydras)
    assert isinstance(quick, SweepLoader)
    expected = [content(hydras.load_sweep_config(sweep, overrides)) for overrides in JOBS]
    for number in [*range(len(JOBS)), *reversed(range(len(JOBS)))]:
        composed = quick.load_sweep_config(sweep, JOBS[number])
        assert content(composed) == expected[number]
        assert quick.take(sweep, JOBS[number]) is composed
        with open_dict(composed):  # no other job may see this
            composed.trainer.max_steps, composed.new = -1, 1


@pytest.mark.slow
@pytest.mark.parametrize("overrides", JOBS[3:], ids=str)
def test_a_single_job_has_the_configuration_of_its_sweep(
    overrides: list[str], hydra: Hydra, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = hydra.compose_config("config", overrides, RunMode.MULTIRUN)
    overrides = list(sweep.hydra.overrides.task)
    expected = content(hydra.config_loader.load_sweep_config(sweep, overrides))
    quick = SweepLoader.over(hydra.config_loader)
    monkeypatch.setattr(type(hydra.config_loader), "load_configuration", None)  # not once more
    composed = quick.load_sweep_config(sweep, overrides)
    assert content(composed) == expected
    with open_dict(composed):
        composed.new = 1
    assert "new" not in sweep


@pytest.mark.slow
def test_a_job_of_a_sweep_over_one_setting_is_composed(hydra: Hydra) -> None:
    overrides = ["seed=choice(3)"]
    sweep = hydra.compose_config("config", overrides, RunMode.MULTIRUN)
    quick = SweepLoader.over(hydra.config_loader)
    with pytest.raises(ConfigCompositionException, match="requires --multirun"):
        quick.load_sweep_config(sweep, overrides)
    assert quick.load_sweep_config(sweep, ["seed=3"]).seed == 3


@pytest.mark.slow
def test_hydras_own_loader_composes_with_any_other_version_of_hydra(
    master: tuple[ConfigLoader, DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    hydras, _ = master
    monkeypatch.setattr("hydra.__version__", "1.3.9")
    assert SweepLoader.over(hydras) is hydras


@pytest.mark.slow
def test_hydras_own_loader_composes_if_its_result_differs(
    master: tuple[ConfigLoader, DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    hydras, sweep = master
    quick = SweepLoader.over(hydras)
    merge = SweepLoader._compose_config_from_defaults_list

    def differ(self: SweepLoader, **arguments: Any) -> DictConfig:
        config = merge(self, **arguments)
        config.num_examples = 999
        return config

    monkeypatch.setattr(SweepLoader, "_compose_config_from_defaults_list", differ)
    for overrides in JOBS[:4]:
        expected = content(hydras.load_sweep_config(sweep, overrides))
        assert content(quick.load_sweep_config(sweep, overrides)) == expected


@pytest.mark.slow
def test_a_job_is_given_the_packages_of_its_environment(
    master: tuple[ConfigLoader, DictConfig],
) -> None:
    hydras, sweep = master

    def image(env: str) -> Any:
        return hydras.load_sweep_config(sweep, [f"env={env}"]).hydra.launcher.image

    plain, other = image("game2048").pip, image("reasoning_gym").pip
    assert {name.split("==")[0] for name in plain} == {"nvidia-ml-py", "vllm"}
    assert [name.split("==")[0] for name in other if name not in plain] == ["reasoning-gym"]
    assert not image("game2048").pip_no_deps
    (alone,) = image("bfcl_single_turn").pip_no_deps
    makefile = (CONF_DIR.parent / "Makefile").read_text()
    assert f"--no-deps {alone}" in makefile and f"--no-deps {alone} " in official.INSTALL
    assert any(name.startswith("tree-sitter==") for name in image("bfcl_single_turn").pip)


@pytest.mark.slow
def test_a_mistake_is_refused_as_by_hydra(master: tuple[ConfigLoader, DictConfig]) -> None:
    hydras, sweep = master
    for loader in (hydras, SweepLoader.over(hydras)):
        with pytest.raises(ConfigCompositionException, match="Could not override 'tpyo'"):
            loader.load_sweep_config(sweep, ["tpyo=1"])
