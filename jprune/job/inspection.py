"""What of a net can be pruned, as plain data."""

from collections.abc import Mapping
from typing import Any

import jax

from jprune import data as data_sets
from jprune.base import Groups
from jprune.cost import cost
from jprune.graph import trace
from jprune.job.nets import net_for


def inspected(
    model: str, data: str, data_options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Traces a net and returns what can be pruned, what it costs, and what is frozen and why.

    Args:
        model: a name of the zoo, or `module:callable`.
        data: name of a data set; only the shape of its images and its classes are used. Data of
            the user's own are read for them.
        data_options: of data of the user's own.

    Returns:
        `model`, `cost` {params, macs, bytes for one example}, `groups` {name: {size, macs, places:
        [{leaf, axis, roles}]}}, `branches`, `sites` and `frozen`, ready for JSON.

    Raises:
        ArgumentError: an unknown name.

    Example:
        >>> found = inspected("lenet300", "mnist")
        >>> {name: group["size"] for name, group in found["groups"].items()}
        {'params/fc1/kernel': 300, 'params/fc2/kernel': 100}
    """
    own = data_sets.load(data, **(data_options or {})) if ":" in data else None
    net = net_for(model, data, shape=own and own.shape, classes=own and own.classes)
    # Shapes alone: a net of any size is inspected in no memory.
    variables = jax.eval_shape(net.init, jax.eval_shape(lambda: jax.random.key(0)))
    groups = trace(net.fn, variables, net.example)
    whole = cost(net.fn, variables, net.example, groups=groups)
    return {
        "model": net.name,
        "cost": {name: round(float(getattr(whole, name))) for name in ("params", "macs", "bytes")},
        "groups": {name: _group(groups, name, whole.by_group[name]) for name in groups.names},
        "branches": [branch._asdict() for branch in groups.branches],
        "sites": [site._asdict() for site in groups.sites],
        "frozen": [record._asdict() for record in groups.frozen],
    }


def _group(groups: Groups, name: str, macs: Any) -> dict[str, Any]:
    places = [
        {"leaf": place.leaf, "axis": place.axis, "roles": list(place.roles)}
        for place in groups.places[name]
    ]
    return {"size": groups.sizes[name], "macs": round(float(macs)), "places": places}
