"""The container image of a launch: packages, variables, and this machine's source."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import modal

from hydra_modal_jobs import bundle
from hydra_modal_jobs.config import ImageConf
from hydra_modal_jobs.errors import LaunchRefused
from hydra_modal_jobs.jobs.job import Job
from hydra_modal_jobs.sent_files import sent_files

_NEEDED = ("hydra-core", "omegaconf", "python-dotenv", "cloudpickle")  # by what runs the jobs


def build_image(jobs: Sequence[Job]) -> Any:
    """Return the image that serves all jobs of a launch."""
    conf, pip, pip_no_deps = _common_conf(jobs)
    image = _base(conf)
    if conf.apt:
        image = image.apt_install(*conf.apt)
    if conf.requirements:
        image = image.uv_pip_install(requirements=[conf.requirements])
    # This machine's versions, unless the requirements have their own, which then stay.
    needed = [name if conf.requirements else f"{name}=={version(name)}" for name in _NEEDED]
    image = image.uv_pip_install(*needed, *pip)
    if pip_no_deps:
        image = image.uv_pip_install(*pip_no_deps, extra_options="--no-deps")
    image = image.env({**_cache_variables(jobs[0].settings.volumes.cache), **conf.env})
    for path, remote in bundle.sources(list(jobs)).items():
        if path.is_file():
            image = image.add_local_file(path, str(remote))
            continue
        sent = sent_files(path, is_config=bundle.is_config_folder(path, list(jobs)))
        image = image.add_local_dir(path, str(remote), ignore=partial(_is_not_among, sent))
    return image


def _is_not_among(files: Collection[Path], path: Path) -> bool:
    return path not in files


def python_version(conf: ImageConf) -> str:
    """Return the Python version of the image, such as "3.11"."""
    return conf.python or ".".join(map(str, sys.version_info[:2]))


def refuse_other_images(jobs: Sequence[Job]) -> None:
    """Raise `LaunchRefused` if jobs of a launch, which has one image, ask for different ones."""
    conf, *others = [replace(job.settings.image, pip=[], pip_no_deps=[]) for job in jobs]
    for job, other in zip(jobs[1:], others, strict=True):
        if other != conf:
            raise LaunchRefused(
                f"hydra.launcher.image: job {job.num} has another image than job {jobs[0].num}; "
                "a launch has one"
            )


def _common_conf(jobs: Sequence[Job]) -> tuple[ImageConf, list[str], list[str]]:
    """Return what all jobs have in common, and what any of them names in the two pip lists."""
    refuse_other_images(jobs)
    images = [job.settings.image for job in jobs]
    pip = dict.fromkeys(name for image in images for name in image.pip)
    pip_no_deps = dict.fromkeys(name for image in images for name in image.pip_no_deps)
    return images[0], list(pip), list(pip_no_deps)


def _cache_variables(cache: str) -> dict[str, str]:
    """Return the variables that put the libraries' caches on the cache volume."""
    return {
        "HF_HOME": f"{cache}/huggingface",
        "PIP_CACHE_DIR": f"{cache}/pip",
        "UV_CACHE_DIR": f"{cache}/uv",
        "XDG_CACHE_HOME": cache,
        "VLLM_CACHE_ROOT": f"{cache}/vllm",
        "TORCHINDUCTOR_CACHE_DIR": f"{cache}/torchinductor",
        "TRITON_CACHE_DIR": f"{cache}/triton",
        "PYTHONUNBUFFERED": "1",
    }


def _base(conf: ImageConf) -> Any:
    if conf.base:
        return modal.Image.from_registry(conf.base, add_python=python_version(conf))
    return modal.Image.debian_slim(python_version=python_version(conf))
