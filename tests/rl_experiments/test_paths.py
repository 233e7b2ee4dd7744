"""The names of files in a run folder."""

from __future__ import annotations

from rl_experiments.paths import policy_episodes_file, policy_file_stem, policy_replies_file


def test_a_policys_files_are_named_after_it() -> None:
    assert policy_file_stem("random") == "random"
    assert policy_file_stem("openai/gpt-4o") == "openai_gpt-4o"


def test_no_two_policies_share_a_file_whatever_their_names() -> None:
    names = ["a/b", "a:b", "A/B", "seconds", "m", "m.replies", "m.replies-1", "x" * 300]
    names += ["x" * 301, "été", "seconds ", "日" * 200]
    stems = [policy_file_stem(name, names[:index]) for index, name in enumerate(names)]
    files = [policy_episodes_file(stem) for stem in stems]
    files += [policy_replies_file(stem, rank) for stem in stems for rank in (0, 1)]
    files += ["seconds.jsonl"]
    assert len({file.casefold() for file in files}) == len(files)
    assert all(len(file.encode()) < 255 for file in files)
    assert stems[0] == "a_b" and stems[4] == "m"
