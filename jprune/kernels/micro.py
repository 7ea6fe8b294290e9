"""The innermost loops of a sparse product, written in LLVM's language: sums stay in registers.

    sums[t] = sum over j of values[j] data[offsets[j] + t],   t < width

Compiled Python keeps an array of sums in memory, which doubles the loads of the loop; a function of
vectors of a fixed number of lanes keeps them in registers. Needs numba (for its llvmlite).
"""

import functools
from typing import Any

import llvmlite.binding as llvm
import llvmlite.ir as ir

CHAINS = 4
"""Sums that run side by side at least, since a multiply-add takes four cycles."""

VECTORS = 8
"""Vectors of 64 bytes that are summed at a time; smaller machines take several for one."""

WORD = ir.IntType(64)
SUM, COPY, CLEAR = "jprune_sum", "jprune_copy", "jprune_clear"
ARGUMENTS = {SUM: 7, COPY: 6, CLEAR: 2}
"""Functions of 64-bit integers that `symbols` makes, and how many they take.

    jprune_sum(size, data, offsets, values, count, sums, width)
    jprune_copy(size, to, to_step, source, source_step, count)
    jprune_clear(to, bytes)

`size` is that of a number in bytes, 4 or 8; data, offsets (int32), values, sums, to and source are
addresses; steps are counted in numbers. A sum may read, and write, up to 64 bytes more than its
width, which is at most `VECTORS` times 64 bytes.
"""


@functools.cache
def symbols() -> Any:
    """Compiles the functions and tells the linker their names.

    Returns:
        The engine that holds them, which lives as long as the process.
    """
    module = ir.Module()
    shapes = {size: _shapes(size) for size in (4, 8)}
    for size, of_size in shapes.items():
        for lanes, vectors in of_size:
            _sum(module, size, lanes, vectors)
    _choose(module, shapes)
    _copy(module)
    _clear(module)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    try:
        features = llvm.get_host_cpu_features().flatten()
    except RuntimeError:  # LLVM does not know how to ask this processor
        features = ""
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), machine)
    engine.finalize_object()
    for name in ARGUMENTS:
        llvm.add_symbol(name, engine.get_function_address(name))
    return engine


def _shapes(size: int) -> list[tuple[int, int]]:
    """(lanes, vectors): one number, half a vector, one vector, two, ..."""
    lanes = 64 // size
    return [(1, 1), (lanes // 2, 1), *((lanes, count + 1) for count in range(VECTORS))]


def _function(module: Any, name: str, count: int) -> Any:
    kind = ir.FunctionType(ir.VoidType(), [WORD] * count)
    return ir.Function(module, kind, name)


def _loop(builder: Any, first: Any, last: Any, by: int, begin: list[Any], body: Any) -> list[Any]:
    """`for index in range(first, last, by): values = body(index, values)`, in registers."""
    before = builder.block
    inside, after = builder.append_basic_block(), builder.append_basic_block()
    builder.cbranch(builder.icmp_signed("<", first, last), inside, after)
    builder.position_at_end(inside)
    index = builder.phi(WORD)
    old = [builder.phi(value.type) for value in begin]
    new = body(index, old)
    following = builder.add(index, WORD(by))
    for phi, start, value in zip((index, *old), (first, *begin), (following, *new)):
        phi.add_incoming(start, before)
        phi.add_incoming(value, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, last), inside, after)
    end = builder.block
    builder.position_at_end(after)
    result = []
    for start, value in zip(begin, new):
        phi = builder.phi(start.type)
        phi.add_incoming(start, before)
        phi.add_incoming(value, end)
        result.append(phi)
    return result


def _load(builder: Any, kind: Any, address: Any, align: int) -> Any:
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = align
    return value


def _store(builder: Any, value: Any, address: Any, align: int) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = align


def _at(builder: Any, base: Any, index: Any, scale: int) -> Any:
    return builder.add(base, builder.mul(index, WORD(scale)))


def _sum(module: Any, size: int, lanes: int, vectors: int) -> None:
    """One width. With few vectors several weights are summed side by side, and added in the end."""
    function = _function(module, f"{SUM}_{size}_{lanes}_{vectors}", 5)
    data, offsets, values, count, sums = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    number = ir.FloatType() if size == 4 else ir.DoubleType()
    vector = number if lanes == 1 else ir.VectorType(number, lanes)
    name = f"llvm.fmuladd.{'' if lanes == 1 else f'v{lanes}'}f{8 * size}"
    fma = module.globals.get(name) or ir.Function(
        module, ir.FunctionType(vector, [vector] * 3), name
    )
    undefined, rows = ir.Constant(vector, ir.Undefined), max(1, -(-CHAINS // vectors))

    def everywhere(value: Any) -> Any:
        if lanes == 1:
            return value
        mask = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        first = builder.insert_element(undefined, value, WORD(0))
        return builder.shuffle_vector(first, undefined, mask)

    def body(by: int) -> Any:
        def steps(index: Any, totals: list[Any]) -> list[Any]:
            totals = [*totals]
            for row in range(by):
                place = builder.add(index, WORD(row))
                offset = _load(builder, ir.IntType(32), _at(builder, offsets, place, 4), 4)
                start = _at(builder, data, builder.sext(offset, WORD), size)
                weight = everywhere(_load(builder, number, _at(builder, values, place, size), size))
                for t in range(vectors):
                    read = _load(builder, vector, builder.add(start, WORD(t * 64)), size)
                    # sums[t] += values[j] data[offsets[j] + t]
                    one = row * vectors + t
                    totals[one] = builder.call(fma, [weight, read, totals[one]])
            return totals

        return steps

    totals = [ir.Constant(vector, None if lanes > 1 else 0.0)] * (rows * vectors)
    whole = builder.mul(builder.sdiv(count, WORD(rows)), WORD(rows))
    totals = _loop(builder, WORD(0), whole, rows, totals, body(rows))
    if rows > 1:
        totals = _loop(builder, whole, count, 1, totals, body(1))
    for t in range(vectors):
        total = functools.reduce(builder.fadd, totals[t::vectors])
        _store(builder, total, builder.add(sums, WORD(t * 64)), size)
    builder.ret_void()


def _choose(module: Any, shapes: dict[int, list[tuple[int, int]]]) -> None:
    """The narrowest sum that reaches over the width."""
    function = _function(module, SUM, ARGUMENTS[SUM])
    size, *rest, width = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    for of_size, candidates in shapes.items():
        for lanes, vectors in candidates:
            fits = builder.and_(
                builder.icmp_signed("==", size, WORD(of_size)),
                builder.icmp_signed("<=", width, WORD(lanes * vectors)),
            )
            with builder.if_then(fits):
                builder.call(module.globals[f"{SUM}_{of_size}_{lanes}_{vectors}"], rest)
                builder.ret_void()
    builder.ret_void()


def _copy(module: Any) -> None:
    function = _function(module, COPY, ARGUMENTS[COPY])
    size, to, to_step, source, source_step, count = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    one = WORD(1)
    steps = builder.and_(
        builder.icmp_signed("==", to_step, one), builder.icmp_signed("==", source_step, one)
    )
    with builder.if_then(steps):
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(1)
        move = module.declare_intrinsic("llvm.memcpy", [byte, byte, WORD])
        places = [builder.inttoptr(address, byte) for address in (to, source)]
        builder.call(move, [*places, builder.mul(count, size), flag(0)])
        builder.ret_void()
    for of_size in (4, 8):
        with builder.if_then(builder.icmp_signed("==", size, WORD(of_size))):

            def body(index: Any, _: list[Any], width: int = of_size) -> list[Any]:
                read = _at(builder, source, builder.mul(index, source_step), width)
                written = _at(builder, to, builder.mul(index, to_step), width)
                value = _load(builder, ir.IntType(8 * width), read, width)
                _store(builder, value, written, width)
                return []

            _loop(builder, WORD(0), count, 1, [], body)
            builder.ret_void()
    builder.ret_void()


def _clear(module: Any) -> None:
    function = _function(module, CLEAR, ARGUMENTS[CLEAR])
    builder = ir.IRBuilder(function.append_basic_block())
    byte = ir.IntType(8)
    fill = module.declare_intrinsic("llvm.memset", [byte.as_pointer(), WORD])
    to = builder.inttoptr(function.args[0], byte.as_pointer())
    builder.call(fill, [to, byte(0), function.args[1], ir.IntType(1)(0)])
    builder.ret_void()
