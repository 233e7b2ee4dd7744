"""Settings of vLLM that cannot work are refused in one line, also where vLLM is not installed."""

from __future__ import annotations

import pytest

from tests.support.program import SMALL, Program


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("vllm.tensor_parallel_size=2", "needs vllm.mode=server"),
        ("vllm.enable_auto_tool_choice=true", "vllm.tool_call_parser=..."),
        ("vllm.max_model_len=100", "below model.max_length=512"),
        ("vllm.gpu_memory_utilization=1.5", "at most 1"),
    ],
)
def test_impossible_settings_of_vllm_are_refused(
    program: Program, override: str, says: str
) -> None:
    done = program(*SMALL, override, "name=v")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and says in done.stderr


def test_vllm_without_vllm_or_a_gpu_is_one_line(program: Program) -> None:
    done = program(*SMALL, "sampler=vllm", "name=v")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "sampler=" in done.stderr
