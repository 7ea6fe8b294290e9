"""C-OBD, C-OBS, Kron-OBD, Kron-OBS: filters pruned under a Kronecker-factored Fisher.

The four with which EigenDamage is compared: filters go where they stand, in the basis of the
weights. The two OBS move the filters that are kept.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Wang, Grosse, Fidler, Zhang, EigenDamage: structured pruning in the Kronecker-factored
    eigenbasis, 2019, arXiv 1905.05934 [28]. A score is the damage of setting a filter's output to
    0 before its norm, and what is removed is more: the filter, its norm and its readers.
"""

import dataclasses
from functools import partial

import jax

from jprune import allocate, criteria, errors
from jprune.base import Budget, Criterion, Groups, Pruned, PyTree, Recipe, Records, Task
from jprune.criteria.kronecker import check_form
from jprune.curvature import fisher, layers_of, mean_factors
from jprune.masks import apply_masks
from jprune.recipes._kfac import calibration, floors_of, recipe_of
from jprune.recipes._nets import groups_of, shapes_of, weight_masks
from jprune.recipes.stages import Prune, Train, fractions, record
from jprune.reconstruct.kronecker import compensate

ALLOCATORS = {"global_topk": allocate.global_topk, "uniform": allocate.uniform}
CURVATURES = ("diagonal", "kfac")


def kronecker(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    form: str,
    allocator: str = "global_topk",
    curvature: str = "diagonal",
    rounds: int = 1,
    limit: float | None = None,
    labels: str = "model",
    damping: float = 1e-3,
    repo_variant: bool = False,
    recalibrate: int = 50,
    batches: int | None = None,
    batch_size: int = 64,
) -> Recipe:
    """Score filters, prune those of all layers under one threshold, compensate, fine-tune.

    Args:
        budget: what is kept.
        train: training of the dense net; None where it is trained already.
        finetune: training under the masks; with rounds, half of it lies between them.
        form: "c_obd", "c_obs", "kron_obd" or "kron_obs".
        allocator: "global_topk" (the paper's) or "uniform".
        curvature: of c_obd: "diagonal", the squares of every example's gradient (the authors'
            code), or "kfac", the diagonal of the factors.
        rounds: how often is pruned.
        limit: the largest fraction of a group's units that may go in a round; None: 0.95 of a
            single round, 0.5 of several.
        labels: "model": drawn from the net, the true Fisher information; "data": the empirical one.
        damping: of the factors that the OBS invert, times their mean eigenvalue; the paper gives
            no figure.
        repo_variant: the scores of kron_obd and kron_obs as in the authors' code, with the
            elementwise square of W times A where w A w^T is meant.
        recalibrate: batches that the norms' statistics settle on after fine-tuning; 0: none.
        batches: that the curvature is made of; None: one pass over the training images.
        batch_size: examples in one.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: an unknown name or a number out of range.

    Example:
        >>> recipe = METHODS["kron_obs"](Budget(macs=0.5), None, Train(8, 0.05, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'prune', 'before_finetune', 'finetune', 'recalibrate']
    """
    limit = (0.95 if rounds == 1 else 0.5) if limit is None else limit
    settings = PruneFilters(
        budget,
        form,
        allocator,
        curvature,
        limit,
        labels,
        damping,
        repo_variant,
        batches,
        batch_size,
    )
    prune = lambda wanted: dataclasses.replace(settings, budget=wanted)
    return recipe_of(prune, budget, train, finetune, rounds, recalibrate)


@dataclasses.dataclass(frozen=True)
class PruneFilters:
    """Masks filters by one of the four scores, and moves what is kept where the score says so.

    All settings but the `name` of the record are explained in `kronecker`.
    """

    budget: Budget
    form: str
    allocator: str = "global_topk"
    curvature: str = "diagonal"
    limit: float = 0.95
    labels: str = "model"
    damping: float = 1e-3
    repo_variant: bool = False
    batches: int | None = None
    batch_size: int = 64
    name: str = "prune"

    def __post_init__(self):
        check_form(self.form, self.damping, self.repo_variant)
        floors_of({}, self.limit)
        if self.allocator not in ALLOCATORS or self.curvature not in CURVATURES:
            raise errors.ArgumentError(
                f"allocator={self.allocator!r}, curvature={self.curvature!r}; write one of "
                f"{', '.join(ALLOCATORS)}, and one of {', '.join(CURVATURES)}."
            )

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Masks, moved and masked variables, and a record of the fractions kept.

        Raises:
            ArgumentError: no filter has factors, or curvature is not finite.
            BudgetError: a budget that cannot be met.
        """
        drawing, order = jax.random.split(key)
        criterion = self.criterion(task, groups_of(task), drawing)
        state = criterion.init(pruned.variables)
        for batch in calibration(task, order, self.batches, self.batch_size):
            state = criterion.update(state, pruned.variables, batch)
        return self.with_state(pruned, task, criterion, state)

    def with_state(
        self, pruned: Pruned, task: Task, criterion: Criterion, state: PyTree
    ) -> tuple[Pruned, Records]:
        """The same with a criterion that has seen its data; one pass serves several budgets."""
        groups, variables = groups_of(task), pruned.variables
        floors = floors_of(groups.sizes, self.limit)
        floors |= {n: max(floors.get(n, 1), size) for n, size in self.budget.floors.items()}
        budget = dataclasses.replace(self.budget, floors=floors)
        prune = Prune(self.criterion, ALLOCATORS[self.allocator], budget)
        masks = prune.of_units(pruned, task, criterion.score(state, variables))
        if self.form.endswith("obs"):
            factors = mean_factors(state)
            variables = compensate(groups, variables, masks, factors, self.form, self.damping)
        variables = apply_masks(variables, weight_masks(task, masks))
        pruned = pruned._replace(variables=variables, masks=masks)
        return pruned, [record(self.name, fractions(task, masks))]

    def criterion(self, task: Task, groups: Groups, key: jax.Array) -> Criterion:
        """Scores of units; of weights, for the diagonal of c_obd."""
        if self.form == "c_obd" and self.curvature == "diagonal":
            return criteria.obd(task.fn, task.loss, fisher(labels=self.labels), key)
        layers = layers_of(task.fn, groups, shapes_of(task), task.example)
        return criteria.kronecker(
            task.fn,
            task.loss,
            groups,
            layers,
            self.form,
            key=key if self.labels == "model" else None,
            labels=self.labels,
            damping=self.damping,
            repo_variant=self.repo_variant,
        )


METHODS = {
    form: partial(kronecker, form=form) for form in ("c_obd", "c_obs", "kron_obd", "kron_obs")
}
