"""A file of questions that the tests of GSM8K share."""

from __future__ import annotations

import pytest

from tests.environments.gsm8k.questions import ROWS, a_file


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> str:
    return a_file(tmp_path_factory.mktemp("gsm8k"), ROWS)
