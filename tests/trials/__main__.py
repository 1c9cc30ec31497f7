"""`python -m trials`: run the attacks, print every failure with what repeats it, and keep the figures as JSON."""

from __future__ import annotations

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_force_host_platform_device_count=1"
)

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from trials import figures, makers
from trials.attempts import ATTACKS


def main() -> int:
    parser = argparse.ArgumentParser(prog="launch/reliability.sh", description=__doc__)
    parser.add_argument("quick", nargs="?", choices=["quick"], help="a twentieth of the tries")
    parser.add_argument("--only", nargs="+", choices=list(ATTACKS), help="these attacks alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first try; with --tries 1 it repeats one")
    parser.add_argument("--tries", type=int, help="of each attack")
    parser.add_argument("--json", type=Path, help="keep the figures here")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="xmodal-reliability-"))
    began = time.monotonic()
    rows, failed = {}, 0
    try:
        things = makers.make(root)
        print(f"seed {args.seed}; made what is attacked in {time.monotonic() - began:.0f} s", flush=True)
        for name in args.only or ATTACKS:
            attack = ATTACKS[name]
            tries = args.tries or (max(attack.tries // 20, min(attack.tries, 3)) if args.quick else attack.tries)
            print(f"{name}: {tries:,} tries from {args.first} on, seed {args.seed}", flush=True)
            start = time.monotonic()
            row = attack.run(things, tries, args.seed, args.first)
            rows[name] = {"tries": row.tries, "survived": row.tries - len(row.failures), **row.notes}
            rows[name]["seconds"] = round(time.monotonic() - start)
            failed += len(row.failures)
            print(f"{name}: {rows[name]}", flush=True)
            if args.json:
                figures.keep(args.json, {name: rows[name]}, args.seed)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(f"{sum(row['tries'] for row in rows.values()):,} tries, {failed} failures, {time.monotonic() - began:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
