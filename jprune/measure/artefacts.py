"""Two nets in files against each other: `.stablehlo` under XLA, `.tflite` under TFLite."""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypedDict

import jax

from jprune import errors, foreign
from jprune.export.inputs import sample
from jprune.export.xla import load_stablehlo
from jprune.measure.clock import Latency, percentiles, timings
from jprune.measure.nets import tflite_call, xla_call
from jprune.measure.profiles import peak_bytes

SUFFIXES = (".stablehlo", ".tflite")
LARGEST = 2**32
"""Bytes of a file."""


class Compared(TypedDict):
    """Two nets under one runtime, or each under its own.

    Attributes:
        runtime: words for it.
        batch: examples in a call.
        times: of a call of the first and the second net, in ms.
        ratio: of the second net's time to the first's, round by round.
        peak_bytes: of the two nets' programs, where the runtime says it.
    """

    runtime: str
    batch: int
    times: tuple[Latency, Latency]
    ratio: Latency
    peak_bytes: tuple[int | None, int | None]


class _Ready(NamedTuple):
    """A net that can be called."""

    call: Callable[[], Any]
    batch: int
    peak_bytes: int | None = None


def bench(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    batches: Sequence[int] = (1, 128),
    threads: Sequence[int] = (1, 2),
    seconds: float = 2.0,
) -> list[Compared]:
    """Times two nets in turns under every runtime that both have files for.

    Where they have none in common, each is timed under its own, at a batch of 1.

    Args:
        first: a .stablehlo or .tflite file, or a run's folder that holds such.
        second: another one, or the same.
        batches: examples in a call under XLA. A net that takes one batch size alone gets that.
        threads: of TFLite, whose batch is 1.
        seconds: to spend on each comparison, at least.

    Raises:
        CheckpointError: a file that is missing, damaged or no such net; the message names it.
        MissingExtraError: a .tflite file without the extra `tflite`.
        ArgumentError: a batch or a number of threads below 1; nets that take different batches.
    """
    if min((*batches, *threads), default=0) < 1:
        raise errors.ArgumentError(
            f"bench got batches={tuple(batches)}, threads={tuple(threads)}; all are 1 or more."
        )
    files = [_files(pathlib.Path(path)) for path in (first, second)]
    sides = [_runtimes(each, batches, threads) for each in files]
    pairs = [(name, name) for name in sides[0] if name in sides[1]]
    if not pairs:
        sides = [_runtimes(each, (1,), threads) for each in files]
        pairs = [tuple(next(iter(side)) for side in sides)]
    rows = []
    for names in pairs:
        ready = [side[name]() for side, name in zip(sides, names)]
        if ready[0].batch != ready[1].batch:
            raise errors.ArgumentError(
                f"{foreign.shown(first)} takes batches of {ready[0].batch}, and "
                f"{foreign.shown(second)} of {ready[1].batch}: their times say nothing about each "
                "other. Export both for any batch."
            )
        times = timings({"0": ready[0].call, "1": ready[1].call}, seconds=seconds)
        rows.append(
            Compared(
                runtime=" against ".join(dict.fromkeys(names)),
                batch=ready[0].batch,
                times=(percentiles(times["0"]), percentiles(times["1"])),
                ratio=percentiles(times["1"] / times["0"]),
                peak_bytes=(ready[0].peak_bytes, ready[1].peak_bytes),
            )
        )
    return rows


def _files(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """{suffix: file} of an artefact.

    Raises:
        CheckpointError: it is none.
    """
    kinds = " or ".join(SUFFIXES)
    if path.is_dir():
        files = {suffix: path / f"model{suffix}" for suffix in SUFFIXES}
        files = {suffix: file for suffix, file in files.items() if file.is_file()}
        if not files:
            raise errors.CheckpointError(
                f"{foreign.shown(path)} holds no model{SUFFIXES[0]} and no model{SUFFIXES[1]}: it "
                "is no finished run. Run its `jprune prune` to the end, or `jprune export` it."
            )
        return files
    if path.suffix not in SUFFIXES:
        raise errors.CheckpointError(
            f"{foreign.shown(path)} is no folder of a run, and does not end in {kinds}. `jprune "
            "export` writes such files."
        )
    return {path.suffix: path}


def _runtimes(
    files: dict[str, pathlib.Path], batches: Sequence[int], threads: Sequence[int]
) -> dict[str, Callable[[], _Ready]]:
    """{runtime: makes a call of the net}; files are read here, nets are compiled one by one."""
    ready: dict[str, Callable[[], _Ready]] = {}
    if file := files.get(".stablehlo"):
        exported = load_stablehlo(file)
        for size in _fixed(exported) or batches:
            ready[f"XLA, batch {size}"] = lambda size=size: _of_xla(exported, size)
    if file := files.get(".tflite"):
        model = foreign.content(file, LARGEST)
        _named(file, lambda: tflite_call(model))
        for count in threads:
            name = f"TFLite, {count} thread{'s' * (count > 1)}"
            ready[name] = lambda count=count: _Ready(tflite_call(model, count), 1)
    return ready


def _fixed(exported: Any) -> list[int]:
    """The batch of a net that takes one alone; empty for any."""
    lengths = [aval.shape[0] for aval in exported.in_avals if aval.shape][:1]
    return [length for length in lengths if isinstance(length, int)]


def _of_xla(exported: Any, batch: int) -> _Ready:
    size = lambda n: n if isinstance(n, int) else batch
    shapes = [
        jax.ShapeDtypeStruct(tuple(map(size, aval.shape)), aval.dtype) for aval in exported.in_avals
    ]
    leaves = [sample(shape, shape.shape[0]) if shape.shape else 0 for shape in shapes]
    args, keywords = exported.in_tree.unflatten(leaves)
    call, executable = xla_call(lambda *args: exported.call(*args, **keywords), *args)
    return _Ready(call, batch, peak_bytes(executable))


def _named(file: pathlib.Path, make: Callable[[], Any]) -> None:
    """Says of which file an error is."""
    try:
        make()
    except errors.CheckpointError as error:
        raise errors.CheckpointError(f"{foreign.shown(file)}: {error}") from error
