"""Checkpoints that mean harm: code, bombs, and damage of every kind."""

import functools
import io
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jprune import errors
from jprune.zoo import torch_files, torch_pickle
from tests import torch_writer
from tests.torch_writer import (
    FORMATS,
    Code,
    call,
    code,
    coded,
    global_,
    ones,
    program,
    small,
    storage,
    stream_file,
    tensor,
    zip_file,
    zip_of,
)


@pytest.fixture
def read(tmp_path):
    """Reads bytes as a file `weights.pth`."""
    return functools.partial(torch_writer.read, tmp_path / "weights.pth")


HOSTILE = {
    "os.system": call(global_("os", "system"), "touch canary"),
    "posix": call(global_("posix", "system"), "touch canary"),
    "eval": call(global_("builtins", "eval"), "open('canary', 'w')"),
    "getattr": call(global_("builtins", "getattr"), global_("torch", "FloatStorage"), "__class__"),
    "inside torch": call(global_("torch.hub", "load"), "somebody/something"),
    "a dotted name": Code(
        code("collections") + code("OrderedDict.__init__.__globals__") + pickle.STACK_GLOBAL
    ),
    "a global that is no string": Code(code("os") + code(3) + pickle.STACK_GLOBAL),
    "NEWOBJ": Code(global_("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.NEWOBJ),
    "INST": Code(pickle.MARK + pickle.INST + b"os\nsystem\n"),
    "OBJ": Code(pickle.MARK + global_("collections", "OrderedDict") + pickle.OBJ),
    "EXT1": Code(pickle.EXT1 + b"\x01"),
    "a text persistent id": Code(pickle.PERSID + b"os\n"),
    "out-of-band buffers": Code(pickle.NEXT_BUFFER),
    "a call of a string": call(code("os.system"), "touch canary"),
    "a call of a type": call(global_("torch", "FloatStorage"), 3),
    "a call without tuple": Code(
        global_("collections", "OrderedDict") + code([]) + pickle.REDUCE
    ),
    "an ordered dict of items": call(global_("collections", "OrderedDict"), [("a", 1)]),
    "attributes of a tensor": Code(
        tensor(storage("0", 1), 0, (1,), (1,)) + code({"__class__": 1}) + pickle.BUILD
    ),
    "attributes of a storage": Code(storage("0", 1) + code({"size": 99}) + pickle.BUILD),
    "items of a tuple": Code(code(()) + code("a") + code("b") + pickle.SETITEM),
    "items appended to a dict": Code(code({}) + code("a") + pickle.APPEND),
    "a tuple as key": code({("a",): 1}),
    "an odd number of items": Code(
        pickle.EMPTY_DICT + pickle.MARK + code("a") + pickle.SETITEMS
    ),
    "a parameter of nothing": call(global_("torch._utils", "_rebuild_parameter")),
    "a tensor without storage": tensor(3, 0, (1,), (1,)),
    "a tensor of two arguments": call(
        global_("torch._utils", "_rebuild_tensor"), storage("0", 1), 0
    ),
    "a negated tensor": call(
        global_("torch._utils", "_rebuild_tensor_v2"),
        storage("0", 1), 0, (1,), (1,), False, {}, {"neg": True},
    ),
    **{
        f"a persistent id of {name}": Code(code(came) + pickle.BINPERSID)
        for name, came in {
            "None": None,
            "a string": "storage",
            "a number": 2**200,
            "an empty tuple": (),
            "a module": ("module", global_("torch", "FloatStorage"), "0", "cpu", 1),
            "a type by name": ("storage", "FloatStorage", "0", "cpu", 1),
            "a type in place of the word": (global_("torch", "FloatStorage"),) * 5,
            "a number as key": ("storage", global_("torch", "FloatStorage"), 0, "cpu", 1),
            "a path as size": ("storage", global_("torch", "FloatStorage"), "0", "cpu", "x"),
            "a size below 0": ("storage", global_("torch", "FloatStorage"), "0", "cpu", -1),
            "True elements": ("storage", global_("torch", "FloatStorage"), "0", "cpu", True),
            "a view": ("storage", global_("torch", "FloatStorage"), "0", "cpu", 1, ("v", 0, 1)),
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_hostile_pickles_are_refused_and_nothing_runs(read, tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.CheckpointError, match=r"weights\.pth: "):
        read(zip_file({"a": value}, [ones(1)]))
    with pytest.raises(errors.CheckpointError, match=r"weights\.pth: "):
        read(stream_file({"a": value}, [(1, ones(1))]))
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]


def test_the_message_names_what_was_refused_and_what_to_do(read):
    with pytest.raises(errors.CheckpointError) as caught:
        read(zip_file(HOSTILE["os.system"], []))
    assert "names 'system' of 'os'" in str(caught.value)
    assert "torch.save(model.state_dict(), path)" in str(caught.value)


BOMBS = {
    "memo places up to 2^32": Code(b"".join(
        pickle.EMPTY_TUPLE + pickle.LONG_BINPUT + struct.pack("<I", 2**32 - 1 - n) + pickle.NONE
        for n in range(9)
    )),
    "a string of 4 GB": Code(pickle.BINUNICODE + b"\xff\xff\xff\xff" + b"a"),
    "a memo that was never filled": Code(pickle.LONG_BINGET + b"\xff\xff\xff\xff"),
    "an empty stack": Code(pickle.TUPLE3),
    "a mark that was never made": Code(pickle.TUPLE),
    "a list within itself": Code(
        pickle.EMPTY_LIST + pickle.BINPUT + b"\x00" + pickle.BINGET + b"\x00" + pickle.APPEND
    ),
    "a dict within itself": Code(
        pickle.EMPTY_DICT + pickle.BINPUT + b"\x00" + code("model") + pickle.BINGET + b"\x00"
        + pickle.SETITEM
    ),
    "a thousand laughs": Code(
        pickle.EMPTY_LIST + (pickle.BINPUT + b"\x00" + (pickle.BINGET + b"\x00") * 2
        + pickle.TUPLE2) * 2000
    ),
    "nested 20,000 deep": Code(pickle.EMPTY_TUPLE + pickle.TUPLE1 * 20_000),
    "nested 20,000 deep as storage": Code(
        pickle.EMPTY_TUPLE + pickle.TUPLE1 * 20_000 + pickle.BINPERSID
    ),
    "nested 20,000 deep as key": Code(
        pickle.EMPTY_DICT + pickle.EMPTY_TUPLE + pickle.TUPLE1 * 20_000 + pickle.NONE
        + pickle.SETITEM
    ),
    "a shape of 2^62": tensor(storage("0", 1), 0, (2**62,), (1,)),
    "a shape of 2^600": tensor(storage("0", 1), 0, (2**600,), (1,)),
    "a shape of no elements, 2^62 long": tensor(storage("0", 1), 0, (0, 2**62), (1, 1)),
    "a shape of no elements, too large all the same": tensor(
        storage("0", 1), 0, (0, 2**39, 2**39), (1, 1, 1)
    ),
    "one number as a terabyte": tensor(storage("0", 1), 0, (2**19, 2**19), (0, 0)),
    "rows that share numbers": tensor(storage("0", 10), 0, (4, 4), (2, 1)),
    "a stride below 0": tensor(storage("0", 10), 9, (4,), (-1,)),
    "an offset below 0": tensor(storage("0", 10), -1, (4,), (1,)),
    "an offset beyond the storage": tensor(storage("0", 10), 7, (4,), (1,)),
    "True as side": tensor(storage("0", 10), 0, (True,), (1,)),
    "fewer strides than sides": tensor(storage("0", 10), 0, (2, 2), (1,)),
    "seventeen sides": tensor(storage("0", 10), 0, (1,) * 17, (1,) * 17),
    "a storage longer than the file": tensor(storage("0", 2**50), 0, (1,), (1,)),
    "a storage of two sizes": Code(
        pickle.EMPTY_DICT + code("a") + tensor(storage("0", 10), 0, (1,), (1,)) + pickle.SETITEM
        + code("b") + tensor(storage("0", 11), 0, (1,), (1,)) + pickle.SETITEM
    ),
    "a storage that is not there": tensor(storage("../../etc/passwd", 10), 0, (1,), (1,)),
}  # fmt: skip


@pytest.mark.parametrize("value", BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_in_little_memory(read, value):
    for file in (
        zip_file({"a": value} if value[:1] != pickle.EMPTY_DICT else value, [bytes(40)]),
        stream_file({"a": value} if value[:1] != pickle.EMPTY_DICT else value, [(10, bytes(40))]),
    ):
        tracemalloc.start()
        try:
            with pytest.raises(errors.CheckpointError):
                read(file)
            assert tracemalloc.get_traced_memory()[1] < 2**20 + 40 * len(file)
        finally:
            tracemalloc.stop()


def test_the_number_of_instructions_is_bounded(read, monkeypatch):
    file = zip_of({"a": ones(1)})
    monkeypatch.setattr(torch_pickle, "MAX_STEPS", 100)
    assert list(read(file)) == ["a"]
    with pytest.raises(errors.CheckpointError, match="more than 100 instructions"):
        read(zip_of({str(number): ones(1) for number in range(9)}))


def mutated(content, random):
    """One of six ways to damage a file."""
    content = bytearray(content)
    here, there = sorted(random.integers(0, len(content), 2))
    length = int(random.integers(1, 40))
    match random.integers(6):
        case 0:
            for place in random.integers(0, len(content), random.integers(1, 9)):
                content[place] ^= 1 << random.integers(8)
        case 1:
            del content[there:]
        case 2:
            del content[here : here + length]
        case 3:
            content[there:there] = content[here : here + length]
        case 4:
            content[here : here + 4] = bytes(random.choice([0, 127, 255], 4).tolist())
        case 5:
            content[here : here + length] = random.bytes(length)
    return bytes(content)


@pytest.mark.parametrize("file_of", FORMATS.values(), ids=FORMATS)
def test_damaged_files_are_refused_or_read_and_nothing_else(read, file_of):
    random = np.random.default_rng(20)
    file = file_of(small())
    refused = 0
    tracemalloc.start()
    try:
        for _ in range(400):
            try:
                found = read(mutated(file, random))
            except errors.CheckpointError:
                refused += 1
            else:
                assert all(isinstance(array, np.ndarray) for array in found.values())
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert refused > 100


def test_damaged_pickles_behind_a_right_checksum():
    random = np.random.default_rng(21)
    good = program({"epoch": 3, "state_dict": coded(small())})
    refused = 0
    for _ in range(1000):
        try:
            torch_pickle.read(io.BytesIO(mutated(good, random)))
        except errors.CheckpointError:
            refused += 1
    assert 500 < refused < 1000


INSTRUCTIONS = [
    pickle.MARK, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_TUPLE,
    pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.NONE, pickle.NEWTRUE, pickle.SETITEM, pickle.BUILD,
    pickle.SETITEMS, pickle.APPEND, pickle.APPENDS, pickle.REDUCE, pickle.BINPERSID,
    pickle.STACK_GLOBAL, pickle.MEMOIZE, pickle.BINPUT + b"\x00", pickle.BINGET + b"\x00",
    pickle.BINGET + b"\x01", code("storage"), code("0"), code(1), code(-1), code("state_dict"),
    global_("torch", "FloatStorage"), global_("collections", "OrderedDict"),
    global_("torch._utils", "_rebuild_tensor_v2"), storage("0", 4), storage("1", 2**40),
    tensor(storage("0", 4), 0, (2, 2), (2, 1)), pickle.STOP,
]  # fmt: skip


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.lists(st.sampled_from(INSTRUCTIONS) | st.binary(min_size=1, max_size=2), max_size=40))
def test_any_program_gives_a_value_or_a_checkpoint_error(parts):
    content = pickle.PROTO + b"\x02" + b"".join(parts) + pickle.STOP
    try:
        value, _ = torch_pickle.read(io.BytesIO(content))
        tensors = torch_files._state_dict(value)
    except errors.CheckpointError:
        return
    assert all(isinstance(tensor, torch_pickle.Tensor) for tensor in tensors.values())
