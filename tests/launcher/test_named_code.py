"""Code that a setting names is checked before the launch, without running it, and sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra_modal_jobs import LaunchRefused, bundle
from hydra_modal_jobs.config import ModalJobsConf
from hydra_modal_jobs.jobs.job import Job
from hydra_modal_jobs.named_code import check_named_code
from omegaconf import DictConfig, OmegaConf

FILES = {
    "my_train.py": "import my_help\n\ndef main(config, run): ...\nraise SystemExit('was run')\n",
    "my_help.py": "def later():\n    import my_later\n",
    "my_later.py": "",
    "my_pack/__init__.py": "raise SystemExit('was run')",
    "my_pack/deep/steps.py": "if True:\n    from os import path as main\ntrain = later = None\n"
    "def go():\n    import my_space.part.module\n",
    "my_space/part/module.py": "from my_later import *\n",
    "my_broken.py": "x = 1\ndef main(:\n",
}
FOUND = [
    *(
        "my_train:main",
        "my_pack.deep.steps:main",
        "my_pack.deep.steps:train",
        "json.decoder:scanstring",
    ),
    *("my_space.part.module:anything", "math:sqrt"),
]
REFUSED = {
    "my_nope:main": "No module named 'my_nope' on this machine",
    "my_train:mian": "my_train.py has no attribute 'mian'; did you mean main",
    "my_pack.nope:main": "No module named 'nope' in my_pack",
    "my_pack.deep.steps:run": "steps.py has no attribute 'run'",
    "my_broken:main": "line 2 of my_broken.py is no Python",
    "my_train": "write it as package.module:function",
    "my train:main": "write it as package.module:function",
    "my_train:": "write it as package.module:function",
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(value: str | None) -> DictConfig:
    return OmegaConf.create({"trainer": {"target": value}})


@pytest.mark.parametrize("value", [*FOUND, None])
def test_code_that_is_there_is_accepted_without_running_it(value: str | None) -> None:
    check_named_code(config(value), ["trainer.target", "no.such.setting"])


@pytest.mark.parametrize(("value", "words"), REFUSED.items())
def test_code_that_is_missing_is_refused_by_the_settings_name(value: str, words: str) -> None:
    with pytest.raises(LaunchRefused) as refused:
        check_named_code(config(value), ["trainer.target"])
    assert str(refused.value).startswith(f"trainer.target={value}: ") and words in str(
        refused.value
    )
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("my_train:main", {"my_train.py", "my_help.py", "my_later.py"}),
        ("my_pack.deep.steps:main", {"my_pack", "my_space", "my_later.py"}),
    ],
)
def test_named_code_is_sent_with_what_it_imports(
    tmp_path: Path, value: str, sent: set[str]
) -> None:
    cfg = config(value)
    cfg.hydra = {"runtime": {"config_sources": []}}
    job = Job(
        num=0,
        overrides=[],
        config=cfg,
        settings=ModalJobsConf(code=["trainer.target"]),
        folder=tmp_path / "runs/x/0",
        task=None,
        payload={"task": {"name": "json:dumps"}, "config": OmegaConf.to_yaml(cfg)},
    )
    names = {
        remote.name for path, remote in bundle.sources([job]).items() if tmp_path in path.parents
    }
    assert names == sent
