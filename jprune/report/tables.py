"""The two tables of the page: accuracy and cost, and latency."""

from typing import Any

from jprune.report import text
from jprune.report.markup import Markup, join, table, tag
from jprune.report.schema import Latency, Result

COST_NOTE = (
    "Accuracy and loss are those of the test split; before fine-tuning, of the validation split. "
    "Parameters are those that are not zero. MACs are multiply-accumulates for one example. File "
    "size is that of the float32 .tflite."
)
_STATES = {"dense": "Dense", "before_finetune": "Before fine-tuning", "pruned": "Slim"}
_RUNTIMES = {
    "xla_b1": "XLA, batch 1",
    "xla_b128": "XLA, batch 128",
    "tflite_b1": "TFLite, batch 1",
}


def value(words: str) -> Markup:
    """A cell's text; "not measured" is shown in a muted colour."""
    return tag("span", words, class_="unknown") if words == text.NOT_MEASURED else join(words)


RUNTIMES = {"xla": "XLA at batch 128", "tflite": "TFLite at batch 1"}
"""Of budgets in latency."""


def median(latency: Latency | None) -> float | None:
    """Median of a latency in ms; None where it was not measured."""
    return latency["median"] if latency else None


def cost(result: Result) -> Markup:
    """Accuracy, loss and cost of the three nets, with fractions kept and asked for."""
    states: list[Any] = [result[name] for name in ("dense", "before_finetune", "pruned")]
    dense, slim = result["dense"], result["pruned"]
    points = text.difference(slim["accuracy"], dense["accuracy"], 100, 2)
    loss = text.difference(slim["loss"], dense["loss"], digits=4)
    rows = [
        ["Accuracy", *(text.percent(state["accuracy"], 2) for state in states), "", ""],
        ["Loss", *(text.decimal(state["loss"]) for state in states), "", ""],
    ]
    # Column 4 of accuracy and loss is a difference, that of the costs below a fraction.
    rows[0][4] = points if points == text.NOT_MEASURED else f"{points} points"
    rows[1][4] = loss
    for name in slim.get("metrics", {}):
        values = [state.get("metrics", {}).get(name) for state in states]
        change = text.difference(values[2], values[0], digits=4)
        rows.append([name, *map(text.decimal, values), change, ""])
    achieved: Any = result["achieved"]
    for kind, noun in text.KINDS.items():
        asked = result["requested"].get(kind)
        if kind in dense:
            unit = "B" if kind == "bytes" else ""
            counts = [text.count(state[kind], unit) for state in states]
        # Density and energy have no counts: they get a row only where they were measured or asked
        # for.
        elif achieved.get(kind) is None and asked is None:
            continue
        else:
            counts = ["", "", ""]
        wanted = "" if asked is None else text.percent(asked)
        rows.append([noun[0].upper() + noun[1:], *counts, text.percent(achieved.get(kind)), wanted])
    cells = [[row[0], *map(value, row[1:])] for row in rows]
    return table(["", *_STATES.values(), "Slim against dense", "Asked for"], cells)


def latency_note(result: Result) -> str:
    """What the latencies were measured on, and how to read them."""
    device, predicted = result["device"], result.get("predicted", {}).get("latency")
    said = ""
    if predicted is not None:
        measured = text.percent(result["achieved"]["latency"])
        said = (
            f" The latency table predicted {text.percent(predicted)} of the dense net's time under "
            f"{RUNTIMES[result.get('target', 'xla')]}, and {measured} were measured."
        )
    return (
        f"Median time of one call on {device['kind']}, with 10th and 90th percentile below. Dense "
        f"and slim net were timed in turns, with their variables compiled in.{said}"
    )


def latency(result: Result) -> Markup:
    """Latency of dense and slim net by runtime, with their ratio."""
    rows: list[list[str]] = []
    for key, name in _RUNTIMES.items():
        times: list[Latency | None] = [
            dict[str, Any](result[net]["latency_ms"])[key] for net in ("dense", "pruned")
        ]
        before, after = map(median, times)
        fraction = text.percent(text.ratio(after, before))
        rows.append([name, *map(_time, times), value(fraction)])
    return table(["", "Dense", "Slim", "Slim against dense"], rows)


def _time(latency: Latency | None) -> Markup:
    if latency is None:
        return value(text.NOT_MEASURED)
    low, high = text.significant(latency["p10"]), text.significant(latency["p90"])
    spread = tag("span", f"{low} to {high}", class_="more")
    return tag("div", text.milliseconds(latency["median"]), spread)
