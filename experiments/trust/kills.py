"""Kills runs at moments drawn from a seed, and compares them with runs that nobody disturbed.

    python -m experiments.trust.kills --count 100 --seed 0

A chain is one run of a method that is killed some times, every time by KILL, TERM or INT, a third
of the times by two signals, and then left alone to its end. What must hold: it is bit-identical to
an undisturbed run, no process outlives its signal, nothing half written is left, and of TERM and
INT there is one line and exit code 143 or 130.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from experiments import rows
from experiments.trust.compared import differences
from jprune.job.main import finetunes

OUT = rows.RESULTS / "engine" / "kills.jsonl"
# Together they have every stage of the recipes of this project (tests/job/test_trust.py).
METHODS = (
    *("taylor", "han", "three_d", "from_scratch", "csgd", "greg", "manidp", "play_and_prune"),
    *("c_obs", "dns", "edge_popup", "gal", "lottery_ticket", "metapruning", "ssl", "struct_admm"),
    *("variational", "aofp", "asfp", "cacp", "depgraph", "group_brain_damage", "gsm", "rigl"),
    *("slimming", "ssr", "channel_lasso", "data_free", "eigendamage", "fbs", "obs", "dpf"),
    *("energy_aware", "exact_obs", "fisher", "gmp", "granularity", "grasp", "greedy_forward"),
    *("guided_sparsity", "hesso", "iht", "increg", "lcp", "lcs", "m_fac", "movement", "netadapt"),
    *("nm", "particle_filter", "partial_order", "resrep", "tas", "autocompress", "subset_sum"),
)
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STARTING = 0.5
"""Seconds in which Python itself starts, and knows no handlers of ours."""
PATIENCE = 120.0
"""Seconds that a process may take to end behind its signal, on a machine that does other things."""
# A shell without a terminal starts its background processes with SIGINT ignored. Before the name of
# a program this has it started as from a terminal, under the same number.
HEARING = (
    *(sys.executable, "-I", "-S", "-c"),
    "import os, signal, sys; [signal.signal(number, signal.SIG_DFL) for number in (2, 15)]; "
    "os.execv(sys.argv[1], sys.argv[1:])",
)
COMMAND = "prune --model tests.toys:tiny --data digits --macs 0.5 --epochs 1"
OPTIONS = {
    "taylor": ["--rounds", "2", "--schedule", "iterative"],
    "guided_sparsity": ["--set", "machine=1e9:1e15:1"],  # the same on every machine
    "subset_sum": ["--macs", "1.0", "--model", "lenet300"],  # dense layers, made no smaller
}


class Kill(NamedTuple):
    """One kill.

    Attributes:
        method: of the run.
        name: of the signal.
        twice: whether a second signal followed.
        seconds: from the start of the process, or of the run where `of_run`, to the signal.
        of_run: what they are counted from.
        code: exit code; minus the signal's number for a process that was killed.
        lines: on the error stream.
        ended: seconds from the signal to the end of the process.
    """

    method: str
    name: str
    twice: bool
    seconds: float
    of_run: bool
    code: int
    lines: int
    ended: float

    @property
    def fault(self) -> str:
        """What is wrong with how the process ended; empty if nothing is."""
        number = getattr(signal, self.name)
        if self.code == 0:
            return ""  # it was over before the signal came
        if self.name == "SIGKILL":
            return "" if self.code == -number else f"code {self.code}"
        if self.code != 128 + number:
            return f"code {self.code}"
        return "" if self.lines == 1 else f"{self.lines} lines"


def command_of(method: str, out: Path) -> list[str]:
    """The command of a run of a method, as a process of its own."""
    words = [*COMMAND.split(), "--batch-size", "64", "--multiple-of", "4", "--quiet"]
    # Methods that train as the dense net is trained have no such option.
    words += ["--finetune-epochs", "1"] if finetunes(method) else []
    # Warnings of a method, such as that it had no time to act, are no lines of an end.
    child = [sys.executable, "-W", "ignore", "-m", "experiments.trust.child"]
    return [*child, *words, "--method", method, *OPTIONS.get(method, []), "--out", str(out)]


def started(method: str, out: Path) -> "subprocess.Popen[str]":
    """Starts a run, or goes on with it."""
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [*HEARING, *command_of(method, out)],
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def undisturbed(method: str, out: Path) -> float:
    """Makes a run; returns the seconds that it took from the moment it held its folder."""
    with started(method, out) as process:
        began = _held(process, out)
        _, complaint = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{method} ended with {process.returncode}: {complaint}")
    return time.monotonic() - began


def _held(process: "subprocess.Popen[str]", out: Path) -> float:
    """Waits until a process holds its folder, or is over; returns the time."""
    while process.poll() is None and not _is_held(process.pid, out):
        time.sleep(0.01)
    return time.monotonic()


def _is_held(pid: int, out: Path) -> bool:
    # The lock of a killed process is still there, with its number.
    lock = out / ".lock"
    return lock.exists() and f'"pid": {pid},' in lock.read_text()


def kill(
    method: str,
    out: Path,
    span: float,
    draw: np.random.Generator,
    signals: Sequence[signal.Signals] = SIGNALS,
) -> Kill:
    """Starts a run, or goes on with it, and kills it at a moment within a span of seconds."""
    number = signals[int(draw.integers(len(signals)))]
    of_run, twice = bool(draw.random() < 0.8), bool(draw.random() < 1 / 3)
    seconds = float(draw.uniform(0, span))
    with started(method, out) as process:
        if of_run:
            _held(process, out)
        elif seconds < STARTING:
            seconds += STARTING
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        began = time.monotonic()
        if twice and process.poll() is None:
            # Two at once are one: the system keeps no count of signals that wait.
            time.sleep(0.3)
            process.send_signal(number)
        try:
            _, complaint = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            complaint = "stuck\n" * 9
    ended = time.monotonic() - began
    lines = len(complaint.splitlines())
    return Kill(
        method, number.name, twice, round(seconds, 3), of_run, process.returncode, lines, ended
    )


def chain(
    method: str,
    folder: Path,
    reference: Path,
    span: float,
    kills: int,
    draw: np.random.Generator,
    signals: Sequence[signal.Signals] = SIGNALS,
) -> tuple[list[Kill], list[str]]:
    """Kills one run so many times, finishes it, and compares it with an undisturbed one.

    Args:
        method: of the run.
        folder: that the run's is made in.
        reference: the undisturbed run.
        span: seconds that it took.
        kills: how many; fewer if the run is over before.
        draw: of moments and signals.
        signals: that are drawn from.

    Returns:
        The kills, and what differs or is left half written.
    """
    out = folder / "run"
    done: list[Kill] = []
    while len(done) < kills and (not done or done[-1].code):
        # On average they come evenly over the run, which goes on after each of them.
        done.append(kill(method, out, 2 * span / (kills + 1), draw, signals))
    undisturbed(method, out)
    halves = [file.name for file in out.rglob("*") if "tmp" in file.name]
    return done, differences(out, reference) + halves


def chains(
    count: int, seed: int, methods: Sequence[str], kills: int, signals: Sequence[signal.Signals]
) -> Iterator[tuple[list[Kill], list[str]]]:
    """Chains of kills, a method after the other, until there are so many kills."""
    draw = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        spans: dict[str, float] = {}
        number = done = 0
        while done < count:
            method = methods[number % len(methods)]
            reference = Path(name) / method
            if method not in spans:
                spans[method] = undisturbed(method, reference)
            folder = Path(name) / f"{number}"
            few = min(kills, count - done)
            these, wrong = chain(method, folder, reference, spans[method], few, draw, signals)
            yield these, wrong
            number, done = number + 1, done + len(these)


def main(
    count: int = 100,
    seed: int = 0,
    methods: tuple[str, ...] = METHODS,
    kills: int = 2,
    signals: tuple[signal.Signals, ...] = SIGNALS,
    minutes: float = 90.0,
    out: Path = OUT,
) -> int:
    """Kills, compares, prints, and adds a row.

    Args:
        count: of kills.
        seed: that methods' moments and signals are drawn from.
        methods: names.
        kills: of one run.
        signals: that are drawn from, by name.
        minutes: after which no more runs are begun.
        out: file of the rows.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "jprune-kills"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    began = time.monotonic()
    done: list[Kill] = []
    faults: list[str] = []
    for these, wrong in chains(count, seed, methods, kills, signals):
        done += these
        bad = [f"{each.name}: {each.fault}" for each in these if each.fault]
        faults += [f"{these[0].method}: {fault}" for fault in [*bad, *wrong]]
        line = f"{these[0].method}: {len(these)} kills, {', '.join([*bad, *wrong]) or 'the same'}"
        print(line, *these, sep="\n  ", flush=True)
        if time.monotonic() - began > 60 * minutes:
            break
    row: dict[str, Any] = {
        "name": "kills",
        "seed": seed,
        "kills": len(done),
        "ended_before": sum(each.code == 0 for each in done),
        "by_signal": {
            number.name: sum(each.name == number.name for each in done) for number in SIGNALS
        },
        "twice": sum(each.twice for each in done),
        "methods": sorted({each.method for each in done}),
        "slowest_end_s": round(max((each.ended for each in done), default=0.0), 2),
        "faults": faults,
    }
    print(row)
    rows.append(out, {**row, **rows.provenance()})
    return bool(faults)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
