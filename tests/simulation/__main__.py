"""Runs of the simulation from the command line: one seed again, a range, or fresh ones for as long as asked."""

from __future__ import annotations

import argparse
import sys

from tests.simulation.mutants import MUTANTS, hunt, plant


def main() -> int:
    """Exit code 0 when everything held."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="play this one, with its trace")
    parser.add_argument("--keep", help="of its items only these, comma-separated")
    parser.add_argument("--seeds", help="play FIRST:LAST (without the last)")
    parser.add_argument("--seconds", type=float, help="play fresh seeds for so long, after the mutants")
    parser.add_argument("--mutant", choices=[mutant.name for mutant in MUTANTS], help="plant this bug first")
    parser.add_argument("--trace", type=int, default=40, help="lines of the trace to show")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    if args.mutant:
        plant(args.mutant)
    from tests.simulation import campaign  # only now: what is planted has to be there before the protocol is imported

    if args.seed is not None:
        return campaign.one(args.seed, args.keep, args.trace)
    if args.seeds:
        first, _, last = args.seeds.partition(":")
        seeds = range(int(first), int(last))
        return campaign.first_failure(seeds) if args.mutant else campaign.many(seeds, args.jobs)
    if args.seconds is None:
        parser.error("one of --seed, --seeds and --seconds")
    for mutant in MUTANTS:
        print(hunt(mutant), flush=True)
    return campaign.soak(args.seconds, args.jobs)


if __name__ == "__main__":
    sys.exit(main())
