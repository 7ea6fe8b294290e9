"""What particles of a search can be: subsets of one size, and offsets of strided taps.

A row of genes is a particle. Whatever is drawn, crossed or mutated keeps as many ones, or the same
stride.

References:
    Anwar, Hwang, Sung, Structured pruning of deep convolutional neural networks, 2017, arXiv
    1512.08571 [12].
"""

import dataclasses

import numpy as np

from jprune import errors


@dataclasses.dataclass(frozen=True)
class Subsets:
    """Genes are 1 for what stays: as many of some places in every particle.

    Attributes:
        allowed: bool for each gene; others stay 0.
        kept: how many are 1.
    """

    allowed: tuple[bool, ...]
    kept: int

    def __post_init__(self):
        if not 0 < self.kept <= sum(self.allowed):
            raise errors.ArgumentError(
                f"Subsets(kept={self.kept}) of {sum(self.allowed)}; it is 1 or more, and at most "
                "as many as there are."
            )

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """See `Kind`."""
        return self._best(rng.random((count, len(self.allowed))))

    def cross(self, a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What both keep stays; the rest is drawn from what one of them keeps."""
        return self._best(a + b + rng.random(a.shape))

    def mutate(self, genes: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
        """Swaps: a share `rate` of the ones, at least one, for as many zeros."""
        zeros = sum(self.allowed) - self.kept
        swaps = min(zeros, max(1, round(rate * self.kept)))
        # The ones and the zeros with the largest of random numbers change places.
        draws = rng.random(genes.shape)
        allowed = np.asarray(self.allowed)
        out = _largest(np.where(genes > 0, draws, -1), swaps)
        into = _largest(np.where((genes == 0) & allowed, draws, -1), swaps)
        return np.where(out, 0, np.where(into, 1, genes))

    def _best(self, draws: np.ndarray) -> np.ndarray:
        return _largest(np.where(self.allowed, draws, -1), self.kept).astype(int)


def _largest(draws: np.ndarray, count: int) -> np.ndarray:
    """Bool: the `count` largest of every row."""
    ranks = np.argsort(np.argsort(-draws, axis=1, kind="stable"), axis=1)
    return ranks < count


@dataclasses.dataclass(frozen=True)
class Offsets:
    """Genes are offsets of strided taps, one for every input.

    Attributes:
        inputs: how many there are.
        stride: offsets are 0 .. stride - 1.
    """

    inputs: int
    stride: int

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """See `Kind`."""
        return rng.integers(0, self.stride, (count, self.inputs))

    def cross(self, a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Every offset of one of the two."""
        return np.where(rng.random(a.shape) < 0.5, a, b)

    def mutate(self, genes: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
        """A share `rate` of the offsets, at least one, becomes another one."""
        changed = _largest(rng.random(genes.shape), max(1, round(rate * self.inputs)))
        shift = rng.integers(1, max(self.stride, 2), genes.shape)
        return np.where(changed, (genes + shift) % self.stride, genes)


def strided(shape: tuple[int, ...], stride: int, offset: int) -> np.ndarray:
    """Bool mask of a window: the taps offset, offset + stride, ... of it, row by row.

    Args:
        shape: of the window.
        stride: 1 keeps all.
        offset: 0 .. stride - 1.

    Raises:
        ArgumentError: another offset.

    Example:
        >>> strided((3, 3), 2, 1).astype(int).tolist()
        [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    """
    if not 0 <= offset < stride:
        raise errors.ArgumentError(
            f"strided(stride={stride}, offset={offset}); it is in 0 .. stride - 1."
        )
    return (np.arange(int(np.prod(shape))) % stride == offset).reshape(shape)
