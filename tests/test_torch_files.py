"""PyTorch checkpoints without torch: three formats, and files that mean harm.

The files are written here, instruction by instruction, so that any pickle can be had: nothing of
torch is needed. Two were written by torch itself.
"""

import base64
import io
import json
import pickle
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jprune import errors
from jprune.zoo import torch_files, torch_pickle

# {"state_dict": state of Linear(3, 2) with "steps" and "turned" beside it, "epoch": 3}, saved by
# torch 2.14 in both of its formats; deflated, in base 85.
TORCH_ZIP = (
    "c-o~^NpI6Y6rR|vn;J+LmX-"
    "o#2M0=sowjM%iXvnVMxq2ESzIhP8Da}J&a)>)AXTb_T8SH65C?=f@(<v~jWb+0aRaI10)K%SyA8IhbRA`4B{SbLZ{B"
    ";J(fBTe(rL7A^rJy!dR5Dw$Cqm+F>}qwj#|#3hq1B9EdY{qkpg^T5^U7$DuGnB>N*at65DO~;$5$XJzTp*S47~l72q"
    "XZpnxaXu3H4Us>G!_Iip2v#}^F`&$eu*W)R%)UC)?TMCg_zy(f@xJ+qEM2qB{CxF)$D{wYF_o}zp5kk)zntTtQFs|f"
    "_edm7R>jbDa68n306Vebozx!6Y_Q-MC6o*&KHrVsrV)v*LC<dI>(>eV;`g8_aC_G_snI1pkF5;#<WA-"
    "y{=g_}MMhu~FXcicw3?dx#Br@#p1OA$Ci`LfxN=O}?=6&MY|L0Vn|*Wh@}MFCD&!6{BM7re$T!znGr4s$wWI78rU1<"
    "th=;Jn^T0md9ACc7_?g7vJ<E)y;+z{Mbh^Vsw0t-"
    "zR;@_m0cI00_DRSPa@d@DDj^`!rt^s`^7IGZya^J55IZ0ASrk?YNw#8@R)%jXkm(s9U4@Z;Yf&)H$w>?}BfivI;yGr"
    "=$&yWW_?4WgC{Th)w?$#G_2`U(8zs06p6fdMq#HZc2?V3*~!TE4my-"
    "L>J^ggBUaSi1i6FiQhrLk}5rBUY7{^J@9ZE)0aMi_`S$CjHR4Nay>T%+b)xl~==bVR#cqV{u2aT9(i@^r`mZXQpR;$"
    "(&;X=}q*m#q|`mJhkHp^sKTn{pR--cL(}~-RSQ={(X@;+<yHPM5grZUH!r4`9F%3{{<Kv-"
    "N&9yEAW}g8ogoH)N*c{k&yGn;?$&4R7%BCX=-"
    "9zo>V5}ysXIM`BG6<@`@~%@>3H9=JNJi|CdC4NP)`~Gu!qV?OFZnoG0I7Np!RU4aJZrIMk`jB}t-"
    "9WF$uNDoV1hb0vAAjbI?gGsvU$4JZkZW=$prf6b#r??_^!6&S}#T?wq5#73(pj(wBFDqHtF+?~J{lGteO_QkLtBG?X"
    "h7EP(qc&r7qNwUvqf-tsL8vLa;QcOIbbK&!ou-0mXpzB=i4S$Dky>21Ih{67F??14|7O?"
)
TORCH_STREAM = (
    "c-n=MOK;Oa5XaY#IK<FW-jru~J3OK!N>lqp52%-"
    "g0^#BdvK)IA8yP#}9T$NVDVIjTXW+n*Z^7r`BOq~LY_|oZNUXfJJhStg|IE%@{cI+`zU=(mc=PSWdS|Xa`=QZ$2F!B"
    "T7-"
    "Q2s!z{=WZ%^bh&Qeh5fV)DTBt}exC(<zXQ&2y;CK>VlRCqG}AS7rr&@Hz?Mj2%}LW8TWMt^aNU~t{lOGcJXpvm>3IL"
    "ui>B>E`4Fb)uufO01yKuRsm=Xoe{5k4W032J);n&lc4@J_^&2tf}p%Y&%n6&NSd^l~vS;w1D?q%zCBy}k(z%W|7liY"
    ")gh0*pGu+(|MYU)4qvn(iu{aR&CF-?e*AzvtKkI990-"
    "rUkUPv5R27<czCaTflLyab*D~K1HRb6@=9hoUG~_$G(KMh_XgT^oQDWhC^p-"
    "bE|K|si?(OqMfd2`*4OU`*5}<okKW3f(vyIQA{OVtWgJ|pHlaZG_U_dw}(A@(1lAxSBQR@=<Rk*y@GIc1lOv@VUedI"
    "gzL)`Zgn@EUcU<)QC;tiQlZAx1>EFHS@x}(cN^i(2<{d$xaYPg+<Pm~4}J8(s{C!2j12D2;6c^;!$Eq;6)EMos!mL^"
    "Ac99+E9c;KIR{IMQI_>jT_#yuc7M9)D6C%1gRjbt)?>!z-wpQnnv;!f(?fes`|I}q{J#NWUd<f"
)

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
SAFE = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


class Code(bytes):
    """Instructions that leave one value on the stack."""


def code(value):
    """Instructions for a value; `Code` goes in as it is."""
    match value:
        case Code():
            return value
        case None | True | False:
            return Code({None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value])
        case int():
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return Code(pickle.LONG1 + bytes([len(raw)]) + raw)
        case str():
            raw = value.encode()
            return Code(pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw)
        case tuple():
            return Code(pickle.MARK + b"".join(map(code, value)) + pickle.TUPLE)
        case list():
            items = b"".join(map(code, value))
            return Code(pickle.EMPTY_LIST + pickle.MARK + items + pickle.APPENDS)
        case dict():
            items = b"".join(code(key) + code(item) for key, item in value.items())
            return Code(pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS)
    raise TypeError(value)


def global_(module, name):
    return Code(pickle.GLOBAL + f"{module}\n{name}\n".encode())


def call(function, *arguments):
    return Code(function + code(arguments) + pickle.REDUCE)


def storage(key, size, kind="FloatStorage"):
    return Code(code(("storage", global_("torch", kind), key, "cpu", size)) + pickle.BINPERSID)


def tensor(source, offset, shape, strides):
    hooks = call(global_("collections", "OrderedDict"))
    rebuild = global_("torch._utils", "_rebuild_tensor_v2")
    return call(rebuild, source, offset, shape, strides, False, hooks)


def program(value):
    return pickle.PROTO + b"\x02" + code(value) + pickle.STOP


def strides_of(array):
    return tuple(stride // array.itemsize for stride in array.strides)


def coded(arrays):
    """A state dict, every array contiguous in a storage of its own."""
    return {
        name: tensor(
            storage(str(key), array.size, STORAGES[array.dtype.name]),
            0,
            array.shape,
            strides_of(array),
        )
        for key, (name, array) in enumerate(arrays.items())
    }


def zip_file(value, buffers, root="archive", compression=zipfile.ZIP_STORED):
    """The bytes of a zip checkpoint."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", program(value))
        archive.writestr(f"{root}/byteorder", "little")
        for key, buffer in enumerate(buffers):
            archive.writestr(f"{root}/data/{key}", buffer)
        archive.writestr(f"{root}/version", "3\n")
    return file.getvalue()


def stream_file(value, storages, magic=torch_files.STREAM_MAGIC, little=True):
    """The bytes of a checkpoint of torch before 1.6; `storages` are (size, buffer)."""
    system = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"int": 4}}
    keys = [str(key) for key in range(len(storages))]
    head = b"".join(map(program, (magic, 1001, system, value, keys)))
    return head + b"".join(struct.pack("<q", size) + buffer for size, buffer in storages)


def safe_file(header, data=b""):
    """The bytes of a safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def safe_of(arrays):
    header, position = {"__metadata__": {"format": "pt"}}, 0
    for name, array in arrays.items():
        ends = [position, position + array.nbytes]
        header[name] = {
            "dtype": SAFE[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": ends,
        }
        position = ends[1]
    return safe_file(header, b"".join(array.tobytes() for array in arrays.values()))


def zip_of(arrays):
    return zip_file(coded(arrays), [array.tobytes() for array in arrays.values()])


def stream_of(arrays):
    return stream_file(coded(arrays), [(a.size, a.tobytes()) for a in arrays.values()])


FORMATS = {"zip": zip_of, "stream": stream_of, "safetensors": safe_of}


@pytest.fixture
def read(tmp_path):
    """Reads bytes as a file."""
    path = tmp_path / "weights.pth"

    def read(content):
        path.write_bytes(content)
        return torch_files.load(path)

    return read


def small():
    random = np.random.default_rng(0)
    return {
        "conv.weight": random.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "norm.running_mean": random.normal(size=4),
        "norm.num_batches_tracked": np.array(7, np.int64),
        "half": random.normal(size=(2, 2)).astype(np.float16),
        "int": np.arange(3, dtype=np.int32),
        "short": np.arange(3, dtype=np.int16),
        "byte": np.arange(3, dtype=np.int8),
        "mask": np.array([True, False]),
        "empty": np.zeros((0, 3), np.uint8),
    }


@pytest.mark.parametrize("file_of", FORMATS.values(), ids=FORMATS)
def test_every_format_gives_the_arrays_back(read, file_of):
    arrays = small()
    found = read(file_of(arrays))
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)
        assert array.size == 0 or not found[name].flags.writeable


@pytest.mark.parametrize("text", [TORCH_ZIP, TORCH_STREAM], ids=["zip", "stream"])
def test_files_of_torch_itself(read, text):
    found = read(zlib.decompress(base64.b85decode(text)))
    assert {name: array.tolist() for name, array in found.items()} == {
        "weight": [[0, 1, 2], [3, 4, 5]],
        "bias": [0.5, -1],
        "steps": 7,
        "turned": [[0, 3], [1, 4], [2, 5]],
    }
    assert list(found) == ["weight", "bias", "steps", "turned"]


def test_bfloat16(read):
    state = {"a": tensor(storage("0", 2, "BFloat16Storage"), 0, (2,), (1,))}
    found = read(zip_file(state, [bytes([0x80, 0x3F, 0x20, 0xC0])]))
    assert found["a"].dtype.name == "bfloat16"
    assert found["a"].astype(np.float32).tolist() == [1.0, -2.5]


def test_views_of_one_storage_share_memory(read):
    numbers = np.arange(12, dtype=np.float32)
    whole = storage("0", 12)
    state = {
        "turned": tensor(whole, 0, (4, 3), (1, 4)),
        "column": tensor(whole, 6, (2,), (4,)),
        "one": tensor(whole, 11, (), ()),
    }
    found = read(zip_file(state, [numbers.tobytes()]))
    np.testing.assert_array_equal(found["turned"], numbers.reshape(3, 4).T)
    assert found["column"].tolist() == [6, 10]
    assert found["one"] == 11
    assert np.shares_memory(found["turned"], found["one"])


@pytest.mark.parametrize("container", torch_files.CONTAINERS)
def test_the_state_dict_may_stand_inside(read, container):
    state = coded({"a": np.ones(2, np.float32)})
    file = zip_file({"epoch": 3, container: {**state, "note": "x"}}, [np.ones(2, np.float32)])
    assert list(read(file)) == ["a"]


def test_instructions_of_old_and_new_protocols(read):
    # Python 2 strings, a parameter, a memo, frames, and a global from two strings.
    ordered = Code(
        pickle.SHORT_BINUNICODE + b"\x0bcollections" + pickle.MEMOIZE + pickle.SHORT_BINUNICODE
        + b"\x0bOrderedDict" + pickle.STACK_GLOBAL + pickle.EMPTY_TUPLE + pickle.REDUCE
    )  # fmt: skip
    key = Code(
        pickle.FRAME + bytes(8) + pickle.SHORT_BINSTRING + b"\x01a" + pickle.BINPUT + b"\x09"
    )
    parameter = call(
        global_("torch._utils", "_rebuild_parameter"),
        tensor(storage("0", 1), 0, (1,), (1,)),
        True,
        ordered,
    )
    again = Code(pickle.EMPTY_DICT + pickle.BINGET + b"\x09" + pickle.NONE + pickle.SETITEM)
    value = Code(code({key: parameter}) + again + pickle.BUILD)
    assert read(zip_file(value, [np.float32([2])])) == {"a": [2]}


def test_names_of_safetensors_are_sorted_as_people_count(read):
    arrays = {name: np.ones(1, np.float32) for name in ("b10.w", "b2.w", "a", "b2.10", "b2.9")}
    assert list(read(safe_of(arrays))) == ["a", "b2.9", "b2.10", "b2.w", "b10.w"]


def ones(*shape):
    return np.ones(shape, np.float32)


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
    "a tensor of two arguments": call(global_("torch._utils", "_rebuild_tensor"), storage("0", 1), 0),
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
    "too many instructions": Code(pickle.NONE * (torch_pickle.MAX_STEPS + 1)),
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
    "nested 100,000 deep": Code(pickle.EMPTY_TUPLE + pickle.TUPLE1 * 100_000),
    "nested 100,000 deep as storage": Code(
        pickle.EMPTY_TUPLE + pickle.TUPLE1 * 100_000 + pickle.BINPERSID
    ),
    "nested 100,000 deep as key": Code(
        pickle.EMPTY_DICT + pickle.EMPTY_TUPLE + pickle.TUPLE1 * 100_000 + pickle.NONE
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


def test_overlapping_is_told_from_turned_by_the_strides(read):
    # A sliding window is refused, the same numbers transposed and strided are not.
    numbers = np.arange(40, dtype=np.float32)
    good = tensor(storage("0", 40), 1, (3, 2, 5), (2, 20, 4))
    with pytest.raises(errors.CheckpointError, match="leaves its storage"):
        read(zip_file({"a": good}, [numbers]))
    good = tensor(storage("0", 40), 1, (2, 2, 5), (2, 20, 4))
    expected = numbers[1:].tolist()
    found = read(zip_file({"a": good}, [numbers]))["a"]
    for place in np.ndindex(2, 2, 5):
        assert found[place] == expected[np.dot(place, (2, 20, 4))]


def test_a_zip_archive_must_hold_plain_bytes(read):
    state, buffers = coded({"a": ones(1000)}), [bytes(4000)]
    with pytest.raises(errors.CheckpointError, match="compressed or encrypted"):
        read(zip_file(state, buffers, compression=zipfile.ZIP_DEFLATED))
    file = bytearray(zip_file(state, buffers))
    directory = file.rfind(b"PK\x05\x06")
    row = file.find(b"PK\x01\x02")
    for field, value in ((row + 24, 2**31), (row + 20, 2**31), (row + 42, 2**31), (row + 10, 8)):
        broken = bytearray(file)
        struct.pack_into("<H" if value == 8 else "<I", broken, field, value)
        with pytest.raises(errors.CheckpointError):
            read(broken)
    broken = bytearray(file)
    struct.pack_into("<H", broken, directory + 10, 60_000)
    with pytest.raises(errors.CheckpointError):
        read(broken)
    broken = bytearray(file)
    broken[broken.find(bytes(4000)) + 17] ^= 4
    with pytest.raises(errors.CheckpointError, match="wrong checksum"):
        read(broken)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"", "begins with nothing"),
        (b"\x89PNG\r\n\x1a\n" + bytes(90), "begins with 89504e470d0a1a0a"),
        (bytes(257) + b"ustar" + bytes(300), "tar archive of torch 0.1.9"),
        (program({"a": 1}), "no end|damaged|not of torch.save"),
        (pickle.dumps({"a": 1}) * 3, "not of torch.save"),
        (stream_file({}, [], magic=7), "not of torch.save"),
        (stream_file({}, [], little=False), "big-endian"),
        (stream_file({"epoch": 3}, []), "but a dict with the keys 'epoch'"),
        (stream_file([1, 2], []), r"but \[1, 2\]"),
        (stream_file(coded({"a": ones(2)}), []), "storage '0' is not in the file"),
        (stream_file(coded({"a": ones(2)}), [(3, ones(3))]), "3 numbers; 2 were announced"),
        (stream_file(coded({"a": ones(2)}), [(2, ones(1))]), "file at"),
        (stream_file(coded({"a": ones(2)}), [(2, ones(3))]), "file at"),
        (zip_file(coded({"a": ones(2)}), []), "no 'archive/data/0'"),
        (zip_file(coded({"a": ones(2)}), [ones(3)]), "12 bytes; 8 were announced"),
        (zip_file(coded({"a": ones(2)}), [ones(1)]), "4 bytes; 8 were announced"),
        (zip_of({"a": ones(2)})[:-30], "no directory"),
        (zip_file({}, [])[:40] * 2, "no directory"),
    ],
)
def test_what_is_wrong_is_said(read, file, message):
    with pytest.raises(errors.CheckpointError, match=message):
        read(file)


def row(dtype="F32", shape=(2,), ends=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(ends)}


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (struct.pack("<Q", 2**63) + b"{}", "truncated"),
        (safe_file(b"{" + b" " * 2**22 + b"}"), "4194304 at most"),
        (safe_file(b'{"a":' + b"[" * 10_000), "weights"),
        (safe_file(b'{"a": 1' + b"0" * 10_000 + b"}"), "weights"),
        (safe_file(b"{\xff"), "weights"),
        (safe_file({"a": 3}), "nothing of use about 'a'"),
        (safe_file({"a": row(dtype="F128")}, bytes(8)), "type 'F128'"),
        (safe_file({"a": row(dtype=["F32"])}, bytes(8)), "type a list"),
        (safe_file({"a": row(shape=(-2,))}, bytes(8)), "from 0 to"),
        (safe_file({"a": row(shape=(2.0,))}, bytes(8)), "from 0 to"),
        (safe_file({"a": row(shape=(2**62, 4))}, bytes(8)), "from 0 to"),
        (safe_file({"a": row(shape=(0, 2**39, 2**39), ends=(0, 0))}), "weights"),
        (safe_file({"a": row(shape=(3,))}, bytes(8)), "has 12 bytes"),
        (safe_file({"a": row(ends=(8, 0))}, bytes(8)), "data_offsets"),
        (safe_file({"a": row(ends=(0, 8, 9))}, bytes(8)), "data_offsets"),
        (safe_file({"a": row(), "b": row()}, bytes(8)), "overlap"),
        (safe_file({"a": row(), "b": row(ends=(9, 17))}, bytes(17)), "gap at byte 8"),
        (safe_file({"a": row()}, bytes(7)), "describes 8 bytes of data, the file has 7"),
        (safe_file({"a": row()}, bytes(9)), "describes 8 bytes of data, the file has 9"),
        (safe_file({}), "describes 0 bytes"),
    ],
)
def test_what_is_wrong_with_safetensors_is_said(read, file, message):
    with pytest.raises(errors.CheckpointError, match=message):
        read(file)


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(errors.CheckpointError, match="no file of this name"):
            torch_files.load(path)


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
        torch_files._state_dict(value)
    except errors.CheckpointError:
        pass


ARRAYS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.builds(
        lambda shape, dtype, seed: (
            np.random.default_rng(seed).integers(0, 2, shape).astype(dtype)
        ),
        st.lists(st.integers(0, 4), max_size=4),
        st.sampled_from(sorted(STORAGES)),
        st.integers(0, 99),
    ),
    min_size=1,
    max_size=5,
).filter(lambda arrays: "__metadata__" not in arrays)  # fmt: skip


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(ARRAYS, st.sampled_from(sorted(FORMATS)))
def test_any_state_dict_survives_the_round_trip(tmp_path_factory, arrays, name):
    path = tmp_path_factory.getbasetemp() / "round.pth"
    path.write_bytes(FORMATS[name](arrays))
    found = torch_files.load(path)
    assert set(found) == set(arrays)
    for key, array in arrays.items():
        assert (found[key].dtype, found[key].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[key], array)
