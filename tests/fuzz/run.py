"""Fuzz for long: ``python tests/fuzz/run.py [TARGET] [--number 500] [--seed 0]``; ends with 1 if there are faults."""

import argparse
import sys
from collections import Counter
from pathlib import Path

from frame import Runner


def main() -> int:
    """Run targets and print faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", nargs="?", help="by default all")
    parser.add_argument("--number", type=int, default=300, help="of inputs for each target")
    parser.add_argument("--seed", type=int, default=0, help="number of the first input")
    parser.add_argument("--show", action="store_true", help="print every outcome")
    given = parser.parse_args()
    kinds: Counter[str] = Counter()
    faults = 0
    for file in sorted(Path(__file__).parent.glob("fuzz_*.py")):
        with Runner(file) as runner:
            for target in [t for t in runner.targets if given.target in (None, t)]:
                for outcome in runner.run(range(given.seed, given.seed + given.number), target):
                    kinds[outcome.kind] += 1
                    faults += outcome.is_fault
                    if outcome.is_fault or given.show:
                        print(f"[{outcome.target} {outcome.number}] {outcome}", flush=True)
    print(", ".join(f"{n:,} {kind}" for kind, n in kinds.most_common()))
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
