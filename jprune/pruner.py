"""`Pruner`: one object for a net, its groups, its masks. A front on public functions, no more."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
import optax

from jprune.allocate import uniform
from jprune.base import Allocator, Batch, Budget, Criterion, Variables, run_criterion
from jprune.cost import cost_model
from jprune.criteria.magnitude import magnitude
from jprune.graph import slim, slim_params, trace
from jprune.masks import apply_masks, hold
from jprune.units import are_units, expand, to_units


class Pruner:
    """A net and what of it is kept. Nothing is changed in place: each step returns a new one.

    Attributes:
        fn: `fn(variables, *inputs)`, the dense function.
        variables: of the dense shapes, 0 where they are masked.
        groups: from `jprune.trace`.
        model: from `jprune.cost_model`.
        masks: {group: bool [units]}, True keeps.

    Example:
        >>> import jax.numpy as jnp
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> x, variables = jnp.ones((1, 3)), {"first": jnp.eye(3, 4), "second": jnp.ones((4, 2))}
        >>> pruner = Pruner(fn, variables, x).step(Budget(macs=0.5))
        >>> small_fn, small = pruner.slim()
        >>> small["first"].shape, bool((small_fn(small, x) == fn(pruner.variables, x)).all())
        ((3, 2), True)
        >>> print(pruner.report())
        MACs 10 of 20 (50.0 %), parameters 10 of 20 (50.0 %)
        first: 2 of 4
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        variables: Variables,
        *inputs: Any,
        freeze: Iterable[str] = (),
        has_aux: bool = False,
    ):
        """Traces a net: `fn` in inference mode, its variables, one example, as `jprune.trace`."""
        self.fn, self.variables = fn, variables
        self.groups = trace(fn, variables, *inputs, freeze=freeze, has_aux=has_aux)
        out = (lambda v, *x: fn(v, *x)[0]) if has_aux else fn
        self.model = cost_model(out, variables, *inputs, groups=self.groups)
        self.masks = {name: np.ones(size, bool) for name, size in self.groups.sizes.items()}

    def _with(self, **changes: Any) -> "Pruner":
        new = copy.copy(self)
        vars(new).update(changes)
        return new

    def step(
        self,
        budget: Budget,
        criterion: Criterion | None = None,
        batches: Iterable[Batch] = (),
        allocator: Allocator = uniform,
        pool: str = "sum",
    ) -> "Pruner":
        """Scores the units that are left and masks the worst; call it again for another round.

        Args:
            budget: what is kept of the dense net, after this step.
            criterion: of weights or units; None: the squared L2 norm of a unit's kernels.
            batches: calibration data, for a criterion that looks at some.
            allocator: such as `allocate.uniform` or `allocate.global_topk`.
            pool: how scores of weights become scores of units, see `jprune.to_units`.
        """
        scores = run_criterion(criterion or magnitude(2), self.variables, batches)
        if not are_units(self.groups, scores):
            scores = to_units(self.groups, scores, within=pool, across=pool)
        # What is gone stays so.
        alive = {n: np.where(self.masks[n], np.asarray(s), -np.inf) for n, s in scores.items()}
        masks = self.masks | jax.tree.map(np.asarray, allocator(alive, budget, self.model))
        masked = apply_masks(self.variables, expand(self.groups, masks))
        return self._with(variables=masked, masks=masks)

    def trained(self, variables: Variables) -> "Pruner":
        """The same masks with other variables: those after training under `hold`."""
        return self._with(variables=apply_masks(variables, expand(self.groups, self.masks)))

    def hold(self, of: str | None = None) -> optax.GradientTransformationExtraArgs:
        """The last link of an optax chain; `of` names the collection that is trained, if one is."""
        masks = expand(self.groups, self.masks)
        return hold(masks if of is None else masks[of])

    def slim(self) -> tuple[Callable[..., Any], Variables]:
        """The small function and its variables."""
        small = slim_params(self.groups, self.masks, self.variables)
        return slim(self.fn, self.groups, self.masks), small

    def report(self) -> str:
        """What is kept: MACs and parameters of one example, and the units of every group."""
        dense, now = self.model({}), self.model(self.masks)
        said = lambda name, after, before: (
            f"{name} {float(after):,.0f} of {float(before):,.0f} ({100 * after / before:.1f} %)"
        )
        of_all = (said("MACs", now.macs, dense.macs), said("parameters", now.params, dense.params))
        units = [f"{name}: {mask.sum()} of {mask.size}" for name, mask in self.masks.items()]
        return "\n".join([", ".join(of_all), *units])
