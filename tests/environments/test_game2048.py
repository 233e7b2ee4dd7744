"""2048: the rules against a slow oracle, rewards, known distributions, replies, settings."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import fields
from itertools import chain
from math import sqrt
from random import Random
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from environments import End
from environments.game2048 import Game2048, game
from environments.game2048.replies import Parser, parse
from environments.game2048.rewards import episode_reward
from tests.support.paths import CHECKOUT

CELLS = st.sampled_from([0, 0, 2, 2, 4, 8, 2**17])
BOARDS = st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda n: st.tuples(*[st.tuples(*[CELLS] * n[0]).map(list)] * n[1]).map(list)
)
AHEAD = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


def slow_move(board: game.Board, direction: str) -> tuple[game.Board, int, bool]:
    """Move tile by tile, from the leading edge and one cell at a time."""
    grid = {(r, c): tile for r, row in enumerate(board) for c, tile in enumerate(row)}
    dr, dc = AHEAD[direction]
    merged: set[tuple[int, int]] = set()
    gained = 0
    for r, c in sorted(grid, key=lambda cell: -(cell[0] * dr + cell[1] * dc)):
        here, ahead = (r, c), (r + dr, c + dc)
        while grid[here] and grid.get(ahead) == 0:
            grid[ahead], grid[here] = grid[here], 0
            here, ahead = ahead, (ahead[0] + dr, ahead[1] + dc)
        if grid[here] and grid.get(ahead) == grid[here] and ahead not in merged:
            grid[ahead], grid[here] = 2 * grid[here], 0
            gained += grid[ahead]
            merged.add(ahead)
    result = [[grid[r, c] for c in range(len(board[0]))] for r in range(len(board))]
    return result, gained, result != board


def started(board: game.Board | None = None, **options: Any) -> Game2048:
    env = Game2048(**options)
    env.reset(0)
    env.board = board or env.board
    return env


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(BOARDS, st.sampled_from(game.DIRECTIONS))
def test_move_matches_the_oracle(board: game.Board, direction: str) -> None:
    before = [row[:] for row in board]
    result = game.move(board, direction)
    assert result == slow_move(board, direction)
    assert board == before
    assert (direction in game.legal_directions(board)) == result[2]
    assert game.is_over(board) == (not game.legal_directions(board))


def test_each_tile_merges_once_from_the_leading_edge() -> None:
    assert game.move([[2, 2, 2, 2]], "left") == ([[4, 4, 0, 0]], 8, True)
    assert game.move([[2, 2, 4, 0]], "left") == ([[4, 4, 0, 0]], 4, True)
    assert game.move([[0, 2, 2, 2]], "right") == ([[0, 0, 2, 4]], 4, True)
    assert game.move([[2], [2], [2]], "down") == ([[0], [2], [4]], 4, True)
    with pytest.raises(ValueError, match="unknown direction 'Left'"):
        game.move([[2]], "Left")
    assert game.render([[2, 0], [128, 16]]) == "  2|  _\n128| 16"


def test_spawn_is_uniform_and_gives_one_4_in_ten() -> None:
    rng = Random(0)
    empty = [[0] * 4 for _ in range(4)]
    spawned = Counter(str(game.spawn(empty, rng)) for _ in range(20_000))
    for cell in range(16):
        for tile, share in {2: 0.9 / 16, 4: 0.1 / 16}.items():
            cells = [tile * (index == cell) for index in range(16)]
            frequency = spawned[str([cells[i : i + 4] for i in range(0, 16, 4)])] / 20_000
            assert frequency == pytest.approx(share, abs=4 * sqrt(share * (1 - share) / 20_000))
    with pytest.raises(ValueError, match="no empty cell"):
        game.spawn([[2]], rng)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["standard", "art"]), st.integers(2, 5), st.integers(0, 10**6))
def test_an_episode_keeps_the_rules(rules: str, size: int, seed: int) -> None:
    rng = Random(seed)
    env = started(rules=rules, size=size, max_moves=200, gain_reward=3, illegal_penalty=0.5)
    env.reset(seed)
    assert sorted(chain(*env.board))[-3] == 0 and set(chain(*env.board)) <= {0, 2, 4}
    end = None
    while end is None:
        before, illegal, direction = env.board, env.illegal_moves, rng.choice(game.DIRECTIONS)
        slid, gained, changed = slow_move(before, direction)
        step = env.step(f"<move>{direction}</move>")
        end = step.end
        pairs = zip(chain(*slid), chain(*env.board), strict=True)
        spawned = [pair for pair in pairs if pair[0] != pair[1]]
        assert len(spawned) == (changed or rules == "art")
        assert set(spawned) <= {(0, 2), (0, 4)}
        assert env.illegal_moves == illegal + (not changed)
        reward = 3 * gained / 128 - 0.5 * (not changed) + (end is End.WON)
        assert step.reward == pytest.approx(reward)
    dead = all(chain(*env.board)) if rules == "art" else game.is_over(env.board)
    won = max(chain(*env.board)) >= 128
    assert end is (End.WON if won else End.LOST if dead else End.TRUNCATED)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step("<move>left</move>")


def test_original_rewards() -> None:
    expected = {(2, 4): 0.02, (8, 40): 0.4198, (16, 60): 0.5981, (32, 90): 0.7765}
    expected |= {(64, 120): 0.9515, (64, 190): 0.9647, (128, 200): 2.0, (256, 300): 2.0}
    for (top, total), reward in expected.items():
        computed = episode_reward(max_value=top, board_value=total, win_value=128)
        assert round(computed, 4) == reward


def test_every_end_has_its_reward() -> None:
    won = started([[64, 64, 0, 0], *[[0] * 4] * 3]).step("<move>left</move>")
    assert (won.end, won.episode_reward, won.metrics["win"]) == (End.WON, 2.0, 1.0)
    assert won.reward == pytest.approx(128 / 128 + 1.0)
    invalid = started().step("left")
    assert (invalid.end, invalid.reward, invalid.episode_reward) == (End.INVALID, -1.0, -1.0)
    assert invalid.metrics["num_moves"] == 0 and invalid.metrics["win"] == 0.0
    nearly_full = [[8, 2, 8, 2], [2, 4, 2, 4], [4, 8, 4, 8], [0, 2, 2, 4]]  # "up" is idle
    env = started(nearly_full, rules="art")  # a tile appears nevertheless and fills the board
    step = env.step("<move>up</move>")
    assert step.end is End.LOST and step.metrics["illegal_moves"] == 1
    assert "left" in game.legal_directions(env.board)  # merges remain
    env = started(nearly_full, max_moves=2)
    step = env.step("<move>up</move>")
    assert (step.end, env.board, step.reward) == (None, nearly_full, -0.1)
    step = env.step("<move>up</move>")
    assert (step.end, step.metrics["num_moves"]) == (End.TRUNCATED, 2)
    cut = started(nearly_full).truncate()
    assert (cut.metrics["max_value"], cut.metrics["board_value"]) == (8, 64)
    reward = episode_reward(max_value=8, board_value=64, win_value=128)
    assert cut.end is End.TRUNCATED and cut.episode_reward == step.episode_reward == reward
    jammed = [[16, 32, 16, 0], [8, 4, 8, 4], [4, 2, 4, 2], [2, 4, 2, 4]]
    assert started(jammed).step("<move>right</move>").end is End.LOST  # neither 2 nor 4 helps


@pytest.mark.slow
def test_random_legal_play_matches_the_reference() -> None:
    games, rng = 2000, Random(0)
    scores, moves, largest = [], [], Counter[int]()
    for _ in range(games):
        board, score, count = game.new_board(4, rng), 0, 0
        untried = list(game.DIRECTIONS)
        while untried:  # drawing until one is legal is uniform over the legal ones
            direction = untried.pop(rng.randrange(len(untried)))
            board, gained, changed = game.move(board, direction)
            if changed:
                board, untried = game.spawn(board, rng), list(game.DIRECTIONS)
                score, count = score + gained, count + 1
        scores.append(score)
        moves.append(count)
        largest[game.max_tile(board)] += 1
    assert statistics.mean(scores) == pytest.approx(1093.97, abs=4 * 533.6 / sqrt(games))
    assert statistics.stdev(scores) == pytest.approx(533.6, rel=0.1)
    error = statistics.stdev(moves) / sqrt(games)
    assert statistics.mean(moves) == pytest.approx(118.3, abs=4 * error)
    for tile, share in {16: 0.0027, 32: 0.0674, 64: 0.3760, 128: 0.4761, 256: 0.0777}.items():
        error = sqrt(share * (1 - share) / games)
        assert largest[tile] / games == pytest.approx(share, abs=4 * error), tile


POLICIES = ["random", "random_legal", "corner_order", "merge_greedy"]
WINS = {"art": [0.115, 0.21, 0.553, 0.799], "standard": [0.543, 0.56, 0.861, 0.885]}


@pytest.mark.slow
@pytest.mark.parametrize("rules", WINS)
def test_scripted_baselines(rules: str) -> None:
    games, rng, env = 300, Random(1), started(rules=rules)
    for policy, share in zip(POLICIES, WINS[rules], strict=True):
        won = 0
        for seed in range(games):
            env.reset(seed)
            while not (step := env.step(env.baselines[policy](env, rng))).end:
                pass
            won += step.end is End.WON
        error = sqrt(share * (1 - share) * (1 / games + 1 / 5000))
        assert won / games == pytest.approx(share, abs=4 * error), policy


def test_a_group_shares_the_start_and_a_replay_is_exact() -> None:
    moves = [f"<move>{d}</move>" for d in Random(3).choices(game.DIRECTIONS, k=40)]

    def boards(member: int) -> list[str]:
        env = Game2048()
        return [env.reset(5, member=member), *(env.step(reply).observation for reply in moves)]

    played = [boards(member) for member in range(8)]
    assert len({shown[0] for shown in played}) == 1
    assert len({shown[-1] for shown in played}) == 8
    assert played[3] == boards(3)


SPACES = " " * 100_000
BAITS = ["<move>" * 17_000, "<think>" * 15_000, "<move>left" * 10_000, "< /" * 33_000, SPACES]
BAITS += [f"<{SPACES}", f"<move>{SPACES}", f"<think{SPACES}", f"<move>left</move>{SPACES}x"]
BAITS += ['<!DOCTYPE m [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><move>&b;</move>']
PIECES = ["<move>", "</move>", "<Move\t>", "</MOVE\n>", "<move\n>", "<think>", "</think>", "🙂&"]
PIECES += ["left", "Right", "up", "down", " ", "\n", "\xff\x00", "\x0b", "\x85", "\xa0", "\ud800"]


@pytest.mark.slow
@pytest.mark.parametrize("parser", Parser)
def test_arbitrary_replies_end_in_a_defined_outcome(parser: Parser) -> None:
    rng, env, read = Random(0), started(parser=parser), 0
    for index in range(30_000):
        reply = "".join(rng.choices(PIECES, k=rng.randrange(7)))
        if index % 3 == 0:
            reply = f"<move>{reply}</move>"
        if index % 10_000 < len(BAITS):
            reply = BAITS[index % 10_000]
        direction = parse(reply, parser)
        assert parser is Parser.lenient or direction == by_xml_parser(reply)
        read += direction is not None
        if index % 5:
            continue
        step = env.step(reply)
        assert (step.end is End.INVALID) == (direction is None)
        if step.end:
            env.reset(index)
    assert read > 300


def by_xml_parser(reply: str) -> str | None:
    try:
        root = ElementTree.fromstring(reply)
    except (ElementTree.ParseError, UnicodeEncodeError):
        return None
    text = (root.text or "").strip()
    return text if root.tag == "move" and not len(root) and text in game.DIRECTIONS else None


LENIENT = {
    "I go <move>left</move>, no: <MOVE> Up </move >.": "up",
    "<think><move>left</move></think>": None,
    "<move>left</move><think><move>up</move></think>": "left",
    "<think><move>left</move>": None,
    "<move>left</move></think><move>up</move>": "up",
    "<move>left</move><move>away</move>": None,
}


def test_the_lenient_parser_and_typed_input() -> None:
    assert {reply: parse(reply, Parser.lenient) for reply in LENIENT} == LENIENT
    typed = {"l": "left", " RIGHT\n": "right", "u": "up", "d": "down", "↓": "down"}
    for text, direction in typed.items():
        assert started().reply_from_input(text) == f"<move>{direction}</move>"
    assert started().reply_from_input("<move>up</move>") == "<move>up</move>"


WRONG = """win_value=100 win_value=4 size=1 size=4.5 max_moves=0 max_moves=True earlier_turns=-1
rules=house parser=none hints=7 gain_reward=nan gain_reward=inf illegal_penalty=-0.1 win_bonus=x"""


@pytest.mark.parametrize("setting", WRONG.split())
def test_a_wrong_setting_is_named(setting: str) -> None:
    with pytest.raises(ValueError, match=rf"\Aenv\.{setting}: must be .*\Z"):
        started(**{str(k): v for k, v in OmegaConf.from_dotlist([setting]).items()})


def test_the_yaml_has_the_settings_of_the_class_and_the_prompt_follows_them() -> None:
    names = [field.name for field in fields(Game2048)]
    stored = OmegaConf.load(CHECKOUT / "conf/env/game2048.yaml")
    assert isinstance(stored, DictConfig) and {*stored} == {"name", "_target_", *names}
    chosen = OmegaConf.masked_copy(stored, names)
    env = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Game2048), chosen))
    assert env == Game2048(parser=Parser.lenient)
    env = started([[2, 2, 0, 0], *[[0] * 4] * 3], hints=True, win_value=512, earlier_turns=0)
    assert env.earlier_turns_shown == 0 and "512" in env.system_prompt
    assert env.truncate().observation.endswith("\nleft=4 right=4 up=none down=0")
