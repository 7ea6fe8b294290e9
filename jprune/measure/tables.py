"""`latency_table`: a table of this device, measured once and then read from its cache."""

import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, TypedDict

import jax

from jprune import errors, foreign
from jprune.base import Groups, Variables
from jprune.cost import call_sites
from jprune.measure.provenance import Device, device, versions
from jprune.measure.sampling import Stopwatch, measured_table, settings, signature, stopwatch
from jprune.measure.table import FEATURES, LatencyTable, SiteTimes

TARGETS = {"xla": 128, "tflite": 1}
"""{runtime: examples in a call}."""
PACKAGES = {"xla": ("jax", "jaxlib"), "tflite": ("jax", "jaxlib", "ai-edge-litert")}
FORMAT = 1
LARGEST = 2**24
"""Bytes of a cached table."""


class Key(TypedDict):
    """What a table depends on."""

    format: int
    target: str
    batch: int
    net: str
    device: Device
    versions: dict[str, str | None]


class _Site(TypedDict):
    positions: float
    weights: list[float]
    error: float


class _Table(TypedDict):
    key: Key
    sites: list[_Site]
    scale: float
    written: float
    constant: float
    multiple_of: int
    error: float


def latency_table(
    fn: Callable[..., Any],
    variables: Variables,
    example: Any,
    groups: Groups,
    target: str = "xla",
    batch: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    note: Callable[[str], None] = lambda text: None,
    watch: Stopwatch | None = None,
) -> LatencyTable:
    """The latency table of a net on this device, from its cache or measured now, in minutes.

    Args:
        fn: the network, in inference mode.
        variables: its variables, or their shapes.
        example: input, or its shape; the batch axis first, whose size is replaced.
        groups: from `trace`.
        target: "xla", or "tflite" (with all cores that this process may use).
        batch: examples in a call; None: 128 under XLA, 1 under TFLite.
        cache: folder; None: `jprune/latency` in the user's cache folder (`$XDG_CACHE_HOME`, else
            `~/.cache`). A table of another device, of other versions or that cannot be read is
            measured anew.
        note: told what is measured, and why.
        watch: what takes the times; None: the clock, for the target.

    Raises:
        ArgumentError: another target, or a batch that it does not have.
        CheckpointError: the folder cannot be written to.
        MissingExtraError: TFLite without the extra `tflite`.
    """
    batch = TARGETS.get(target, 0) if batch is None else batch
    if batch < 1 or target not in TARGETS or (target == "tflite" and batch > 1):
        raise errors.ArgumentError(
            f'latency_table got target={target!r}, batch={batch}; write target="xla" with a batch '
            'of 1 or more, or target="tflite", which runs single examples.'
        )
    example = jax.ShapeDtypeStruct((batch, *example.shape[1:]), example.dtype)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    sites = call_sites(fn, shapes, example, groups=groups)
    words = [signature(site, gates) for site in sites for gates in settings(groups, site)]
    every = versions()
    key: Key = {
        "format": FORMAT,
        "target": target,
        "batch": batch,
        "net": _digest([*words, str(groups.sizes)]),
        "device": device(),
        "versions": {name: every[name] for name in PACKAGES[target]},
    }
    folder = _folder() if cache is None else pathlib.Path(cache)
    file = folder / f"{target}-b{batch}-{key['net']}-{_digest([str(key['device'])])}.json"
    table, why = _read(file, key, len(sites))
    if table is not None:
        return table
    _make(folder)  # before minutes are spent
    if why:
        note(f"{file} {why}: it is measured anew.")
    note(f"measuring {len(sites)} call sites under {target} on {key['device']['kind']}.")
    watch = stopwatch(target) if watch is None else watch
    table = measured_table(fn, shapes, example, groups, sites, target, watch)
    _write(file, key, table)
    return table


def _digest(words: list[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def _folder() -> pathlib.Path:
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "jprune" / "latency"


def _read(file: pathlib.Path, key: Key, sites: int) -> tuple[LatencyTable | None, str]:
    """The table; or None, and why it is not taken (empty where there is none)."""
    if not os.path.lexists(file):
        return None, ""
    try:
        value = foreign.parse(foreign.content(file, LARGEST))
        foreign.check(value, _Table, "it")
    except (errors.CheckpointError, ValueError) as error:
        return None, f"cannot be used ({foreign.line(error)})"
    others = [name for name in key if value["key"].get(name) != key[name]]
    if others:
        return None, f"is of another {' and '.join(others)}"
    lengths = {len(site["weights"]) for site in value["sites"]}
    if len(value["sites"]) != sites or lengths - {FEATURES}:
        return None, "is of another net"
    fits = [SiteTimes(s["positions"], tuple(s["weights"]), s["error"]) for s in value["sites"]]
    rest = [value[name] for name in ("scale", "written", "constant", "multiple_of", "error")]
    return LatencyTable(key["target"], key["batch"], tuple(fits), *rest), ""


def _make(folder: pathlib.Path) -> None:
    """Makes the folder, and tries whether it can be written to.

    Raises:
        CheckpointError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise errors.CheckpointError(
            f"{foreign.shown(folder)} cannot be written to ({error.strerror}), and the latency "
            "table is to be kept there. Choose another folder, or set XDG_CACHE_HOME."
        ) from error


def _write(file: pathlib.Path, key: Key, table: LatencyTable) -> None:
    value: _Table = {
        "key": key,
        "sites": [
            {"positions": site.positions, "weights": [*site.weights], "error": site.error}
            for site in table.sites
        ],
        "scale": table.scale,
        "written": table.written,
        "constant": table.constant,
        "multiple_of": table.multiple_of,
        "error": table.error,
    }
    # Under another name first: two runs may write at once, and one may be killed.
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as half:
        half.write(json.dumps(value))
    os.replace(half.name, file)
