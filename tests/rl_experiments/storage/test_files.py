"""Files that are written whole or not at all, and files of JSON lines."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hydra_modal_jobs import files as launcher_files

from rl_experiments.errors import UserError
from rl_experiments.storage import files
from rl_experiments.storage.files import (
    append_json_lines,
    atomic_path,
    keep_json_lines,
    read_json_lines,
    write_atomically,
)


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "file.txt"
    write_atomically(target, "old")
    with atomic_path(target) as building:
        building.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    write_atomically(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as building:
        building.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with atomic_path(target) as building:
        building.mkdir()
        (building / "a").write_text("1")
        (building / "below").mkdir()
        (building / "below/b").write_text("2")
        assert not target.exists()
    assert (target / "a").read_text() == "1" and (target / "below/b").read_text() == "2"


def test_a_folder_with_content_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "kept").touch()
    with pytest.raises(OSError), atomic_path(target) as building:
        building.mkdir()
    assert list(tmp_path.iterdir()) == [target] and list(target.iterdir()) == [target / "kept"]


def test_threads_that_write_one_file_at_once_do_not_meet(tmp_path: Path) -> None:
    target, texts = tmp_path / "file.txt", [str(number) * 10_000 for number in range(8)]
    writers = [threading.Thread(target=write_atomically, args=(target, text)) for text in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert target.read_text() in texts
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("torn", [b'{"step": 2, "rew', b'{"step"', b"\x00\x00\x00", b"\xff\xfe"])
def test_a_torn_line_is_skipped_wherever_it_stands(tmp_path: Path, torn: bytes) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_bytes(b'{"step": 1}\n' + torn + b'\n{"step": 3}\n' + torn)
    assert list(read_json_lines(file)) == [{"step": 1}, {"step": 3}]


def test_the_writer_starts_a_new_line_after_a_torn_one(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    append_json_lines(file, [{"step": 1}])
    with file.open("a") as lines:
        lines.write('{"step": 2, "rew')  # killed here
    append_json_lines(file, [{"step": 3}, {"step": 4}])
    append_json_lines(file, [])
    assert [record["step"] for record in read_json_lines(file)] == [1, 3, 4]


def test_a_line_without_its_newline_is_read_and_not_written_into(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text('{"step": 1}')
    append_json_lines(file, [{"step": 2}])
    assert [record["step"] for record in read_json_lines(file)] == [1, 2]


def test_lines_are_kept_by_a_condition(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    keep_json_lines(file, lambda record: True)
    assert not file.exists() and list(read_json_lines(file)) == []
    append_json_lines(file, [{"step": step} for step in range(4)])
    keep_json_lines(file, lambda record: record["step"] < 2)
    assert file.read_text() == '{"step": 0}\n{"step": 1}\n'


def test_lines_of_several_writers_do_not_mix(tmp_path: Path) -> None:
    file, text = tmp_path / "lines.jsonl", "x" * 20_000

    def write(writer: int) -> None:
        for index in range(20):
            append_json_lines(file, [{"writer": writer, "index": index, "text": text}])

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    records = [json.loads(line) for line in file.read_text().splitlines() if line]
    assert len(records) == 80


@pytest.mark.parametrize("module", [files, launcher_files])
def test_lines_that_are_no_records_are_skipped(module: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"step": 1}\nnull\n3\n[1]\n"x"\n{}\n{"step": \n{"step": 2, "more": 1}\n\x00\n')
    assert [record["step"] for record in module.read_json_lines(path, "step")] == [1, 2]
    assert len(list(module.read_json_lines(path))) == 3


@pytest.mark.parametrize("content", [None, "", "{", "null", "[1]", "3", "{}", "\x00"])
def test_a_broken_file_is_named_with_what_to_do(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as refused:
        files.read_json_object(path, "policies", remedy="delete it")
    assert str(refused.value) == f"{path}: is broken; delete it"
    path.write_text('{"policies": []}')
    assert files.read_json_object(path, "policies", remedy="") == {"policies": []}
