"""Credentials among the settings are refused, and shown in no message."""

from __future__ import annotations

from typing import Any

import pytest

from rl_experiments.config.credentials import refuse_credentials
from rl_experiments.errors import UserError

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
