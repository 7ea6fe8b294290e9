"""What all stages and recipes promise, found by looking at the rooms: a new file has no row."""

import dataclasses
import importlib
import inspect
import pkgutil
import re

import jax.numpy as jnp
import numpy as np
import pytest

import jprune.stages
from jprune import errors, recipes
from jprune.base import Budget
from jprune.recipes.methods import modules
from jprune.recipes.options import written
from tests.contracts import own


def stage_classes():
    """{"file.Class": class} of all stages: dataclasses of the room that are called and named."""
    found = {}
    for info in pkgutil.iter_modules(jprune.stages.__path__):
        module = importlib.import_module(f"jprune.stages.{info.name}")
        for name, cls in vars(module).items():
            own_one = inspect.isclass(cls) and cls.__module__ == module.__name__
            if not own_one or name.startswith("_") or not dataclasses.is_dataclass(cls):
                continue
            arguments = list(inspect.signature(cls.__call__).parameters)
            if arguments[1:4] == ["pruned", "task", "key"]:
                found[f"{info.name}.{name}"] = cls
    return found


STAGES = stage_classes()
each_stage = pytest.mark.parametrize("name", STAGES)
each_method = pytest.mark.parametrize("method", recipes.METHODS)


def test_stages_are_found():
    assert {"prune.Prune", "train.Train", "frame.Save", "frame.Repeat"} <= set(STAGES)


@each_stage
def test_a_stage_is_a_frozen_dataclass_with_a_name(name):
    cls = STAGES[name]
    assert cls.__dataclass_params__.frozen, "settings do not change: write @dataclass(frozen=True)"
    assert cls.__hash__ is not None, "settings are compared for caches"
    fields = {field.name: field for field in dataclasses.fields(cls)}
    assert fields["name"].type in ("str", str)


@each_stage
def test_the_attributes_of_a_stage_are_documented(name):
    cls = STAGES[name]
    text = inspect.getdoc(cls) or ""
    section = text.partition("Attributes:\n")[2]
    documented = set(re.findall(r"^    (\w+):", section, re.MULTILINE))
    assert documented == {field.name for field in dataclasses.fields(cls)}


@each_stage
def test_a_long_stage_is_run_by_its_learner(name):
    """Whoever runs stages with checkpoints asks for a learner, with what a call is given."""
    if learner := getattr(STAGES[name], "learner", None):
        assert list(inspect.signature(learner).parameters)[1:] == ["pruned", "task", "key"]


@each_method
def test_the_stages_of_a_recipe_are_hashable_and_equal_to_those_of_the_same_settings(method):
    one, two = (
        own.recipe_of(method, own.OF_ITS_OWN.get(method, Budget(density=0.7))) for _ in range(2)
    )
    assert [type(stage) for stage in one] == [type(stage) for stage in two]
    for stage in recipes.unrolled(one):
        assert isinstance(hash(stage), int), stage
        assert stage.name


def keywords(method):
    parameters = inspect.signature(recipes.find(method)).parameters.values()
    return [p for p in parameters if p.kind is p.KEYWORD_ONLY]


@each_method
def test_every_option_of_a_method_has_a_default(method):
    taken = keywords(method)
    assert not [p.name for p in taken if p.default is p.empty]
    assert set(recipes.options(method)) <= {p.name for p in taken}


@each_method
def test_every_option_of_a_method_is_documented(method):
    function = recipes.find(method)
    function = getattr(function, "func", function)
    arguments = (inspect.getdoc(function) or "").partition("Args:\n")[2].partition("\nReturns:")[0]
    documented = set(re.findall(r"^    (\w+(?:, \w+)*):", arguments, re.MULTILINE))
    documented = {name for names in documented for name in names.split(", ")}
    assert set(recipes.options(method)) <= documented


@each_method
def test_an_option_that_a_method_does_not_have_is_refused(method):
    with pytest.raises(errors.ArgumentError, match=f"the method {method} has no option"):
        recipes.read_options(method, ["no_such_option=1"])
    with pytest.raises(TypeError, match="no_such_option"):
        own.recipe_of(method, Budget(density=0.7), no_such_option=1)


@each_method
def test_options_as_text_are_the_defaults(method):
    """What the command line would write for a default is read as that very value."""
    for parameter in keywords(method):
        if parameter.name in recipes.options(method) and parameter.default is not None:
            word = str(written(parameter.default))
            word = word.lower() if isinstance(parameter.default, bool) else word
            text = f"{parameter.name}={word}"
            assert recipes.read_options(method, [text]) == {parameter.name: parameter.default}


def nothing_to_prune():
    """A net without a kernel: the mean of every channel, plus a shift."""
    fn = lambda v, x: x.mean((1, 2)) + v["params"]["shift"]
    return own.task_of(fn, {"shift": np.zeros(3, np.float32)}, (6, 5, 3))


@each_method
def test_a_net_without_anything_to_prune_is_refused_before_training(method):
    drawn = []
    recipe = own.recipe_of(method, own.OF_ITS_OWN.get(method, Budget(density=0.7)))
    with pytest.raises(errors.JpruneError):
        own.run(recipe, own.watched(nothing_to_prune(), drawn, most=0))
    assert not drawn


def dense_layers():
    """Three dense layers with biases, and ReLUs between."""
    params = own.kernels({"a": (6, 14), "b": (14, 18), "c": (18, 3)}, bias=True)

    def fn(v, x):
        for name in "abc":
            x = x @ v["params"][name]["kernel"] + v["params"][name]["bias"]
            x = x if name == "c" else jnp.maximum(x, 0)
        return x

    return own.task_of(fn, params, (6,))


@pytest.mark.parametrize("budget", [{"macs": 1e-6}, {"params": 1e-6}, {"latency": 0.5}], ids=str)
@each_method
def test_a_budget_that_cannot_be_met_is_refused_before_training(method, budget):
    """No net of three layers costs a millionth, and no latency is known here."""
    drawn = []
    with pytest.raises(errors.JpruneError):
        own.run(own.recipe_of(method, Budget(**budget)), own.watched(dense_layers(), drawn, most=0))
    assert not drawn


def test_every_file_of_recipes_says_its_papers():
    """The module of a method is where its references stand."""
    for method, module in modules().items():
        assert "References:" in (module.__doc__ or ""), f"{method}: {module.__name__}"
