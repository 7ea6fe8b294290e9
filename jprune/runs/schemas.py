"""What must stand in the files of a run, for those who read them (`foreign.check`)."""

from typing import Any, NotRequired, Required, TypedDict

from jprune.foreign import Size


class Record(TypedDict):
    """A line of `records.jsonl`; it has more keys, which nothing reads.

    Attributes:
        metrics: numbers by name; null where one was not finite.
        wall_s: seconds since the stage began.
    """

    stage: str
    step: Size
    metrics: dict[str, Any]
    wall_s: float


class Entry(TypedDict):
    """A record of a stage as its `DONE` holds it, without what every line says."""

    step: Size
    metrics: dict[str, Any]


class Machine(TypedDict, total=False):
    """Versions and device that a stage ran with."""

    versions: dict[str, Any]
    device: dict[str, Any]


class Done(TypedDict, total=False):
    """What is read of a stage's `DONE`, see `directory.Outcome`."""

    wall_s: Required[float]
    records: Required[list[Entry]]
    net: bool
    lines: list[Record]
    files: dict[str, str]
    of: Size
    settings: dict[str, Any]
    machines: list[Machine]


class Facts(TypedDict, total=False):
    """What every checkpoint of a training keeps."""

    lines: list[Record]
    machines: list[Machine]
    settings: dict[str, Any]


class Training(TypedDict):
    """What `config.json` says of a training."""

    epochs: float
    learning_rate: float


class Images(TypedDict):
    """What `config.json` says of data of the user's own."""

    shape: list[Size]
    classes: Size | None


class Config(TypedDict):
    """`config.json`: the settings of a run.

    Attributes:
        model: as it was written on the command line. A name of the zoo may be built again; code
            that it names is never imported, unless a person names it once more.
        options: of the method.
        weights: where the dense net was read from; null where it was trained.
        images: of data of the user's own.
    """

    model: str
    data: str
    method: str
    options: dict[str, Any]
    dtype: str
    weights: str | None
    train: Training | None
    finetune: Training
    images: NotRequired[Images | None]
