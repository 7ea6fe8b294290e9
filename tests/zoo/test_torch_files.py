"""PyTorch checkpoints without torch: three formats, and what is said of files that are none."""

import base64
import functools
import pickle
import struct
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jprune import errors
from jprune.zoo import torch_files
from tests import torch_writer
from tests.torch_writer import (
    FORMATS,
    STORAGES,
    Code,
    call,
    code,
    coded,
    global_,
    ones,
    program,
    safe_file,
    safe_of,
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


def test_a_tensor_may_be_turned_and_strided(read):
    numbers = np.arange(40, dtype=np.float32)
    found = read(zip_file({"a": tensor(storage("0", 40), 1, (2, 2, 5), (2, 20, 4))}, [numbers]))[
        "a"
    ]
    for place in np.ndindex(2, 2, 5):
        assert found[place] == 1 + np.dot(place, (2, 20, 4))
    with pytest.raises(errors.CheckpointError, match="leaves its storage of 40 numbers"):
        read(zip_file({"a": tensor(storage("0", 40), 2, (2, 2, 5), (2, 20, 4))}, [numbers]))
    with pytest.raises(errors.CheckpointError, match="share a place"):
        read(zip_file({"a": tensor(storage("0", 40), 0, (3, 2, 5), (2, 20, 4))}, [numbers]))


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


def named(value):
    """Names of cases: not by the bytes of a file, which hold the time that it was made."""
    return value if isinstance(value, str) else "file"


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
    ids=named,
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
    ids=named,
)
def test_what_is_wrong_with_safetensors_is_said(read, file, message):
    with pytest.raises(errors.CheckpointError, match=message):
        read(file)


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(errors.CheckpointError, match="no file of this name"):
            torch_files.load(path)


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
