"""The attacks in the order of the page: how often each is tried, and what it means to survive it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from trials import damage, disks, kills, together
from trials.harness import Row
from trials.makers import Things


class Attack(NamedTuple):
    run: Callable[[Things, int, int, int], Row]
    tries: int
    what: str
    survived: str


ATTACKS: dict[str, Attack] = {
    "kill-train": Attack(kills.kill_trainings, 70, "", ""),
    "kill-make": Attack(kills.kill_makers, 30, "", ""),
    "flips": Attack(damage.flips, 1000, "", ""),
    "cuts": Attack(damage.cuts, 200, "", ""),
    "disk": Attack(disks.disks, 60, "", ""),
    "together": Attack(together.together, 70, "", ""),
}
