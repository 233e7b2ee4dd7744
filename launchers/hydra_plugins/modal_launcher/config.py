"""Stores the launcher's settings as `hydra/launcher=modal_jobs`."""

from hydra.core.config_store import ConfigStore
from hydra_modal_jobs.config import ModalJobsConf

ConfigStore.instance().store(
    group="hydra/launcher", name="modal_jobs", node=ModalJobsConf, provider="modal_launcher"
)
