"""The pickle inside a PyTorch checkpoint, read without running anything of it.

A pickle is a program for a stack machine, and Python's own machine imports and calls whatever the
program names. This one has only the instructions that state dicts are made of. A global is a row
of a table and never an import; a call builds one of three records and never anything else. What it
builds is bounded by the length of the pickle and by `MAX_STEPS`.

The result holds `Tensor` records that say where in a `Storage` an array lies. Reading the storages
is the business of `torch_files.py`.
"""

import io
import pickle
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jprune import errors, foreign

MAX_STEPS = 1_000_000  # a ResNet-152 with the state of its optimizer takes about a tenth of it
MAX_AXES = 16
MAX_SIZE = 2**40  # of an axis; only arrays without elements could come near it
ADVICE = "Nothing of it was run. Save weights alone: torch.save(model.state_dict(), path)."


class Storage(NamedTuple):
    """A run of numbers in the file.

    Attributes:
        size: how many numbers.
    """

    key: str
    dtype: np.dtype
    size: int


class Tensor(NamedTuple):
    """An array: a part of a storage in which no two elements share a place.

    Attributes:
        offset: of the first element, in elements.
        strides: in elements.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Machine(NamedTuple):
    """The state of the stack machine: the bytes to come, the stack, its marks and the memo."""

    stream: io.BytesIO
    stack: list[Any]
    marks: list[int]
    """Heights of the stack at the marks that are still open."""
    memo: dict[int, Any]
    storages: dict[str, Storage]

    def number(self, layout: str) -> Any:
        """The next number, in the layout of the module `struct`."""
        return struct.unpack(layout, self.stream.read(struct.calcsize(layout)))[0]

    def counted(self, layout: str) -> bytes:
        """The next bytes, after a number that counts them."""
        count = self.number(layout)
        content = self.stream.read(count)
        if len(content) < count:
            raise errors.CheckpointError(
                f"the pickle ends {count - len(content)} bytes too early. It is truncated."
            )
        return content

    def line(self) -> str:
        """The rest of the line."""
        return self.stream.readline().rstrip(b"\n").decode()

    def pop(self, count: int) -> list[Any]:
        """The last values of the stack, in the order in which they came."""
        return [self.stack.pop() for _ in range(count)][::-1]

    def pop_mark(self) -> list[Any]:
        """Takes the values above the last mark off the stack, and the mark too."""
        return self.pop(max(0, len(self.stack) - self.marks.pop()))

    def remember(self, place: int) -> None:
        """Writes the last value into the memo."""
        self.memo[place] = self.stack[-1]


def read(stream: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
    """Reads one pickle and leaves the stream right behind it.

    Args:
        stream: where the pickle begins.

    Returns:
        (value, storages). The value is made of dicts (ordered ones come as plain dicts), lists,
        tuples, strings, numbers, None and `Tensor`s; the storages are those that it names, by key.

    Raises:
        CheckpointError: the pickle is damaged, or wants something that no state dict needs.

    Example:
        >>> read(io.BytesIO(pickle.dumps({"epoch": 3, "rates": [0.1]}, protocol=2)))
        ({'epoch': 3, 'rates': [0.1]}, {})
    """
    machine = _Machine(stream, [], [], {}, {})
    try:
        # Bounded, so that a crafted file cannot keep the machine busy for hours.
        for _ in range(MAX_STEPS):
            code = stream.read(1)
            if code == pickle.STOP:
                return machine.stack.pop(), machine.storages
            if not code:
                raise errors.CheckpointError("the pickle has no end. It is truncated.")
            # The table is the whole language: whatever is not in it ends the reading.
            if code not in _STEPS:
                raise errors.CheckpointError(
                    f"the pickle has the instruction {code!r} at byte {stream.tell() - 1}, which "
                    f"no state dict needs. {ADVICE}"
                )
            _STEPS[code](machine)
    except (LookupError, struct.error, UnicodeDecodeError) as error:
        raise errors.CheckpointError(
            f"the pickle is damaged at byte {stream.tell()} ({type(error).__name__}: {error})."
        ) from error
    raise errors.CheckpointError(f"the pickle has more than {MAX_STEPS} instructions. {ADVICE}")


def show(value: Any) -> str:
    """A value from a file in words that are safe to print: short, and never nested."""
    if isinstance(value, str):
        return f"'{foreign.shown(value, 78)}'"
    if isinstance(value, int | float | None):
        return foreign.shown(value, 80)
    # `type(...) is int`, since True is an int too; only the first few, as the list is from the
    # file.
    if isinstance(value, list | tuple) and all(type(item) is int for item in value[:MAX_AXES]):
        return show(str(list(value[:MAX_AXES]))).strip("'")
    return f"a {type(value).__name__}"


def require_sizes(what: str, sizes: Any) -> None:
    """Refuses what is no list of axis lengths or strides.

    Raises:
        CheckpointError: not a tuple or list, too long, or not of integers in range.
    """
    if not (
        isinstance(sizes, list | tuple)
        and len(sizes) <= MAX_AXES
        and all(type(size) is int and 0 <= size <= MAX_SIZE for size in sizes)
    ):
        raise errors.CheckpointError(
            f"{what} is {show(sizes)}; expected at most {MAX_AXES} integers from 0 to 2**40."
        )


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """`collections.OrderedDict()`: dicts keep their order."""
    if arguments:
        raise errors.CheckpointError("an OrderedDict is built from arguments; torch writes none.")
    return {}


def _tensor(arguments: tuple[Any, ...]) -> Tensor:
    """`_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks, metadata)`.

    The older `_rebuild_tensor` has the first four arguments.
    """
    if not 4 <= len(arguments) <= 7 or not isinstance(arguments[0], Storage):
        raise errors.CheckpointError(
            "a tensor is not described by its storage, offset, shape and strides."
        )
    storage, offset, shape, strides = arguments[:4]
    # Torch keeps these as flags and not as numbers; ignoring them would give wrong signs.
    if len(arguments) == 7 and arguments[6]:
        raise errors.CheckpointError(
            "a tensor is marked as negated or conjugated. Save it resolved: tensor.resolve_neg()."
        )
    require_sizes("the offset of a tensor", [offset])
    require_sizes("the shape of a tensor", shape)
    require_sizes("the strides of a tensor", strides)
    if len(shape) != len(strides):
        raise errors.CheckpointError(
            f"a tensor of shape {show(shape)} has strides {show(strides)}; expected one an axis."
        )
    _require_inside(storage, offset, shape, strides)
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _require_inside(
    storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    """Refuses elements that share a place, or that lie outside the storage.

    Take the axes in the order of their strides. No two elements share a place if each stride is
    larger than the last offset that the axes before it reach.
    """
    if 0 in shape:
        return
    reach = 0
    # reach = sum (side - 1) stride over the axes so far: the last place that they touch. A next
    # stride of at most that lands on a place that is taken.
    for stride, side in sorted(zip(strides, shape)):
        if side > 1 and stride <= reach:
            raise errors.CheckpointError(
                f"a tensor of shape {show(shape)} has strides {show(strides)}, so that elements "
                "share a place. Save it as tensor.contiguous()."
            )
        reach += (side - 1) * stride
    if offset + reach >= storage.size:
        raise errors.CheckpointError(
            f"a tensor of shape {show(shape)} and strides {show(strides)} at {show(offset)} leaves "
            f"its storage of {show(storage.size)} numbers."
        )


def _parameter(arguments: tuple[Any, ...]) -> Tensor:
    """`_rebuild_parameter(tensor, requires_grad, hooks)`."""
    if not arguments or not isinstance(arguments[0], Tensor):
        raise errors.CheckpointError("a parameter is not made of a tensor.")
    return arguments[0]


_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "DoubleStorage"): np.dtype("<f8"),
    ("torch", "FloatStorage"): np.dtype("<f4"),
    ("torch", "HalfStorage"): np.dtype("<f2"),
    ("torch", "BFloat16Storage"): np.dtype(jnp.bfloat16),
    ("torch", "LongStorage"): np.dtype("<i8"),
    ("torch", "IntStorage"): np.dtype("<i4"),
    ("torch", "ShortStorage"): np.dtype("<i2"),
    ("torch", "CharStorage"): np.dtype("i1"),
    ("torch", "ByteStorage"): np.dtype("u1"),
    ("torch", "BoolStorage"): np.dtype("?"),
}


def _global(module: Any, name: Any) -> Any:
    """Looks a global up in `_GLOBALS`. Nothing is imported."""
    if not (isinstance(module, str) and isinstance(name, str)) or (module, name) not in _GLOBALS:
        raise errors.CheckpointError(
            f"the pickle names {show(name)} of {show(module)}, which no state dict needs. {ADVICE}"
        )
    return _GLOBALS[module, name]


def _reduce(machine: _Machine) -> None:
    """Calls one of the functions of `_GLOBALS`; nothing else on the stack can be called."""
    function, arguments = machine.pop(2)
    if not callable(function) or not isinstance(arguments, tuple):
        raise errors.CheckpointError(f"the pickle calls {show(function)}. {ADVICE}")
    machine.stack.append(function(arguments))


def _build(machine: _Machine) -> None:
    """Ignores the attributes that torch sets on an ordered dict: version numbers of the modules."""
    machine.stack.pop()
    if not isinstance(machine.stack[-1], dict):
        raise errors.CheckpointError(
            f"the pickle sets attributes of {show(machine.stack[-1])}. {ADVICE}"
        )


def _storage(machine: _Machine) -> Storage:
    """`("storage", type, key, device, size)`; old files add a sixth, None."""
    came = machine.stack.pop()
    if not (
        isinstance(came, tuple)
        and len(came) in (5, 6)
        and isinstance(came[0], str)
        and came[0] == "storage"
        and isinstance(came[1], np.dtype)
        and isinstance(came[2], str)
        and type(came[4]) is int
        and came[4] >= 0
        and (len(came) == 5 or came[5] is None)
    ):
        raise errors.CheckpointError(
            f"the pickle refers to {show(came)} outside of it; expected a storage. {ADVICE}"
        )
    storage = Storage(came[2], came[1], came[4])
    # Two tensors may share a storage (tied weights), but both must say the same about it.
    if machine.storages.setdefault(storage.key, storage) != storage:
        raise errors.CheckpointError(f"storage {show(storage.key)} has two types or sizes.")
    return storage


def _set(target: Any, items: list[Any]) -> None:
    """Writes keys and values, which alternate, into a dict."""
    # The stack holds key, value, key, value, ...
    keys = items[::2]
    # A nested tuple as a key would be hashed to any depth.
    if (
        not isinstance(target, dict)
        or len(items) % 2
        or not all(isinstance(key, str | int) for key in keys)
    ):
        raise errors.CheckpointError(
            "the pickle sets items of something that is no dict, or keys that are neither strings "
            "nor integers."
        )
    target.update(zip(keys, items[1::2]))


def _append(target: Any, items: list[Any]) -> None:
    """Appends to a list."""
    if not isinstance(target, list):
        raise errors.CheckpointError(f"the pickle appends to {show(target)}; expected a list.")
    target.extend(items)


def _pushes(value: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    """An instruction that puts a value on the stack."""

    def step(machine: _Machine) -> None:
        machine.stack.append(value(machine))

    return step


def _updates(
    write: Callable[[Any, list[Any]], None], take: Callable[[_Machine], list[Any]]
) -> Callable[[_Machine], None]:
    """An instruction that takes values and writes them into what lies below."""

    def step(machine: _Machine) -> None:
        items = take(machine)
        write(machine.stack[-1], items)

    return step


_STEPS: dict[bytes, Callable[[_Machine], None]] = {
    pickle.PROTO: lambda machine: machine.number("<B"),
    pickle.FRAME: lambda machine: machine.number("<Q"),
    pickle.NONE: _pushes(lambda machine: None),
    pickle.NEWTRUE: _pushes(lambda machine: True),
    pickle.NEWFALSE: _pushes(lambda machine: False),
    pickle.BININT: _pushes(lambda machine: machine.number("<i")),
    pickle.BININT1: _pushes(lambda machine: machine.number("<B")),
    pickle.BININT2: _pushes(lambda machine: machine.number("<H")),
    pickle.LONG1: _pushes(
        lambda machine: int.from_bytes(machine.counted("<B"), "little", signed=True)
    ),
    pickle.BINFLOAT: _pushes(lambda machine: machine.number(">d")),
    pickle.BINUNICODE: _pushes(lambda machine: machine.counted("<I").decode()),
    pickle.SHORT_BINUNICODE: _pushes(lambda machine: machine.counted("<B").decode()),
    pickle.BINSTRING: _pushes(lambda machine: machine.counted("<I").decode()),  # Python 2
    pickle.SHORT_BINSTRING: _pushes(lambda machine: machine.counted("<B").decode()),
    pickle.EMPTY_DICT: _pushes(lambda machine: {}),
    pickle.EMPTY_LIST: _pushes(lambda machine: []),
    pickle.EMPTY_TUPLE: _pushes(lambda machine: ()),
    pickle.TUPLE1: _pushes(lambda machine: tuple(machine.pop(1))),
    pickle.TUPLE2: _pushes(lambda machine: tuple(machine.pop(2))),
    pickle.TUPLE3: _pushes(lambda machine: tuple(machine.pop(3))),
    pickle.MARK: lambda machine: machine.marks.append(len(machine.stack)),
    pickle.TUPLE: _pushes(lambda machine: tuple(machine.pop_mark())),
    pickle.SETITEM: _updates(_set, lambda machine: machine.pop(2)),
    pickle.SETITEMS: _updates(_set, _Machine.pop_mark),
    pickle.APPEND: _updates(_append, lambda machine: machine.pop(1)),
    pickle.APPENDS: _updates(_append, _Machine.pop_mark),
    pickle.BINPUT: lambda machine: machine.remember(machine.number("<B")),
    pickle.LONG_BINPUT: lambda machine: machine.remember(machine.number("<I")),
    pickle.MEMOIZE: lambda machine: machine.remember(len(machine.memo)),
    pickle.BINGET: _pushes(lambda machine: machine.memo[machine.number("<B")]),
    pickle.LONG_BINGET: _pushes(lambda machine: machine.memo[machine.number("<I")]),
    pickle.GLOBAL: _pushes(lambda machine: _global(machine.line(), machine.line())),
    pickle.STACK_GLOBAL: _pushes(lambda machine: _global(*machine.pop(2))),
    pickle.REDUCE: _reduce,
    pickle.BUILD: _build,
    pickle.BINPERSID: _pushes(_storage),
}
