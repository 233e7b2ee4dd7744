"""Made-up questions, and files of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROWS: list[dict[str, Any]] = [
    {
        "question": f"Ann has {n} apples and buys {n % 7} more. How many has she?",
        "answer": f"She has {n}+{n % 7}=<<{n}+{n % 7}={n + n % 7}>>{n + n % 7}.\n#### {n + n % 7}",
    }
    for n in range(200)
]


def a_file(folder: Path, rows: list[Any], name: str = "questions.jsonl") -> str:
    """Write rows as a file of questions and return its path."""
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
