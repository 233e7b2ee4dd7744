"""The rules of 2048, as functions that return new boards: lists of rows, with 0 for empty."""

from __future__ import annotations

from functools import lru_cache
from random import Random

Board = list[list[int]]

DIRECTIONS = ("left", "right", "up", "down")


def move(board: Board, direction: str) -> tuple[Board, int, bool]:
    """Slide all tiles; return the new board, the sum of the merged tiles, whether it changed."""
    if direction not in DIRECTIONS:
        raise ValueError(f"unknown direction {direction!r}: not one of {', '.join(DIRECTIONS)}")
    vertical = direction in ("up", "down")
    backward = direction in ("right", "down")
    lines = list(zip(*board, strict=True)) if vertical else list(map(tuple, board))
    slid = [_slide(line, backward) for line in lines]
    moved = [line for line, _ in slid]
    gained = sum([points for _, points in slid])
    rows = zip(*moved, strict=True) if vertical else moved
    return list(map(list, rows)), gained, moved != lines


@lru_cache(maxsize=1 << 17)  # lines recur, and a look-up costs a tenth of the loop
def _slide(line: tuple[int, ...], backward: bool) -> tuple[tuple[int, ...], int]:
    """Slide one line to its start, or to its end if `backward`; each tile merges at most once."""
    if backward:
        slid, gained = _slide(line[::-1], False)
        return slid[::-1], gained
    tiles: list[int] = []
    gained = 0
    may_merge = False
    for tile in filter(None, line):
        if may_merge and tile == tiles[-1]:
            tiles[-1] += tile
            gained += tiles[-1]
            may_merge = False
        else:
            tiles.append(tile)
            may_merge = True
    return (*tiles, *[0] * (len(line) - len(tiles))), gained


def spawn(board: Board, rng: Random) -> Board:
    """Put a tile on a random empty cell: a 2, or with probability 0.1 a 4.

    Raises `ValueError` if no cell is empty.
    """
    empty = [(r, c) for r, row in enumerate(board) for c, tile in enumerate(row) if not tile]
    if not empty:
        raise ValueError("no empty cell to put a tile on")
    row, column = rng.choice(empty)
    spawned = [cells[:] for cells in board]
    spawned[row][column] = 2 if rng.random() < 0.9 else 4
    return spawned


def new_board(size: int, rng: Random) -> Board:
    """Return a square board with two tiles."""
    return spawn(spawn([[0] * size for _ in range(size)], rng), rng)


def legal_directions(board: Board) -> list[str]:
    """Return the directions that change the board."""
    return [direction for direction in DIRECTIONS if move(board, direction)[2]]


def is_full(board: Board) -> bool:
    """Return whether no cell is empty."""
    return all(map(all, board))


def is_over(board: Board) -> bool:
    """Return whether no direction changes the board."""
    return not any(move(board, direction)[2] for direction in DIRECTIONS)


def max_tile(board: Board) -> int:
    """Return the largest tile."""
    return max(map(max, board))


def tile_sum(board: Board) -> int:
    """Return the sum of all tiles."""
    return sum(map(sum, board))


def render(board: Board) -> str:
    r"""Return the board as text, with cells as wide as the widest number.

    >>> render([[2, 0], [16, 4]])
    ' 2| _\n16| 4'
    """
    width = len(str(max_tile(board)))
    return "\n".join("|".join(str(tile or "_").rjust(width) for tile in row) for row in board)
