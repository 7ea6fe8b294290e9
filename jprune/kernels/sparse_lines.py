"""Direct sparse convolution in compiled code: pack the data into lines, then sum over lines.

    out[f, p] = sum over j in row f of values[j] line[offsets[j] + p]

A line is one channel (and phase, below) of all images behind each other, each with its padding. So
every weight is one offset, and a run of output positions is a run of numbers in memory. With
strides the data is sorted by the remainder of its coordinates (its phase) first, after which every
tap has stride 1. Everything is an address or a count: one compilation serves both types of numbers.
Needs numba; `custom_call.py` calls it.

References:
    Park, Li, Wen, Tang, Li, Chen, Dubey, Faster CNNs with direct sparse convolutions and guided
    pruning, 2017, arXiv 1608.01409 [11]; there a layer has one image and one line for each row.
"""

import functools
from typing import Any

import llvmlite.ir as ir
import numba
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from jprune.kernels.lines import FIELDS, PARTS, WIDEST
from jprune.kernels.micro import ARGUMENTS, CLEAR, COPY, SUM, WORD

ALONE = 1 << 15
"""Vector operations under which one thread is faster than starting several."""

# Where the geometry has each number; the filters at which each part begins follow.
(IMAGES, CHANNELS, HEIGHT, WIDTH, TOP, LEFT, DOWN, ACROSS, ROWS, PITCH, LINE, POSITIONS, FILTERS,
 TALL, WIDE, WEIGHTS, PHASES) = range(len(FIELDS))  # fmt: skip
BEGIN = len(FIELDS)


def _external(name: str) -> Any:
    """A function of `micro.py`, for compiled code."""
    count = ARGUMENTS[name]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [WORD] * count)
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)
        return context.get_dummy_value()

    kinds = (types.int64,) * count
    if count == 2:
        return intrinsic(lambda typing, a, b: (types.void(*kinds), generate))
    if count == 6:
        return intrinsic(lambda typing, a, b, c, d, e, f: (types.void(*kinds), generate))
    return intrinsic(lambda typing, a, b, c, d, e, f, g: (types.void(*kinds), generate))


line_sum, copy, clear = _external(SUM), _external(COPY), _external(CLEAR)


def _number(typing: Any, address: Any, index: Any) -> Any:
    """Reads an array of int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.add(arguments[0], builder.mul(arguments[1], WORD(4)))
        value = builder.load(builder.inttoptr(place, ir.IntType(32).as_pointer()))
        return builder.sext(value, WORD)

    return types.int64(types.int64, types.int64), generate


number: Any = intrinsic(_number)


def compiled(function: Any, **options: Any) -> Any:
    """A compiled function, held in a file for the next process where there is a place for it."""
    try:
        return numba.njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:  # no folder can be written to
        return numba.njit(nogil=True, **options)(function)


@compiled
def packed(size: int, channel: int, x: int, phases: int, g: int, lines: int) -> None:
    """The lines of one channel: zeros, and between them the rows of the images."""
    height, width, down, across = (
        number(g, HEIGHT),
        number(g, WIDTH),
        number(g, DOWN),
        number(g, ACROSS),
    )
    top, left, pitch, line = number(g, TOP), number(g, LEFT), number(g, PITCH), number(g, LINE)
    plane, images, count = height * width, number(g, IMAGES), number(g, PHASES)
    source = x + channel * plane * size
    image = number(g, CHANNELS) * plane
    for phase in range(count):
        start = lines + (channel * count + phase) * line * size
        clear(start, line * size)
        if plane == 1 and pitch == 1 and number(g, ROWS) == 1:
            # A dense layer: a line holds one number of each image.
            copy(size, start, 1, source, image, images)
            continue
        # The first row and column whose padded coordinate has this remainder.
        first = (number(phases, 2 * phase) - top) % down
        skip = (number(phases, 2 * phase + 1) - left) % across
        length = (width - skip + across - 1) // across
        for n in range(images):
            for h in range(first, height, down):
                row = n * number(g, ROWS) + (h + top) // down
                to = row * pitch + (skip + left) // across
                read = n * image + h * width + skip
                copy(size, start + to * size, 1, source + read * size, across, length)


@compiled
def unpacked(size: int, filter: int, first: int, width: int, sums: int, g: int, out: int) -> None:
    """The sums of positions first, first + 1, ... written to where the output has them."""
    rows, pitch, tall, wide = number(g, ROWS), number(g, PITCH), number(g, TALL), number(g, WIDE)
    filters, plane = number(g, FILTERS), tall * wide
    if rows * pitch == 1:
        copy(size, out + (first * filters + filter) * size, filters, sums, 1, width)
        return
    n, rest = first // (rows * pitch), first % (rows * pitch)
    y, x, place = rest // pitch, rest % pitch, 0
    while place < width:
        # A run reaches to the end of the output's row; what lies behind it is padding.
        run = min(wide - x, width - place)
        if y < tall and run > 0:
            to = (n * filters + filter) * plane + y * wide + x
            copy(size, out + to * size, 1, sums + place * size, 1, run)
        place += pitch - x
        x, y = 0, y + 1
        if y >= tall:
            place += (rows - y) * pitch
            y, n = 0, n + 1


@compiled
def share(
    size: int, item: int, items: int, values: int, offsets: int, pointers: int, g: int,
    scratch: int, out: int,
) -> None:  # fmt: skip
    """What one of several workers does: some of the tiles, or some of the filters of a tile."""
    widest = WIDEST // size
    sums, lines = scratch + item * WIDEST, scratch + PARTS * WIDEST
    positions = number(g, POSITIONS)
    tiles = (positions + widest - 1) // widest
    parts = 1 if tiles >= items else min((items + tiles - 1) // tiles, PARTS)
    # Work is counted off evenly: unit u is part u % parts of tile u // parts.
    units = tiles * parts
    for unit in range(item * units // items, (item + 1) * units // items):
        part, first = unit % parts, unit // parts * widest
        width = min(widest, positions - first)
        from_row = number(g, BEGIN + part * PARTS // parts)
        to_row = number(g, BEGIN + (part + 1) * PARTS // parts)
        for filter in range(from_row, to_row):
            begin = number(pointers, filter)
            line_sum(
                size, lines + first * size, offsets + begin * 4, values + begin * size,
                number(pointers, filter + 1) - begin, sums, width,
            )  # fmt: skip
            unpacked(size, filter, first, width, sums, g, out)


@functools.partial(compiled, parallel=True)
def together(
    size: int, items: int, x: int, values: int, offsets: int, pointers: int, phases: int, g: int,
    out: int, scratch: int,
) -> None:  # fmt: skip
    """The convolution on several threads."""
    for channel in numba.prange(number(g, CHANNELS)):
        packed(size, channel, x, phases, g, scratch + PARTS * WIDEST)
    for item in numba.prange(items):
        share(size, item, items, values, offsets, pointers, g, scratch, out)


@compiled
def alone(
    size: int, x: int, values: int, offsets: int, pointers: int, phases: int, g: int, out: int,
    scratch: int,
) -> None:  # fmt: skip
    """The convolution on the calling thread."""
    for channel in range(number(g, CHANNELS)):
        packed(size, channel, x, phases, g, scratch + PARTS * WIDEST)
    share(size, 0, 1, values, offsets, pointers, g, scratch, out)


@compiled
def convolution(
    size: int, threads: int, x: int, values: int, offsets: int, pointers: int, phases: int, g: int,
    out: int, scratch: int,
) -> None:  # fmt: skip
    """One sparse convolution; all but `size` and `threads` are addresses, of what `Lines` has."""
    vectors = (number(g, POSITIONS) * size + 63) // 64
    if threads == 1 or (number(g, WEIGHTS) + number(g, FILTERS)) * vectors < ALONE:
        alone(size, x, values, offsets, pointers, phases, g, out, scratch)
    else:
        items = min(4 * threads, PARTS)
        together(size, items, x, values, offsets, pointers, phases, g, out, scratch)
