"""Credentials among the settings are refused, and shown in no message."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from rl_experiments.config.credentials import refuse_credentials
from rl_experiments.config.overrides import override_groups, override_texts
from rl_experiments.config.registration import register
from rl_experiments.errors import UserError
from rl_experiments.paths import CONF_DIR
from rl_experiments.preflight import check

SECRET = "canary7f3a9b2c"


@pytest.mark.parametrize(
    "settings",
    [
        {"model": {"base_url": f"http://user:{SECRET}@host/v1"}},
        {"judge": {"base_url": f"https://{SECRET}@host/v1"}},
        {"model": {"base_url": f"https://${{oc.env:USER}}:{SECRET}@host/v1"}},
        {"model": {"base_url": f"https://host/v1?api_key={SECRET}"}},
        {"checkpoint": {"store": f"s3://key:{SECRET}@bucket/prefix"}},
        {"env": {"api_base": f"postgres://me:{SECRET}@db/tasks"}},
        {"policies": ["random", f"s3://key:{SECRET}@bucket/checkpoint-4"]},
        {"model": {"body": {"api_key": SECRET}}},
        {"model": {"body": {"extra_headers": {"Authorization": f"Bearer {SECRET}"}}}},
        {"judge": {"body": {"extra_headers": {"X-Api": SECRET, "Cookie": "x"}}}},
        {"judge": {"body": {"provider": [{"apikey": SECRET}]}}},
        {"env": {"password": SECRET}},
        {"env": {"task": f"sk-{SECRET}"}},
        {"trainer": {"extra": {"hub_token": SECRET}}},
        {"vllm": {"extra": {"hf_token": SECRET}}},
        {"model.body.api_key": SECRET},
    ],
)
def test_a_credential_is_refused_in_one_line_that_does_not_show_it(
    settings: dict[str, Any],
) -> None:
    with pytest.raises(UserError) as refused:
        refuse_credentials(settings)
    message = str(refused.value)
    assert SECRET not in message
    assert "${oc.env:NAME}" in message
    assert len(message.splitlines()) == 1


def test_what_is_no_credential_passes() -> None:
    refuse_credentials(
        {
            "model": {
                "base_url": "${oc.env:MODEL_URL}",
                "api_key_env": "OPENAI_API_KEY",
                "body": {"max_tokens": 5, "api_key": "${oc.env:KEY}", "provider": {"order": ["a"]}},
            },
            "judge": {"base_url": "http://127.0.0.1:8000/v1?version=2", "api_key_env": None},
            "env": {"answer_key": "B", "mail": "me@example.org", "words": "a/b@c"},
            "trainer": {"extra": {"eos_token": "<|im_end|>", "pad_token": "x"}},
            "checkpoint": {"store": "s3://bucket/prefix@2"},
        }
    )


def test_messages_show_no_passwords_of_addresses() -> None:
    assert str(UserError(f"model.base_url=http://me:{SECRET}@host/v1: 401")) == (
        "model.base_url=http://***@host/v1: 401"
    )


@pytest.mark.parametrize(
    "word",
    [
        f"+hydra.launcher.image.env.HF_TOKEN={SECRET}",
        f"++hydra.launcher.image.env={{MY_API_KEY: {SECRET}}}",
        f"+hydra.job.env_set.DB='postgres://me:{SECRET}@db/x'",
    ],
)
def test_settings_of_hydra_are_looked_at_wherever_they_come_from(word: str) -> None:
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        cfg = compose("config", ["name=x", word], return_hydra_config=True)
    before = HydraConfig.instance().cfg
    HydraConfig.instance().cfg = cast(Any, cfg)
    try:
        with pytest.raises(UserError, match=r"oc\.env:NAME") as refused:
            check(cfg)
    finally:
        HydraConfig.instance().cfg = before
    assert SECRET not in str(refused.value)
    with pytest.raises(UserError):  # of the command line, before anything is composed
        refuse_credentials({**override_texts([word]), **override_groups([word])})
