"""Menus of channel sets: every layer has a few, and a head that chooses one of them for an image.

    h = q + stopped(onehot(argmax q) - q),   q = softmax((log p + Gumbel) / temperature)
    y = (h menu) * (norm(conv x) + shift)

The forward value is exactly a row of the menu; the gradient of the head is that of the mixture
(*straight-through*). Entries of a menu are held in [0, top], where the clamp makes exact zeros: a
channel that a set leaves out is 0 for an image, without gradient. A penalty draws the mean of the
chosen entries to a target.

References:
    Wang, Zhang, Hu, Zhang, Su, Dynamic network pruning with interpretable layerwise channel
    selection, AAAI 2020 [35].
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import errors
from jprune.base import Batch, Groups, PyTree, Task, Variables
from jprune.cost.samples import dynamic_leaves
from jprune.forms.from_menu import FromMenu, readings
from jprune.forms.opened import dense_of
from jprune.graph.look.intercept import Site, intercept
from jprune.learners.input_gates import Gated, as_gated, with_gates
from jprune.learners.own_steps import beside


@dataclasses.dataclass(frozen=True)
class Menus:
    """How menus and heads are learned.

    Attributes:
        actions: sets of a layer.
        strength: weight of the penalty on the mean of the chosen entries.
        hot: temperature at the first step; it falls in a line.
        cold: temperature at the last one.
        top: the largest entry of a set.
        rate: of Adam, which moves heads and menus.
    """

    actions: int = 5
    strength: float = 1.0
    hot: float = 5.0
    cold: float = 0.5
    top: float = 5.0
    rate: float = 0.01

    def __post_init__(self):
        errors.check_numbers(
            "lcs",
            ("actions", self.actions, self.actions >= 1, "1 or more"),
            ("strength", self.strength, self.strength >= 0, "0 or more"),
            ("hot", self.hot, self.hot > 0, "above 0: a temperature"),
            ("cold", self.cold, self.cold > 0, "above 0: a temperature"),
            ("top", self.top, self.top >= 1, "1 or more, where sets begin"),
            ("rate", self.rate, self.rate > 0, "above 0"),
        )


def straight_choice(key: jax.Array, logits: jax.Array, temperature: Any) -> jax.Array:
    """A random choice for every example, one-hot; its gradient is that of the relaxed choice.

    Args:
        key: of the draw.
        logits: [batch, actions].
        temperature: above 0; small ones make the relaxed choice sharp.

    Example:
        >>> straight_choice(jax.random.key(0), jnp.array([[0.0, 50.0, 0.0]]), 1.0).tolist()
        [[0.0, 1.0, 0.0]]
    """
    noise = jax.random.gumbel(key, logits.shape, logits.dtype)
    # q = softmax((log p + Gumbel) / temp)
    q = jax.nn.softmax((jax.nn.log_softmax(logits) + noise) / temperature)
    # h = q + sg(onehot(argmax q) - q), in this order so that the value is exactly one-hot
    hard = jax.nn.one_hot(q.argmax(axis=-1), q.shape[-1], dtype=q.dtype)
    return hard + (q - jax.lax.stop_gradient(q))


def penalty(chosen: jax.Array, target: Any, strength: float = 1.0) -> jax.Array:
    """How far the mean of the chosen entries is from a target.

    Example:
        >>> rows = jnp.array([[1.0, 0, 1, 0], [0, 0, 0, 2]])
        >>> round(float(penalty(rows, 0.7, 0.5)), 4)
        0.02
    """
    # lambda (mean |c| - r)^2, over all examples and channels
    return strength * (jnp.abs(chosen).mean() - target) ** 2


def entropy(actions: Any, count: int) -> float:
    """Entropy in nats of the actions of some examples: 0 where all of them choose the same set.

    Args:
        actions: int [examples].
        count: actions that there are.

    Example:
        >>> round(entropy([0, 1, 1, 0], 5), 4), entropy([2, 2], 5)
        (0.6931, 0.0)
    """
    shares = np.bincount(np.asarray(actions), minlength=count) / max(1, np.size(actions))
    return float(-(shares * np.log(np.where(shares > 0, shares, 1))).sum() + 0.0)


def projected(gates: PyTree, top: float) -> PyTree:
    """Menus within [0, top], and heads whose actions have length 1.

    Example:
        >>> gates = {"a": {"head": jnp.array([[0.0], [4.0]]), "menu": jnp.array([[-1.0, 7.0]])}}
        >>> jax.tree.map(lambda leaf: leaf.tolist(), projected(gates, 5.0))
        {'a': {'head': [[0.0], [1.0]], 'menu': [[0.0, 5.0]]}}
    """

    def one(part: PyTree) -> PyTree:
        length = jnp.sqrt((part["head"] ** 2).sum(axis=0, keepdims=True))
        return {
            "head": part["head"] / jnp.maximum(length, 1e-12),
            "menu": jnp.clip(part["menu"], 0, top),
        }

    return {name: one(part) for name, part in gates.items()}


def init_menus(key: jax.Array, layers: Mapping[str, Gated], menus: Menus) -> PyTree:
    """{layer: {"head": [inputs, actions], "menu": [actions, outputs]}}; all sets begin whole."""
    drawn = {
        name: {
            "head": jax.random.normal(
                jax.random.fold_in(key, number), (layer.inputs, menus.actions)
            ),
            "menu": jnp.ones((menus.actions, layer.outputs)),
        }
        for number, (name, layer) in enumerate(layers.items())
    }
    return projected(drawn, menus.top)


def own_steps(
    inner: optax.GradientTransformation, rate: float, top: float
) -> optax.GradientTransformationExtraArgs:
    """Adam for what `params["gates"]` holds, projected after every step; `inner` for the rest.

    Args:
        inner: the optimizer of the weights.
        rate: of Adam.
        top: see `Menus`.

    Example:
        >>> gates = {"a": {"head": jnp.ones((1, 2)), "menu": jnp.full((2, 3), 0.005)}}
        >>> params = {"net": jnp.ones(2), "gates": gates}
        >>> tx = own_steps(optax.sgd(0.1), rate=0.01, top=5.0)
        >>> updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
        >>> float(optax.apply_updates(params, updates)["gates"]["a"]["menu"].max())
        0.0
    """
    adam = optax.adam(rate)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        steps, state = adam.update(updates, state, params)
        after = projected(optax.apply_updates(params, steps), top)
        # 0 - w is added to w: what the clamp makes 0 is exactly 0.
        return jax.tree.map(jnp.subtract, after, params), state

    return beside(inner, optax.GradientTransformation(adam.init, update))


def menu_task(
    task: Task, groups: Groups, layers: Mapping[str, Gated], menus: Menus, target: float, steps: int
) -> Task:
    """The task for variables {"net", "gates", "step"}: net, heads and menus are trained together.

    Its outputs are (logits, {"penalty", "level", "open"} [batch] each).

    Args:
        task: of the plain net.
        groups: of it.
        layers: from `boostable_layers`.
        menus: the settings.
        target: of the mean of the chosen entries.
        steps: in which the temperature falls; 0: actions are the likeliest ones, and neither heads
            nor menus have a gradient.
    """

    def train_fn(variables: Variables, x: jax.Array, key: jax.Array) -> Any:
        draw, own = jax.random.split(key)
        if steps:
            # Linear from hot to cold
            part = jnp.clip(variables["step"] / max(1, steps - 1), 0, 1)
            temperature = menus.hot + (menus.cold - menus.hot) * part
            choose = _drawn(own, temperature, variables["gates"])
        else:
            choose = _likeliest(variables["gates"])
        run = intercept(task.train_fn, groups, _choosing(layers, choose), ("in", "norm"))
        (logits, new), (_, seen) = run(variables["net"], ({}, {}), x, draw)
        chosen = jnp.concatenate([seen[name] for name in layers], axis=-1)
        told = {
            "penalty": jnp.full(len(x), penalty(chosen, target, menus.strength)),
            "level": jnp.abs(chosen).mean(axis=-1),
            "open": (chosen > 0).mean(axis=-1),
        }
        return (logits, told), (new, {"step": variables["step"] + 1})

    def loss(out: Any, batch: Batch) -> jax.Array:
        own = task.loss(out[0], batch)
        return own + out[1]["penalty"] if steps else own

    def metrics(out: Any, batch: Batch) -> dict[str, jax.Array]:
        told = {"penalty": out[1]["penalty"], "menu_level": out[1]["level"]}
        return {**task.metrics(out[0], batch), **told, "gates_open": out[1]["open"]}

    return with_gates(task, train_fn, loss, metrics)


Choose = Callable[[str, int, jax.Array], tuple[jax.Array, jax.Array]]
"""`(layer, its number, a) -> (c, c for the penalty)`, [batch, outputs] each."""


def _drawn(key: jax.Array, temperature: Any, gates: PyTree) -> Choose:
    def choose(name: str, number: int, a: jax.Array) -> tuple[jax.Array, jax.Array]:
        head, menu = gates[name]["head"], gates[name]["menu"]
        of_layer = jax.random.fold_in(key, number)
        # One draw; the penalty has no gradient in what the head reads, the net's weights.
        both = (
            straight_choice(of_layer, read @ head, temperature)
            for read in (a, jax.lax.stop_gradient(a))
        )
        # c = h G
        c, c_of_penalty = (jnp.matmul(h, menu, precision="highest") for h in both)
        return c, c_of_penalty

    return choose


def _likeliest(gates: PyTree) -> Choose:
    def choose(name: str, number: int, a: jax.Array) -> tuple[jax.Array, jax.Array]:
        head, menu = jax.lax.stop_gradient((gates[name]["head"], gates[name]["menu"]))
        # c = G[argmax p]
        c = menu[(a @ head).argmax(axis=-1)]
        return c, c

    return choose


def _choosing(
    layers: Mapping[str, Gated], choose: Choose
) -> Callable[[Site, Any, Any], tuple[Any, Any]]:
    """The handler that multiplies at "norm" by what was chosen at "in": it carries both c."""
    numbers = {name: number for number, name in enumerate(layers)}

    def handler(site: Site, value: Any, carry: Any) -> tuple[Any, Any]:
        chosen, seen = carry
        if site.layer not in layers:
            return value, carry
        if site.kind == "in":
            a = readings(value, site.axis)
            c, c_of_penalty = choose(site.layer, numbers[site.layer], a)
            return value, ({**chosen, site.layer: c}, {**seen, site.layer: c_of_penalty})
        # relu(c norm(conv x))
        along = site.along(chosen[site.layer], value.ndim).astype(value.dtype)
        return along * value, carry

    return handler


def as_menus(
    task: Task, groups: Groups, layers: Mapping[str, Gated], variables: Variables
) -> Variables:
    """The trained net as variables that any function of the net runs: kernels with menus.

    Args:
        task: of the plain net.
        groups: of it.
        layers: that are gated.
        variables: of the task of `menu_task`.
    """

    def form(name: str, kernel: Any, offset: Any, bonus: Any) -> FromMenu:
        gates = variables["gates"][name]
        return FromMenu(kernel, offset, bonus, gates["head"], gates["menu"])

    return as_gated(task, groups, layers, variables["net"], form)


def thinned(gates: PyTree, share: float, least: Mapping[str, int]) -> PyTree:
    """Menus of whose entries, of all layers together, a share is left: the largest ones.

    Args:
        gates: {layer: {"head", "menu"}}.
        share: of the entries; of equal ones those go first that stand late in their set, so that
            all layers have as many.
        least: {layer: the fewest entries of a set that are left}.

    Example:
        >>> menu = np.array([[1.0, 0.5], [0.25, 2.0]])
        >>> thinned({"a": {"head": None, "menu": menu}}, 0.5, {"a": 1})["a"]["menu"].tolist()
        [[1.0, 0.0], [0.0, 2.0]]
    """
    menus = {name: np.asarray(part["menu"]) for name, part in gates.items()}
    # 0 for the largest entry of a set, 1 for the next one
    ranks = {
        name: np.argsort(np.argsort(-menu, axis=-1, kind="stable"), axis=-1)
        for name, menu in menus.items()
    }
    entries = np.concatenate([menu.ravel() for menu in menus.values()])
    places = np.concatenate([ranks[name].ravel() / menu.shape[-1] for name, menu in menus.items()])
    stays = np.zeros(entries.size, bool)
    stays[np.lexsort((places, -entries))[: int(np.ceil(share * entries.size - 1e-9))]] = True
    ends = np.cumsum([menu.size for menu in menus.values()])[:-1]
    result = {}
    for (name, menu), part in zip(menus.items(), np.split(stays, ends)):
        first = ranks[name] < least[name]
        # A set whose largest entries are 0 already would be empty: they are whole again.
        filled = np.where(first & (menu <= 0), 1.0, menu)
        new = np.where(part.reshape(menu.shape) | first, filled, 0)
        result[name] = {**gates[name], "menu": jnp.asarray(new, jnp.float32)}
    return result


def choices_of(fn: Callable[..., Any], groups: Groups) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """`run(variables, x) -> (out, {layer: p [batch, actions]})` of a net that holds menus.

    Args:
        fn: the network that was traced, in inference mode.
        groups: from `trace`.
    """

    def run(variables: Variables, x: jax.Array) -> tuple[Any, dict[str, Any]]:
        leaves = dynamic_leaves(variables)

        def handler(site: Site, value: Any, carry: Any) -> tuple[Any, Any]:
            leaf = leaves.get(site.kernel)
            if not isinstance(leaf, FromMenu):
                return value, carry
            gates, choices = carry
            if site.kind == "in":
                p = leaf.probabilities(value, site.axis)
                now = leaf.gates(value, site.axis)
                return value, ({**gates, site.layer: now}, {**choices, site.layer: p})
            return leaf.boosted(value, gates[site.layer], site.axis), carry

        run_all = intercept(fn, groups, handler, ("in", "out"))
        out, (_, choices) = run_all(dense_of(variables), ({}, {}), x)
        return out, choices

    return run
