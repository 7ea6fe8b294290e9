"""In which of three ways a gradient meets its mask, for every method that trains under masks.

Frozen: a masked weight is exactly 0 after every step. Straight-through: the net runs on masked
weights, and what they are worth (their values, or their scores) takes steps all the same. Prox:
there is no mask while it trains; zeros are made by the step itself and read off afterwards.

A new method is a row of `METHODS`; a new kind of training stage is a row of `STAGES` and, if its
way of moving is a new one, a proof.
"""

import dataclasses
import inspect
import itertools
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import errors, masks_of, recipes, train, zoo
from jprune.base import Budget, Pruned
from jprune.learners import Sharpening, Terms, top_masks
from jprune.learners.feature_boosting import Boosting, boosted_task, init_gates, prepared
from jprune.learners.input_gates import counts_at
from jprune.learners.variational import Rule, Settings
from jprune.masks import apply_masks
from jprune.recipes import LongStage, Train
from jprune.stages.active_gradients import TrainActive
from jprune.stages.admm import Admm
from jprune.stages.adversarial import Adversarial, Soft
from jprune.stages.batch_codes import ByCodes
from jprune.stages.centripetal import Pull
from jprune.stages.channel_menu import LearnMenus, TrainChosen
from jprune.stages.compactor import TrainCompactors
from jprune.stages.drop_grow import DropGrow
from jprune.stages.dwindling import DwindleUnits
from jprune.stages.feature_boosting import Boost
from jprune.stages.feedback import PruneWithFeedback
from jprune.stages.goal import Goal
from jprune.stages.group_decay import Grouped
from jprune.stages.group_lasso import Penalty, Shrink
from jprune.stages.growing_decay import Grow
from jprune.stages.halving import Halve
from jprune.stages.hard_concrete import ByBarrier
from jprune.stages.hard_threshold import HardThreshold
from jprune.stages.hypernetwork import TrainHypernetwork
from jprune.stages.manifold import KeepManifold
from jprune.stages.mean_gates import ToMean
from jprune.stages.movement import Movement
from jprune.stages.n_of_m import Pattern, RefineNOfM
from jprune.stages.one_by_one import RemoveOneByOne
from jprune.stages.popup import Popup
from jprune.stages.probe import Probe
from jprune.stages.proximal import Regulariser, Split
from jprune.stages.ranked_decay import RaiseByRank
from jprune.stages.reinitialise import TrainAnew
from jprune.stages.relative_decay import Fade, FadeUnits
from jprune.stages.scales import ShrinkScales
from jprune.stages.scheduled import PruneGradually
from jprune.stages.soft_prune import SoftPrune
from jprune.stages.splitting import Sets
from jprune.stages.surgery import DynamicSurgery
from jprune.stages.tolerance import Game, Press
from jprune.stages.truncated_lasso import ShrinkWeakest
from jprune.stages.unit_gates import Gated, TrainGates
from jprune.stages.useful_range import PruneWithinRange
from jprune.stages.variational import Gate
from jprune.train.net import Net
from tests.toys import CLASSES, SHAPE, drawn, toy_data, toy_task

FROZEN, STRAIGHT, PROX = "frozen", "straight-through", "prox"
METHODS = {
    **dict.fromkeys(
        """
        amc aofp apoz c_obd c_obs cacp channel_lasso chip cpli csgd data_free depgraph eigendamage
        energy_aware entropy erk exact_obs fisher fpgm gmp granularity grasp greedy_forward han
        hesso hrank iht kron_obd kron_obs l1 l2 lamp lcp lottery_ticket m_fac metapruning obd obs
        particle_filter play_and_prune random rigl scratch_b scratch_e set snip sparsegpt synflow
        taylor taylor2016 thinet three_d variational woodfisher
        aofp apoz c_obd c_obs channel_lasso chip cpli csgd data_free depgraph eigendamage entropy
        erk exact_obs fisher fpgm gmp granularity grasp greedy_forward han hrank iht kron_obd
        kron_obs l1 l2 lamp lottery_ticket m_fac metapruning obd obs particle_filter play_and_prune
        random rigl scratch_b scratch_e set snip sparsegpt synflow taylor taylor2016 thinet three_d
        amc apoz c_obd c_obs cacp channel_lasso chip cpli csgd data_free depgraph eigendamage
        entropy erk exact_obs fisher fpgm gmp granularity grasp greedy_forward han hrank iht
        kron_obd kron_obs l1 l2 lamp lottery_ticket m_fac metapruning obd obs particle_filter random
        apoz c_obd c_obs channel_lasso chip cpli csgd data_free depgraph eigendamage entropy erk
        exact_obs fisher fpgm gmp granularity grasp greedy_forward han hrank iht kron_obd
        kron_obs l1 l2 lamp lcp lottery_ticket m_fac metapruning netadapt obd obs particle_filter
        random rigl scratch_b scratch_e set snip sparsegpt synflow taylor taylor2016 thinet three_d
        variational woodfisher
        """.split(),
        frozenset({FROZEN}),
    ),
    "dns": frozenset({STRAIGHT, FROZEN}),
    "dpf": frozenset({STRAIGHT, FROZEN}),
    "edge_popup": frozenset({STRAIGHT}),
    "movement": frozenset({STRAIGHT, FROZEN}),
    "nm": frozenset({STRAIGHT}),
    "autocompress": frozenset({PROX, FROZEN}),
    "gal": frozenset({PROX, FROZEN}),
    **dict.fromkeys(("greg", "gsm", "increg"), frozenset({FROZEN})),
    "autopruner": frozenset({FROZEN}),
    **dict.fromkeys(("partial_order", "tas"), frozenset({FROZEN})),
    "bar": frozenset({FROZEN}),
    "fbs": frozenset({FROZEN}),
    "from_scratch": frozenset({FROZEN}),
    **dict.fromkeys(("fbs", "manidp"), frozenset({FROZEN})),
    **dict.fromkeys(
        ("autopruner", "bar", "fbs", "from_scratch", "greg", "gsm", "increg", "manidp"),
        frozenset({FROZEN}),
    ),
    "group_brain_damage": frozenset({PROX, FROZEN}),
    "guided_sparsity": frozenset({PROX, FROZEN}),
    "lcs": frozenset({STRAIGHT, FROZEN}),
    "less_is_more": frozenset({PROX, FROZEN}),
    "slimming": frozenset({PROX, FROZEN}),
    "ssl": frozenset({PROX, FROZEN}),
    "ssr": frozenset({PROX, FROZEN}),
    "struct_admm": frozenset({PROX, FROZEN}),
    **dict.fromkeys(("resrep", "sfp", "asfp", "mfp"), frozenset({PROX})),
    "subset_sum": frozenset(),  # trains nothing under masks
}
STAGES = {
    Admm: PROX,
    Shrink: PROX,
    Split: PROX,
    ShrinkScales: PROX,
    ShrinkWeakest: PROX,
    Train: FROZEN,
    TrainActive: FROZEN,
    RaiseByRank: FROZEN,
    RemoveOneByOne: FROZEN,
    Grow: FROZEN,
    Halve: FROZEN,
    Press: FROZEN,
    TrainAnew: FROZEN,
    DropGrow: FROZEN,
    Probe: FROZEN,
    HardThreshold: FROZEN,
    PruneGradually: FROZEN,
    PruneWithFeedback: STRAIGHT,
    SoftPrune: PROX,
    DynamicSurgery: STRAIGHT,
    Popup: STRAIGHT,
    Movement: STRAIGHT,
    RefineNOfM: STRAIGHT,
    Adversarial: PROX,
    Boost: FROZEN,
    KeepManifold: FROZEN,
    LearnMenus: STRAIGHT,
    TrainChosen: FROZEN,
    DwindleUnits: FROZEN,
    FadeUnits: FROZEN,
    Pull: FROZEN,
    Gate: FROZEN,
    TrainCompactors: PROX,
    TrainGates: FROZEN,
    TrainHypernetwork: FROZEN,
    PruneWithinRange: PROX,
}
DENSE = ("train", "early", "search", "purify")
"""Names of stages that train the dense net, before there is a mask, or no weight at all."""

KEY = jax.random.key(8)
SHORT = Train(1, 0.05, 16, max_steps=3)


@pytest.fixture(scope="module")
def net():
    task = train.task(zoo.build("lenet300", CLASSES, SHAPE), toy_data())
    return task, Pruned(drawn(task), None)


@pytest.mark.parametrize("name", recipes.METHODS)
def test_the_stages_of_a_method_are_of_the_way_that_it_names(name):
    assert name in METHODS, f"say in METHODS in which way gradients meet the masks of {name}"
    factory = recipes.find(name)
    of_its_own = {"subset_sum": Budget(density=1.0), "three_d": Budget(macs=0.5)}
    budget = of_its_own.get(name, Budget(density=0.5))
    given = (budget, Train(2, 0.1), Train(2, 0.1, name="finetune"))
    takes = "finetune" in inspect.signature(factory).parameters
    stages = recipes.unrolled(factory(*given[: 3 if takes else 2]))
    long = [s for s in stages if isinstance(s, LongStage) and s.name not in DENSE]
    unknown = [type(stage).__name__ for stage in long if type(stage) not in STAGES]
    assert not unknown, f"say in STAGES in which way {unknown} train, and prove it"
    assert {STAGES[type(stage)] for stage in long} == METHODS[name]


@pytest.mark.parametrize("name", METHODS)
def test_the_docstring_of_a_method_names_the_way(name):
    if name not in recipes.METHODS:
        pytest.skip(f"{name} is not there yet")
    module = sys.modules[getattr(recipes.METHODS[name], "func", recipes.METHODS[name]).__module__]
    assert all(f"*{way}*" in " ".join((module.__doc__ or "").split()) for way in METHODS[name])


def steps(learner):
    state = learner.init()
    for batch in itertools.islice(learner.batches(0), 3):
        state, _ = learner.step(state, batch)
        yield state


def leaves(tree):
    return {
        path: np.asarray(leaf)
        for path, leaf in (
            (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        )
    }


@pytest.mark.filterwarnings("ignore:with rise")  # three steps are too few
@pytest.mark.parametrize(
    "stage",
    [
        SHORT,
        TrainAnew(SHORT, "epochs"),
        Pull(SHORT),
        FadeUnits(SHORT, Fade()),
        TrainActive(SHORT, Budget(density=0.3), goal=0.5),
        Halve(SHORT, Budget(density=0.3), period=100),
        Press(SHORT, Budget(density=0.3), Game(strength=1e-4)),
        Grow(SHORT, Budget(density=0.3), Grouped(), of_all=True),
        RaiseByRank(SHORT, Budget(density=0.9), Grouped("column"), 1e-3, 1.0),
    ],
    ids=lambda stage: type(stage).__name__,
)
@pytest.mark.parametrize("kind", ["weights", "units"])
def test_frozen_weights_are_exactly_0_and_the_others_move(net, stage, kind):
    task, start = net
    draw = lambda shape: np.random.default_rng(0).random(shape) < 0.5
    if kind == "units":
        masks = {name: draw(size) for name, size in Net(task).groups.sizes.items()}
    else:
        masks = jax.tree.map(lambda w: draw(w.shape) if w.ndim > 1 else None, start.variables)
    of_weights = Net(task).weight_masks(masks)
    sizes = Net(task).groups.sizes
    pairs = {name: np.arange(size) // 2 for name, size in sizes.items()}
    game = {"base": 0.5, "quality": 0.5, "share": 1.0}
    begun = Pruned(apply_masks(start.variables, of_weights), masks, {"clusters": pairs} | game)
    learner = stage.learner(begun, task, KEY)
    before = leaves(begun.variables)
    for state in steps(learner):
        after = leaves(learner.variables(state))
        for path, mask in leaves(of_weights).items():
            assert not after[path][~mask].any()
            if path.endswith("kernel"):
                assert (after[path] != before[path])[mask].mean() > 0.5


def test_frozen_weights_are_exactly_0_under_masks_that_move(net):
    task, start = net
    draw = lambda w: np.random.default_rng(0).random(w.shape) < 0.5 if w.ndim > 1 else None
    masks = jax.tree.map(draw, start.variables)
    begun = Pruned(apply_masks(start.variables, masks), masks)
    learner = DropGrow(SHORT, every=2, stop=1.0).learner(begun, task, KEY)
    path = "params/fc1/kernel"
    first, before = leaves(masks)[path], leaves(begun.variables)[path]
    for number, state in enumerate(steps(learner)):
        now = leaves(learner.variables(state))[path]
        mask = leaves(masks_of(state.opt_state))["fc1/kernel"]
        assert not now[~mask].any()
        assert mask.sum() == first.sum()
        # Weights stand still while masks move (steps 0 and 2), and move in between.
        moved = (now != before)[mask & (before != 0)]
        assert moved.mean() > 0.5 if number == 1 else not moved.any()
        before = now
    assert (mask != first).any()


def test_frozen_gates_are_exactly_0_and_the_others_move():
    task = toy_task()
    names = Net(task).groups.names
    rule = Rule(mu=1.0, sigma=10.0)  # gates begin at 1: whatever falls is gone
    stage = Gate(SHORT, Budget(density=1.0), Settings(weight=0.0, rule=rule), log_var=-4.0)
    gone = {name: np.zeros(size, bool) for name, size in Net(task).groups.sizes.items()}
    before = None
    learner = stage.learner(Pruned(drawn(task), None), task, KEY)
    for state in steps(learner):
        norms = learner.variables(state)["params"]
        for name, norm in zip(names, ("norm1", "norm2")):
            scale = np.asarray(norms[norm]["scale"])
            assert not scale[gone[name]].any()
            assert not np.asarray(norms[norm]["bias"])[gone[name]].any()
            gone[name] = np.asarray(state.rest["alive"][name]) == 0
            assert not scale[gone[name]].any()
            assert np.all(scale[~gone[name]] != 0)
        if before is not None:
            moved = np.asarray(norms["norm1"]["scale"]) != before
            assert moved[~gone[names[0]]].all()
        before = np.asarray(norms["norm1"]["scale"])
    assert any(mask.any() for mask in gone.values())


def test_straight_through_surgery_moves_what_masked_weights_are_worth(net):
    task, start = net
    learner = DynamicSurgery(SHORT, Budget(density=0.3), biases=False).learner(start, task, KEY)
    first = leaves(learner.init().opt_state.hidden)
    for state in steps(learner):
        masks, seen = leaves(masks_of(state.opt_state)), leaves(state.params)
        for path, mask in masks.items():
            assert not seen[path][~mask].any()
            assert not leaves(state.opt_state.hidden)[path][mask].any()
            still = ~mask & (first[path] != 0)
            moved = leaves(state.opt_state.hidden)[path] != first[path]
            assert moved[still].mean() > 0.5


def test_straight_through_refinement_moves_what_masked_weights_are_worth(net):
    task, start = net
    learner = RefineNOfM(SHORT, Pattern(Budget(density=0.5))).learner(start, task, KEY)
    first = leaves(learner.init().opt_state.hidden)
    for state in steps(learner):
        masks, seen = leaves(masks_of(state.opt_state)), leaves(state.params)
        for path, mask in masks.items():
            hidden = leaves(state.opt_state.hidden)[path]
            assert not seen[path][~mask].any()
            assert not hidden[mask].any()
            still = ~mask & (first[path] != 0)
            assert (hidden != first[path])[still].mean() > 0.5


def test_straight_through_movement_scores_masked_weights_which_stand_still(net):
    task, start = net
    stage = Movement(SHORT, Budget(density=0.3), warmup=0.0)
    quick = dataclasses.replace(SHORT, momentum=0.0, weight_decay=0.0)
    learner = dataclasses.replace(stage, train=quick).learner(start, task, KEY)
    before = learner.init()
    for state in steps(learner):
        masks, seen = leaves(masks_of(state.opt_state)), leaves(state.params)
        for path, mask in masks.items():
            assert not seen[path][~mask].any()
            old = leaves(masks_of(before.opt_state))[path]
            hidden, was = (leaves(s.opt_state.hidden)[path] for s in (state, before))
            np.testing.assert_array_equal(hidden[~mask & ~old], was[~mask & ~old])
            moved = leaves(state.opt_state.scores)[path] != leaves(before.opt_state.scores)[path]
            assert moved[~mask].mean() > 0.3  # pixels and units that are 0 have no gradient
        before = jax.tree.map(jnp.array, state)


@pytest.mark.parametrize("per", ["weight", "unit"])
def test_straight_through_feedback_moves_what_masked_weights_are_worth(net, per):
    task, start = net
    goal = Goal(Budget(density=0.3), per)
    learner = PruneWithFeedback(SHORT, goal, every=100, ramp=0.0).learner(start, task, KEY)
    first = learner.init()
    masks, worth = leaves(first.opt_state.masks), leaves(first.opt_state.hidden)
    assert masks.keys() == (
        {"fc1/kernel", "fc2/kernel"} | ({"fc3/kernel"} if per == "weight" else set())
    )
    for state in steps(learner):
        seen, hidden = leaves(state.params), leaves(state.opt_state.hidden)
        for path, mask in masks.items():
            assert not seen[path][~mask].any()
            assert not hidden[path][mask].any()
            assert (hidden[path] != worth[path])[~mask].mean() > 0.5


def test_frozen_weights_that_went_in_mid_training_are_exactly_0_and_stay_so(net):
    task, start = net
    learner = PruneGradually(SHORT, Goal(Budget(density=0.3)), every=1).learner(start, task, KEY)
    gone = None
    for state in steps(learner):
        masks, seen = leaves(masks_of(state.opt_state)), leaves(state.params)
        for path, mask in masks.items():
            assert not seen[path][~mask].any()
            assert gone is None or not (mask & gone[path]).any()
        gone = {path: ~mask for path, mask in masks.items()}
    assert np.mean(gone["fc1/kernel"]) == pytest.approx(0.7, abs=1e-3)


def test_frozen_weights_stay_so_while_gates_are_trained_beside_them(net):
    task, start = net
    masks = {"params/fc1/kernel": np.arange(300) < 90}
    of_weights = Net(task).weight_masks(masks)
    begun = Pruned(apply_masks(start.variables, of_weights), masks)
    for kind, move in ((ToMean(), False), (ByCodes(Sharpening()), True), (ByBarrier(), True)):
        stage = TrainGates(SHORT, Budget(density=0.8), Gated(gates="*fc2*"), kind)
        before = leaves(begun.variables["params"])
        for state in steps(stage.learner(begun, task, KEY)):
            seen = leaves((state.params if move else state.rest)["net"])
            for path, mask in leaves(task.split(of_weights)[0]).items():
                assert not seen[path][~mask].any()
            assert all((seen[path] != old).any() == move for path, old in before.items())


def test_frozen_zeros_of_hard_thresholding_move_in_dense_phases_alone(net):
    task, start = net
    train = Train(3, 0.05, 16, momentum=0.9, max_steps=7)
    stage = HardThreshold(train, Goal(Budget(density=0.3)), sparse=0.67, dense=0.34)
    assert stage.phases(task) == (2, 1)
    learner, phases = stage.learner(start, task, KEY), []
    state = learner.init()
    for batch in itertools.islice(learner.batches(0), 7):
        before = leaves(state.opt_state.masks)
        state, _ = learner.step(state, batch)
        masks, seen = leaves(state.opt_state.masks), leaves(state.params)
        phases.append(all(mask.all() for mask in before.values()))
        for path, mask in masks.items():
            assert not seen[path][~mask].any()
            assert not seen[path][~before[path]].any()
            assert (seen[path] != 0)[before[path] & mask].mean() > 0.99
    assert phases == [False, False, True, False, False, False, False]


def test_prox_zeros_of_soft_pruning_are_made_by_a_step_and_move_in_the_next(net):
    task, start = net
    stage = SoftPrune(SHORT, Goal(Budget(density=0.5), "unit", order=2), every=1 / 3)
    learner = dataclasses.replace(stage, train=dataclasses.replace(SHORT, max_steps=4)).learner(
        start, task, KEY
    )
    twice = dataclasses.replace(stage, every=2 / 3, train=dataclasses.replace(SHORT, max_steps=3))
    zeros = lambda state: ~np.asarray(state.params["fc1"]["kernel"]).any(axis=0)
    assert all(zeros(state).sum() == 150 for state in steps(learner))
    assert [zeros(state).sum() for state in steps(twice.learner(start, task, KEY))] == [150, 0, 150]


def test_straight_through_scores_move_where_weights_are_masked_and_weights_nowhere(net):
    task, start = net
    learner = Popup(Budget(density=0.3), SHORT).learner(start, task, KEY)
    first = leaves(learner.init().params)
    masks = leaves(top_masks(jax.tree.map(jnp.asarray, learner.init().params), 0.3))
    for state in steps(learner):
        for path, mask in masks.items():
            assert (leaves(state.params)[path] != first[path])[~mask].mean() > 0.5
        for path, weight in leaves(start.variables).items():
            np.testing.assert_array_equal(leaves(state.rest)[path], weight)


def test_prox_steps_make_zeros_without_a_mask_and_zeros_come_back(net):
    task, start = net
    dead = np.arange(300) % 2 == 0
    fc1 = {"kernel": start.variables["params"]["fc1"]["kernel"] * ~dead, "bias": jnp.full(300, 0.1)}
    params = {**start.variables["params"], "fc1": fc1}
    begun = start._replace(variables={**start.variables, "params": params})
    for strength, there in ((1e-6, True), (1e3, False)):
        penalty = Penalty(("filter",), strength)
        learner = Shrink(SHORT, Budget(density=1.0), penalty).learner(begun, task, KEY)
        seen = []
        for state in steps(learner):
            seen.append(np.asarray(state.params["fc1"]["kernel"]).any(axis=0))
            with pytest.raises(errors.StructureError, match="0 sets of masks"):
                masks_of(state.opt_state)
        if there:
            assert seen[-1][dead].mean() > 0.5
            assert seen[-1][~dead].all()
        else:
            assert [now.sum() for now in seen] == [1, 1, 1]  # the last unit of a group stays


def test_prox_scales_become_0_without_a_mask_and_come_back():
    task = toy_task()
    start = Pruned(drawn(task), None)
    norm = {"scale": jnp.zeros(8), "bias": jnp.full(8, 0.1)}
    params = {**start.variables["params"], "norm1": norm}
    begun = start._replace(variables={**start.variables, "params": params})
    for strength, there in ((1e-6, True), (1e3, False)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a strength that does nothing says so
            learner = ShrinkScales(SHORT, Budget(density=0.5), strength).learner(begun, task, KEY)
        for state in steps(learner):
            scales = [np.asarray(state.params[norm]["scale"]) for norm in ("norm1", "norm2")]
            with pytest.raises(errors.StructureError, match="0 sets of masks"):
                masks_of(state.opt_state)
        assert all((scale != 0).mean() > 0.5 for scale in scales) == there
        assert any(scale.any() for scale in scales) == there


@pytest.mark.parametrize(
    "stage",
    [
        Admm(SHORT, Sets(Budget(density=0.5)), rounds=3),
        Split(SHORT, Regulariser(Sets(Budget(density=0.5))), rounds=3),
    ],
    ids=["Admm", "Split"],
)
def test_prox_of_the_constraint_has_the_zeros_and_the_weights_are_dense(net, stage):
    task, start = net
    learner = stage.learner(start, task, KEY)
    before = leaves(start.variables)
    for state in steps(learner):
        now = leaves(state.params)
        copies = leaves(state.opt_state.target)
        assert set(copies) == {f"fc{n}/{leaf}" for n in (1, 2) for leaf in ("kernel", "bias")}
        for layer in ("fc1", "fc2"):
            gone = ~copies[f"{layer}/kernel"].any(axis=0)
            assert gone.sum() == gone.size / 2
            assert not copies[f"{layer}/bias"][gone].any()
            moved = now[f"{layer}/kernel"] != before[f"params/{layer}/kernel"]
            assert moved[:, gone].mean() > 0.5


def test_prox_soft_masks_become_0_in_a_step_of_their_own_and_come_from_no_mask(net):
    task, start = net
    begun = start._replace(saved={"dense": start.variables})
    stage = Adversarial(SHORT, Budget(density=0.5), Soft(steps=3), Terms())
    learner = stage.learner(begun, task, KEY)
    first = leaves(learner.init().params)
    *_, state = steps(learner)
    zeros = {path: mask == 0 for path, mask in leaves(state.masks).items()}
    assert any(zero.any() for zero in zeros.values())
    assert not all(zero.all() for zero in zeros.values())
    for path, after in leaves(state.params).items():  # the weights have no zeros, and all move
        if path.endswith("kernel"):
            assert (after != first[path]).mean() > 0.5
            assert (after != 0).all()


def test_frozen_losers_of_an_example_are_exactly_0_and_pass_no_gradient():
    task = toy_task()
    stage = Boost(SHORT, Budget(density=0.5), Boosting(lasso=0.0))
    layers = stage.layers(task)
    counts = {name: np.array([n]) for name, n in counts_at(layers, 0.5).items()}
    groups = Net(task).groups
    boosted = boosted_task(task, groups, layers, stage.boosting, counts, 3)
    net, levels = prepared(groups, layers, stage.boosting, drawn(task))
    gates = init_gates(KEY, layers, levels, 0.3)
    batch = next(task.data.batches("train", 1))
    variables = {"net": net, "gates": gates, "step": jnp.zeros((), jnp.int32)}

    def loss(gates):
        out, _ = boosted.train_fn({**variables, "gates": gates}, batch["image"], KEY)
        return boosted.loss(out, batch).sum()

    for name, slope in jax.jit(jax.grad(loss))(gates).items():
        moved = np.asarray(slope["level"]) != 0
        assert 0 < moved.sum() <= counts[name][0] < len(moved)
        np.testing.assert_array_equal(np.any(slope["predictor"], axis=0), moved)
