"""The options of every verb: typed dataclasses whose docstrings are the help texts.

Nothing heavy is imported here: `jprune --help` answers at once.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Annotated, Any, Literal

import tyro

from jprune.foreign import shown

LARGEST = 1_000_000
"""Of numbers such as epochs and learning rates."""
NAME = 4095
"""Characters of a name, and bytes of a path."""
DIGITS = 10
Level = Literal["debug", "info", "warning", "error"]


def _fraction(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise ValueError(
            f"{shown(text, 40)} is outside (0, 1]: it is the fraction that is kept. To remove "
            "30 %, write 0.7."
        )
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{shown(text, 40)!r} is no number. Write one such as 0.5.") from None


def _share(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise ValueError(f"{shown(text, 40)} is outside [0, 1]. Write a number such as 0.9.")
    return value


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _fractions(text: str) -> tuple[float, ...]:
    return tuple(_fraction(word) for word in _names(text))


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(_upto(2**20)(word) for word in _names(text))
    if not counts:
        raise ValueError(f"{shown(text, 40)!r} holds no count. Write some, such as 1,128.")
    return counts


def _seeds(text: str) -> tuple[int, ...]:
    seeds = tuple(_seed(word) for word in _names(text))
    # Equal seeds would be equal runs, and a deviation of 0.
    if len(set(seeds)) < len(seeds) or not seeds:
        raise ValueError(f"{shown(text, 40)!r} are no different seeds. Write some, such as 0,1,2.")
    return seeds


def _positive(text: str) -> float:
    value = _number(text)
    if not 0 < value <= LARGEST:
        raise ValueError(
            f"{shown(text, 40)} is outside (0, {LARGEST}]. Write a number such as 0.5."
        )
    return value


def _upto(most: int) -> Callable[[str], int]:
    """Reads a count from 1 to `most`."""

    def read(text: str) -> int:
        # Digits first: Python refuses to read thousands of them.
        if not text.isdecimal() or len(text) > DIGITS or not 1 <= int(text) <= most:
            raise ValueError(
                f"{shown(text, 40)!r} is no count. Write a whole number from 1 to {most}."
            )
        return int(text)

    return read


def _seed(text: str) -> int:
    # JAX's keys take 32 bits with a sign.
    if not text.isdecimal() or len(text) > DIGITS or int(text) >= 2**31:
        raise ValueError(
            f"{shown(text, 40)!r} is no seed. Write a whole number from 0 to {2**31 - 1}."
        )
    return int(text)


def _text(text: str) -> str:
    if not text or len(text) > NAME or "\0" in text:
        raise ValueError(
            f"{shown(text, 40)!r} is no name: it is empty, has a zero byte, or is longer than "
            f"{NAME}."
        )
    return text


def _folder(text: str) -> str:
    """A path that the system can take."""
    longest = max(len(os.fsencode(part)) for part in text.split(os.sep))
    if not text or "\0" in text or longest > 255 or len(os.fsencode(text)) > NAME:
        raise ValueError(
            f"{shown(text, 40)!r} is no path: it is empty, has a zero byte, or is too long. Write "
            "one such as runs/first."
        )
    return text


def _kind(metavar: str, read: Callable[[str], Any]) -> Any:
    """How an option's value is read and what stands for it in the help."""
    # One argument, read by our own function, so that every complaint says what to write; Tyro's own
    # say what type was expected.
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda texts: read(texts[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )


# The help text of an option without a fixed default says itself what happens without it.
_unhinted = tyro.conf.arg(help_behavior_hint="")
Text = Annotated[str, _kind("NAME", _text)]
Folder = Annotated[str, _kind("DIR", _folder)]
Count = Annotated[int, _kind("N", _upto(2**20))]
Multiple = Annotated[int, _kind("N", _upto(1024))]
MaybeMultiple = Annotated[int | None, _kind("N", _upto(1024)), _unhinted]
Seed = Annotated[int, _kind("N", _seed)]
MaybeText = Annotated[str | None, _kind("NAME", _text), _unhinted]
MaybeFolder = Annotated[str | None, _kind("DIR", _folder), _unhinted]
MaybeCount = Annotated[int | None, _kind("N", _upto(2**20)), _unhinted]
MaybeSteps = Annotated[int | None, _kind("N", _upto(2**31 - 1)), _unhinted]
MaybeFraction = Annotated[float | None, _kind("FRACTION", _fraction), _unhinted]
MaybeNumber = Annotated[float | None, _kind("NUMBER", _positive), _unhinted]
Share = Annotated[float, _kind("FRACTION", _share)]
Names = Annotated[tuple[str, ...], _kind("NAMES", _names), _unhinted]
Fractions = Annotated[tuple[float, ...], _kind("FRACTIONS", _fractions), _unhinted]
Seeds = Annotated[tuple[int, ...], _kind("SEEDS", _seeds), _unhinted]
Counts = Annotated[tuple[int, ...], _kind("COUNTS", _counts)]
Settings = Annotated[tuple[str, ...], _kind("NAME=VALUE", _names), _unhinted]
Flag = Annotated[bool, _unhinted]


@dataclasses.dataclass(frozen=True)
class Prune:
    """Train a net, prune it, fine-tune, slim, measure, export, report.

    Running the same command again goes on where it stopped. Write exactly one of --macs, --params,
    --density, --latency, --energy and --bytes.
    """

    model: Text
    """Net: a name of the zoo, such as resnet8, or module:callable of your own."""
    data: Text
    """Data set: digits, mnist, fashion_mnist, cifar10 or cifar100, or of your own: npz:FILE,
    folder:DIR (a folder a class), tfds:NAME (prepared by TFDS) or module:callable."""
    method: Text
    """How units are chosen; `jprune methods` lists the names."""
    macs: MaybeFraction = None
    """Fraction of the multiply-accumulates to keep, in (0, 1]."""
    params: MaybeFraction = None
    """Fraction of the parameters to keep, in (0, 1]."""
    density: MaybeFraction = None
    """Fraction of the units to keep, in (0, 1]."""
    latency: MaybeFraction = None
    """Fraction of the time of a call to keep, in (0, 1]; the device is measured first."""
    energy: MaybeFraction = None
    """Fraction of the energy to keep, by a model of an accelerator, in (0, 1]."""
    bytes: MaybeFraction = None
    """Fraction of the bytes to keep that layers move, weights and activations, in (0, 1]."""
    target: Text = "xla"
    """Runtime whose time --latency means: xla (batch 128) or tflite (batch 1)."""
    out: MaybeFolder = None
    """Directory for everything the run leaves. Default: runs/MODEL-DATA-METHOD-BUDGET-SEED."""
    seed: Seed = 0
    """Of initial values, order of the data and draws."""
    epochs: MaybeNumber = None
    """Passes over the training images for the dense net. Default: by data set."""
    finetune_epochs: MaybeNumber = None
    """Passes over the training images after pruning. Default: by data set."""
    batch_size: MaybeCount = None
    """Images in a training step. Default: by data set."""
    learning_rate: MaybeNumber = None
    """Peak learning rate of the dense net, per step. Default: by net."""
    finetune_learning_rate: MaybeNumber = None
    """Peak learning rate of fine-tuning, per step. Default: by net."""
    optimizer: Text = "sgd"
    """Of all trainings: sgd, adam, adamw, lion, lamb, or module:callable (an optax one)."""
    optimizer_options: Settings = ()
    """Its settings, such as momentum=0.8 or b1=0.95,weight_decay=0.01."""
    rate_schedule: Text = "one_cycle"
    """Of the learning rate: one_cycle, cosine, constant or step."""
    warmup: Share = 0.0
    """Fraction of the steps in which the learning rate rises first; one_cycle needs none."""
    clip: MaybeNumber = None
    """Largest norm of the gradient; longer ones are shortened. Default: any."""
    ema: MaybeNumber = None
    """Decay of an average of the weights, which is what is kept, such as 0.999. Default: none."""
    accumulate: Count = 1
    """Parts in which a batch goes through the net, to take less memory."""
    schedule: MaybeText = None
    """Pruning in one_shot, or in rounds: iterative or cubic. Default: the method's."""
    rounds: MaybeCount = None
    """Number of rounds of iterative and cubic. Default: the method's."""
    allocator: MaybeText = None
    """Budget spread over layers: uniform or global_topk. Default: the method's."""
    set: Settings = ()
    """Other options of the method, such as rounds=3,recalibrate=50."""
    freeze: Names = ()
    """Groups that stay whole, by names or patterns: params/conv1/*,params/fc/*."""
    distill: Share = 0.0
    """Weight of the dense net's outputs in the loss of fine-tuning; 0: labels alone."""
    multiple_of: MaybeMultiple = None
    """Kept units of a layer are a multiple of this; 8 is faster on CPUs, under XLA. Default: 1;
    with --latency, what was measured to be fast."""
    min_units: Count = 1
    """Units that every layer keeps at least."""
    dtype: Text = "float32"
    """Type to compute in, float32 or bfloat16; weights are float32 with both."""
    weights: MaybeText = None
    """Trained net instead of training one: a file (PyTorch, Flax, Keras ...), pretrained, own."""
    steps: MaybeSteps = None
    """Stop every training after so many steps; for trying out."""
    execute: Text = "dense"
    """How the pruned net is run: dense, or sparse: single weights, where it pays (needs numba)."""
    data_dir: MaybeFolder = None
    """Folder of prepared data. Default: $JPRUNE_DATA, else ~/.cache/jprune/data."""
    data_options: Settings = ()
    """Of your own data: size=32:32,channels=3,mean=0.5,std=0.25,shift=4,validation=0.1,test=0.1."""
    overwrite: Flag = False
    """Start anew if the directory holds another run."""
    json: Flag = False
    """Print result.json on standard output."""
    quiet: Flag = False
    """Show no progress and no summary."""
    log_level: Level = "warning"
    """Least severe messages to show."""


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Show what of a net can be pruned, and what not and why."""

    model: Text
    """Net: a name of the zoo, such as resnet8, or module:callable of your own."""
    data: Text = "cifar10"
    """Data set whose images and classes the net is built for; of your own: npz:FILE and others."""
    data_options: Settings = ()
    """Of your own data: size=32:32,channels=3,mean=0.5,std=0.25,shift=4,validation=0.1,test=0.1."""
    json: Flag = False
    """Print JSON."""
    log_level: Level = "warning"
    """Least severe messages to show."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Write report.html and report.png of a finished run anew."""

    directory: tyro.conf.Positional[Folder]
    """The --out of the run."""
    json: Flag = False
    """Print JSON."""
    quiet: Flag = False
    """Do not print the path of the report."""
    log_level: Level = "warning"
    """Least severe messages to show."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Write the slim net of a finished run as .stablehlo and .tflite anew."""

    directory: tyro.conf.Positional[Folder]
    """The --out of the run."""
    to: Annotated[str | None, _kind("FILE", _folder), _unhinted] = None
    """One file, .stablehlo or .tflite. Default: both, in the directory of the run."""
    model: MaybeText = None
    """module:callable of the run's net. Default: the program that the run has written."""
    json: Flag = False
    """Print JSON."""
    quiet: Flag = False
    """Do not print the paths of the files."""
    log_level: Level = "warning"
    """Least severe messages to show."""


@dataclasses.dataclass(frozen=True)
class Check:
    """Say which files of a run are whole.

    Files are compared with the digests that were written with them; nothing is changed. Exit code 1
    if one is missing or damaged; running the command of the run again then makes it again.
    """

    directory: tyro.conf.Positional[Folder]
    """The --out of the run, finished or not."""
    json: Flag = False
    """Print JSON."""
    quiet: Flag = False
    """Print no table; the exit code and the error line say it."""
    log_level: Level = "warning"
    """Least severe messages to show."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare methods: finished runs, or runs that it does.

    Directories of finished runs (the --out of prune) and folders of rows, such as
    experiments/results/first_comparison, are compared as they are. With --model lenet5 --data mnist
    --methods l2,taylor --macs 0.5,0.25, methods x budgets x seeds are run first, with random, L1
    and the small net from scratch beside them. The same command goes on where it stopped.
    """

    rows: Annotated[tyro.conf.Positional[tuple[Folder, ...]], _unhinted] = ()
    """Directories of finished runs, files of rows (.jsonl), or folders with such."""
    metric: Text = "accuracy"
    """What methods are ranked by: accuracy, loss, before, prune_s, tflite_b1 ..."""
    model: MaybeText = None
    """Net to run: a name of the zoo, or module:callable of your own."""
    data: MaybeText = None
    """Data set: digits, mnist, fashion_mnist, cifar10 or cifar100, or of your own; as in prune."""
    methods: Names = ()
    """Methods, such as l2,taylor; random, l1, scratch_e and scratch_b are added."""
    set: Settings = ()
    """Options of methods, such as taylor.rounds=3,l2.allocator=uniform."""
    macs: Fractions = ()
    """Fractions of the multiply-accumulates to keep, such as 0.5,0.25."""
    params: Fractions = ()
    """Fractions of the parameters to keep."""
    density: Fractions = ()
    """Fractions of the units to keep."""
    seeds: Seeds = (0, 1, 2)
    """Default: 0,1,2. Fewer than three are labelled."""
    out: MaybeFolder = None
    """Directory for the comparison and its runs. Default: runs/compare-MODEL-DATA."""
    epochs: MaybeNumber = None
    """Passes over the training images for the dense net. Default: by data set."""
    finetune_epochs: MaybeNumber = None
    """Passes over the training images after pruning. Default: by data set."""
    batch_size: MaybeCount = None
    """Images in a training step. Default: by data set."""
    learning_rate: MaybeNumber = None
    """Peak learning rate of the dense net, per step. Default: by net."""
    finetune_learning_rate: MaybeNumber = None
    """The same for fine-tuning. Default: the best of three with L1, by validation."""
    optimizer: Text = "sgd"
    """Of all trainings: sgd, adam, adamw, lion, lamb, or module:callable (an optax one)."""
    optimizer_options: Settings = ()
    """Its settings, such as momentum=0.8 or b1=0.95,weight_decay=0.01."""
    rate_schedule: Text = "one_cycle"
    """Of the learning rate: one_cycle, cosine, constant or step."""
    warmup: Share = 0.0
    """Fraction of the steps in which the learning rate rises first; one_cycle needs none."""
    clip: MaybeNumber = None
    """Largest norm of the gradient; longer ones are shortened. Default: any."""
    ema: MaybeNumber = None
    """Decay of an average of the weights, which is what is kept, such as 0.999. Default: none."""
    accumulate: Count = 1
    """Parts in which a batch goes through the net, to take less memory."""
    freeze: Names = ()
    """Groups that stay whole, by names or patterns: params/conv1/*,params/fc/*."""
    distill: Share = 0.0
    """Weight of the dense net's outputs in the loss of fine-tuning; 0: labels alone."""
    multiple_of: Multiple = 1
    """Kept units of a layer are a multiple of this; 8 is faster on CPUs, under XLA."""
    min_units: Count = 1
    """Units that every layer keeps at least."""
    weights: MaybeText = None
    """Trained net instead of training one: a file (PyTorch, Flax, Keras ...), pretrained, own."""
    steps: MaybeSteps = None
    """Stop every training after so many steps; for trying out."""
    data_dir: MaybeFolder = None
    """Folder of prepared data. Default: $JPRUNE_DATA, else ~/.cache/jprune/data."""
    data_options: Settings = ()
    """Of your own data: size=32:32,channels=3,mean=0.5,std=0.25,shift=4,validation=0.1,test=0.1."""
    json: Flag = False
    """Print comparison.json on standard output."""
    quiet: Flag = False
    """Show no progress and no table."""
    log_level: Level = "warning"
    """Least severe messages to show."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """Time two nets in turns, and print the ratio of their times.

    Each is a folder of a finished run, a .stablehlo or a .tflite file. Every runtime that both have
    files for is a row; where there is none, each net is timed under its own at a batch of 1.
    """

    first: tyro.conf.Positional[Folder]
    """A net, such as runs/dense or dense.tflite."""
    second: tyro.conf.Positional[Folder]
    """Another one, whose time is divided by the first one's."""
    batches: Counts = (1, 128)
    """Images in a call under XLA. Default: 1,128."""
    threads: Counts = (1, 2)
    """Threads of TFLite, which runs single images. Default: 1,2."""
    seconds: Annotated[float, _kind("NUMBER", _positive)] = 2.0
    """Time to spend on each row, at least."""
    json: Flag = False
    """Print JSON."""
    log_level: Level = "warning"
    """Least severe messages to show."""


@dataclasses.dataclass(frozen=True)
class Methods:
    """List the methods of the survey and the baselines, or explain one.

    `jprune methods NAME` says what a method does, needs and takes, and what was measured of it.
    """

    name: Annotated[tyro.conf.Positional[MaybeText], _unhinted] = None
    """One method. Default: all of them, a line each."""
    json: Flag = False
    """Print JSON: name, refs, taxonomy, paper, file, implemented; of one, all that is known."""
    log_level: Level = "warning"
    """Least severe messages to show."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Prepare a data set once: `jprune data prepare NAME`."""

    action: tyro.conf.Positional[Literal["prepare"]]
    """What to do."""
    name: tyro.conf.Positional[Text]
    """Data set: mnist, fashion_mnist, cifar10 or cifar100."""
    source: Annotated[MaybeFolder, tyro.conf.arg(name="from")] = None
    """Folder with the files as fetched elsewhere. Default: fetch them."""
    data_dir: MaybeFolder = None
    """Folder of prepared data. Default: $JPRUNE_DATA, else ~/.cache/jprune/data."""
    json: Flag = False
    """Print JSON."""
    quiet: Flag = False
    """Do not print where the data are."""
    log_level: Level = "warning"
    """Least severe messages to show."""


VERBS: dict[str, type] = {
    "prune": Prune,
    "compare": Compare,
    "inspect": Inspect,
    "report": Report,
    "export": Export,
    "check": Check,
    "bench": Bench,
    "methods": Methods,
    "data": Data,
}
