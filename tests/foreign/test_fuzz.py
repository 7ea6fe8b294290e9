"""Readers on random bytes and on damaged files: they read, or refuse with one of our errors.

A minute in `make test`; `make fuzz` draws as many examples as JPRUNE_FUZZ says, for hours.
"""

import contextlib
import functools
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jprune import compare, errors, export, foreign, report
from jprune.data import sources, store
from jprune.data.own import options_of
from jprune.graph.shrink.plan_files import check_plan
from jprune.job.saved import load as load_saved
from jprune.runs.plans import read_plan
from jprune.runs.whole import verdicts
from jprune.zoo import torch_files, weight_files
from tests import compare_rows, torch_writer
from tests.foreign import documents

EXAMPLES = int(os.environ.get("JPRUNE_FUZZ", "60"))
# Bytes that mean something to one of the readers.
TOKENS = (
    *(
        b"\0",
        b"\xff",
        b"\n",
        b'"',
        b"[",
        b"{",
        b"}",
        b"null",
        b"true",
        b"NaN",
        b"1e999",
        b"-1",
        b"\\ud800",
    ),
    *(
        b"9" * 5000,
        b"[" * 3000,
        b'{"a":' * 3000,
        b"\xff" * 8,
        b"\x7f\xff\xff\xff",
        b"PK\x05\x06",
        b"cos\nsystem\n",
    ),
)


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """A content with up to four places changed."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.integers(0, 40)))
        part = content[start:stop]
        part = draw(
            st.sampled_from((b"", part + part, *TOKENS))
            | st.binary(max_size=8)
            | st.integers(0, 255).map(lambda mask, part=part: bytes(b ^ mask for b in part))
        )
        content = content[:start] + part + content[stop:]
    return content


def number_keys(value: Any) -> Any:
    """All values of a document, each of which may be another one."""
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    others = st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
        ),
        max_leaves=6,
    )
    if isinstance(value, dict) and value:
        whole = st.fixed_dictionaries(
            {key: number_keys(inner) for key, inner in list(value.items())[:12]}
        ).map(lambda changed: {**value, **changed})
    elif isinstance(value, list) and value:
        whole = st.lists(number_keys(value[0]), max_size=3)
    else:
        return st.just(value) | st.just(value) | st.just(value) | others
    return st.one_of(*[whole] * 9, others)


def npz() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, images=np.zeros((6, 4, 5, 1), np.uint8), labels=np.arange(6) % 3)
    return file.getvalue()


@functools.cache
def program() -> bytes:
    fn = lambda variables, x: x @ variables["w"]
    shape = jax.ShapeDtypeStruct((1, 3), jnp.float32)
    return export.stablehlo(fn, {"w": jnp.ones((3, 2))}, shape)


def hdf() -> bytes:
    """As Keras saves a dense layer."""
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as root:
        layer = root.create_group("layers/dense/vars")
        layer["0"], layer["1"] = np.ones((3, 2), np.float32), np.ones(2, np.float32)
    return file.getvalue()


def keras() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr(weight_files.KERAS, hdf())
    return file.getvalue()


def msgpack() -> bytes:
    return serialization.to_bytes({"dense": {"kernel": np.ones((3, 2)), "bias": np.ones(2)}})


def weights(path: Path) -> None:
    """Reads all that a file says it has."""
    file = weight_files.open_weights(path, 10**6)
    file.read(file.shapes)


def lines(document: Any) -> bytes:
    return (json.dumps(document) + "\n").encode() * 2


def in_run(name: str, read: Callable[[Path], Any]) -> Callable[[Path, bytes], Any]:
    """A reader of a run with one file of it replaced."""

    def run(folder: Path, content: bytes) -> Any:
        documents.write(folder)
        documents.put(folder / name, content)
        return read(folder)

    return run


def in_file(name: str, read: Callable[[Path], Any]) -> Callable[[Path, bytes], Any]:
    return lambda folder, content: read(documents.put(folder / name, content))


def prepared(folder: Path, content: bytes) -> None:
    documents.put(folder / "dataset_info.json", {"name": "mnist", "version": "1.0.0"})
    documents.put(folder / "features.json", content)
    try:
        store._require_known(folder)
    except ValueError as error:
        raise errors.DataError(str(error)) from error


FEATURES = {"pythonClassName": next(iter(store.FEATURES)), "featuresDict": {"features": {}}}
GOOD = documents.good()
text_of = lambda name: json.dumps(GOOD[name]).encode()
READERS: dict[str, tuple[Callable[[Path, bytes], Any], Callable[[], bytes]]] = {
    "result.json": (in_run("result.json", report.read_run), lambda: text_of("result.json")),
    "plan.json": (in_run("plan.json", read_plan), lambda: text_of("plan.json")),
    "config.json": (in_run("config.json", report.read_run), lambda: text_of("config.json")),
    "records.jsonl": (
        in_run("records.jsonl", report.read_run),
        lambda: lines(GOOD["records.jsonl"]),
    ),
    "saved plan": (in_run("plan.json", load_saved), lambda: text_of("plan.json")),
    "DONE": (
        in_run("stages/01-train/DONE", verdicts),
        lambda: json.dumps({"wall_s": 1.0, "records": [], "lines": [], "files": {}}).encode(),
    ),
    "rows": (
        in_file("a.jsonl", lambda path: compare.read([path])),
        lambda: lines(compare_rows.row()),
    ),
    "features": (prepared, lambda: json.dumps(FEATURES).encode()),
    "torch": (
        in_file("w.pth", torch_files.load),
        lambda: torch_writer.zip_of({"a.weight": np.ones((2, 3), np.float32)}),
    ),
    "safetensors": (
        in_file("w.safetensors", torch_files.load),
        lambda: torch_writer.safe_of({"a": np.ones((2, 3))}),
    ),
    "npz weights": (in_file("w.npz", weights), npz),
    "hdf": (in_file("w.weights.h5", weights), hdf),
    "keras": (in_file("w.keras", weights), keras),
    "msgpack": (in_file("w.msgpack", weights), msgpack),
    "npz data": (
        in_file("x.npz", lambda path: sources.npz(str(path), options_of({}), None)),
        npz,
    ),
    "stablehlo": (in_file("m.stablehlo", export.load_stablehlo), program),
}


def refused_or_read(read: Callable[[Path, bytes], Any], content: bytes) -> None:
    # Whatever else is raised fails the test.
    with tempfile.TemporaryDirectory() as name, contextlib.suppress(errors.JpruneError):
        read(Path(name), content)


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_files(reader, data):
    read, good = READERS[reader]
    refused_or_read(read, data.draw(damaged(good())))


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=EXAMPLES // 3)
@given(content=st.binary(max_size=200))
def test_random_bytes(reader, content):
    refused_or_read(READERS[reader][0], content)


@pytest.mark.parametrize("name", ["result.json", "plan.json", "config.json", "rows"])
@settings(max_examples=EXAMPLES // 2, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_documents_with_other_values(name, data):
    document = data.draw(number_keys(GOOD[{"rows": "rows.jsonl"}.get(name, name)]))
    text = json.dumps(document).encode()
    refused_or_read(READERS[name][0], text + b"\n" + text if name == "rows" else text)


@settings(max_examples=EXAMPLES)
@given(document=number_keys(documents.plan()))
def test_a_plan_is_refused_or_whole(document):
    with contextlib.suppress(errors.StructureError):
        check_plan(document)
        assert all(max(g["keep"], default=0) < g["size"] for g in document["groups"].values())


@settings(max_examples=EXAMPLES)
@given(text=st.text() | st.binary())
def test_json_is_parsed_as_the_standard_library_does(text):
    with contextlib.suppress(ValueError):
        value = foreign.parse(text)
        assert value == json.loads(text)
