"""The command line with many checkpoints: what `kills.py` starts and sends signals to.

    python -m experiments.trust.child prune ...

Losses are looked at, and checkpoints written, at every second step. Latencies are measured as
shortly as possible.
"""

import functools
import sys


def main() -> int:
    """Runs the command of `sys.argv`."""
    # As the console script has it: then Ctrl-C is taken over before the imports below.
    sys.argv[0] = "jprune"
    from jprune import cli
    from jprune.job import main as jobs
    from jprune.runs import loop

    loop.EVERY = 2
    jobs.prune = functools.partial(jobs.prune, save_seconds=0.0, measure_seconds=0.0)
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
