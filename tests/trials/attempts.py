"""The attacks in the order of the page: how often each is tried, and what it means to survive it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from trials import damage, disks, kills, service, strangers, together
from trials.harness import Row
from trials.makers import Things


class Attack(NamedTuple):
    run: Callable[[Things, int, int, int], Row]
    tries: int
    what: str
    survived: str


ATTACKS: dict[str, Attack] = {
    "kill-train": Attack(
        kills.kill_trainings,
        70,
        "SIGKILL while training: at a random moment, or just before a random change of a file (start, claim of the "
        "folder, saves, the rewriting of a resumed run's log, the end), up to three kills a run",
        "every step that counts matches its manifest, and {trainings} runs went on to the parameters, optimiser, "
        "random numbers, steps and log of one that nobody killed, bit by bit",
    ),
    "kill-make": Attack(
        kills.kill_makers,
        30,
        "SIGKILL while importing, exporting or indexing",
        "nothing half-written stands under its name, and the next run makes the same folder",
    ),
    "flips": Attack(
        damage.flips,
        1000,
        "one bit flipped in a file of a run, a data set, a bundle or a gallery",
        "the verb that uses it answers as before, or with one sentence and exit code 3 or 4; never another number",
    ),
    "cuts": Attack(
        damage.cuts,
        200,
        "such a file cut short, or its end filled with zeros",
        "the same",
    ),
    "strangers": Attack(
        strangers.strangers,
        1000,
        "files as an attacker makes them: pickles that execute, bombs, arrays and JSON that lie, paths that lead "
        "outside, exported functions that are none",
        "nothing was executed, nothing of another folder shown, at most {mib} MiB more taken than of a sound file; one "
        "sentence, or ({answered} times) the answer that the rest of the file gives",
    ),
    "service": Attack(
        service.services,
        1790,
        "clients of the service: 40 unfinished bodies, 1,200 idle connections, 50 slow headers, 40 bodies that are too "
        "large, 200 clients that leave, 20 bodies past the deadline, 40 wrong hosts, 200 broken requests",
        "an ordinary question is answered as before while each of them lasts (after at most {slowest_ms:,} ms) and "
        "afterwards; memory {before} MiB before, {after} MiB after; what is refused has the status of the table below",
    ),
    "replaced": Attack(
        service.replaced,
        20,
        "the served gallery replaced by another, by a rename or file by file",
        "all {asked:,} answers meanwhile are whole, of the old or the new gallery, and the new one is taken",
    ),
    "disk": Attack(
        disks.disks,
        60,
        "a disk ({disk}) that is full while training, importing, exporting, indexing, evaluating or adding "
        "text features",
        "one sentence and exit code 3 or 4, what was there before is kept, and with room the same command ends as if "
        "nothing had happened",
    ),
    "together": Attack(
        together.together,
        70,
        "two processes in one folder: two trainings, imports, exports or indexings, or a training beside "
        "`eval --watch`, `export` or `show`",
        "each ends well or is refused in one sentence, and the folder is afterwards that of one process alone",
    ),
}
