"""Exchanges: one group of a plan goes up by a candidate, others go down to pay for it."""

from collections.abc import Iterator, Mapping

import numpy as np

from mpq.search.space import Choices, FloatArray, IntArray, Space

_MAX_DOWNS = 3
"""Groups that go down for one that goes up."""

_BATCH = 128
"""Pairs that are completed and ranked together; the best of them are proposed first."""


def exchanges(
    space: Space, damage: FloatArray, start: Choices, limits: Mapping[str, int]
) -> Iterator[Choices]:
    """Plans one exchange away from `start` that spend at most `limits`, each once.

    One group goes up by one candidate; as many others as its bits ask for, at most three, go
    down by one, those that lose the least damage a bit first; bits left over go to the groups
    that gain most a bit. Pairs are taken in the order of their predicted change of `damage`
    `[G, C]`, 128 at a time, and proposed in the order of the completed plans' damage.
    """
    plan = np.array(start, dtype=np.int64)
    step_up, step_down = _step(space, damage, plan, 1), _step(space, damage, plan, -1)
    # Last column: nobody goes down, the bits are there already.
    change = step_up[:, None] + np.append(step_down, 0.0)[None, :]
    np.fill_diagonal(change, np.inf)
    order = np.argsort(change, axis=None, kind="stable")
    order = order[np.isfinite(change.ravel()[order])]
    seen = {start}
    for first in range(0, len(order), _BATCH):
        rated: dict[Choices, float] = {}
        for pair in order[first : first + _BATCH]:
            up, down = (int(index) for index in np.unravel_index(pair, change.shape))
            downs = () if down == len(plan) else (down,)
            found = _completed(space, damage, plan, limits, up, downs)
            if found is not None and found not in seen:
                rows = np.arange(len(found))
                rated[found] = float(damage[rows, list(found)].sum())
                seen.add(found)
        yield from sorted(rated, key=lambda choices: (rated[choices], choices))


def _step(space: Space, damage: FloatArray, plan: IntArray, step: int) -> FloatArray:
    """`[G]`: change of damage when a group moves by one candidate; inf where it cannot."""
    target = plan + step
    is_there = (target >= 0) & (target < space.num_choices)
    rows = np.arange(len(plan))
    moved = damage[rows, np.where(is_there, target, 0)]
    return np.where(is_there & np.isfinite(moved), moved - damage[rows, plan], np.inf)


def _completed(
    space: Space,
    damage: FloatArray,
    start: IntArray,
    limits: Mapping[str, int],
    up: int,
    downs: tuple[int, ...],
) -> Choices | None:
    """The plan after the exchange, further downs while it costs too much, then its filling."""
    plan = start.copy()
    plan[up] += 1
    plan[list(downs)] -= 1
    touched = np.zeros(len(plan), dtype=bool)
    touched[[up, *downs]] = True
    room = {
        resource: limit - space.bits(resource, tuple(plan)) for resource, limit in limits.items()
    }
    num_downs = len(downs)
    while min(room.values(), default=0) < 0:
        if not 0 < num_downs < _MAX_DOWNS or not _move(space, damage, plan, touched, room, -1):
            return None
        num_downs += 1
    while _move(space, damage, plan, touched, room, 1):
        pass
    return tuple(int(choice) for choice in plan)


def _move(
    space: Space,
    damage: FloatArray,
    plan: IntArray,
    touched: np.ndarray,
    room: dict[str, int],
    step: int,
) -> bool:
    """Moves the untouched group that loses least (gains most) a bit, if there is one.

    Going down, only moves that save what is lacking count; going up, only those that fit.
    """
    rows = np.arange(len(plan))
    target = np.clip(plan + step, 0, space.num_choices - 1)
    added = {name: t[rows, target] - t[rows, plan] for name, t in space.costs.items()}
    change = np.where(touched, np.inf, _step(space, damage, plan, step))
    for resource, left in room.items():
        is_useful = added[resource] <= left if step > 0 else added[resource] < 0
        if step > 0 or left < 0:
            change = np.where(is_useful, change, np.inf)
    bits = np.maximum(1, np.abs(added["weight_bits"]) + np.abs(added["activation_bits"]))
    rate = change / bits
    best = int(np.argmin(rate))
    if not np.isfinite(rate[best]) or (step > 0 and change[best] >= 0):
        return False
    plan[best] += step
    touched[best] = True
    for resource in room:
        room[resource] -= int(added[resource][best])
    return True
