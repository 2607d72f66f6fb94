"""A configuration as records: one for each group of conf/, with the type, the default and the meaning of each key.

The string under a field says what the key means; its metadata, what a value may be beyond its type
(`experiments/values.py`). Options that name a class (`_target_`) are Nodes, whose other keys that class decides.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from clusters.session import ClusterSpec
from experiments.values import meant
from systems.engines.base import DTYPES
from workloads.batches import sequences_of_ranks
from workloads.model import DECODE, REGIMES, ModelShape

Record = TypeVar("Record")
WHOLE = {"least": 1}
COUNT = {"least": 0}
PRECISION = {"one_of": tuple(DTYPES)}


class Node(dict[str, Any]):
    """A class by its name, `_target_`, with its options, and the name by which the whole was chosen."""

    @property
    def name(self) -> str:
        return self["name"]


@dataclass  # not frozen: OmegaConf could not fill one in
class Panel:
    """One sweep."""

    title: str = ""
    """What figures call it."""
    kind: str = "speedup"
    """How it is drawn: speedup, league, map, scaling, layers, load, sections, attribution or counterfactual; or
    quality: what outputs are worth is measured, and nothing is timed."""
    published: list[str] = field(default_factory=list)
    """The figures of the paper that are drawn beside it."""
    systems: list[str] = field(default_factory=list)
    """The systems that are measured at every point; `[league]`: all that declare themselves in it; none: the one of
    `system=`."""
    overrides: list[str] = field(default_factory=list)
    """`key=value` for this panel only; what is typed on the command line wins."""
    pinned: list[str] = field(default_factory=list)
    """`key=value` that win over what is typed; such a panel runs beside the others whatever the command line says."""
    engines: dict[str, str] = field(default_factory=dict)
    """Engines of some systems, by name; what is typed as `engine=` wins."""
    x: str = "model.num_experts"
    """The key that is swept."""
    values: list[Any] | None = None
    """The values of `x`; null: the one value of the configuration. A key that is typed is not swept."""
    divide_by: float | None = None
    """What `values` are divided by at this scale."""
    y: str | None = None
    """The second key that is swept, where there is one."""
    y_values: list[Any] | None = None
    """The values of `y`."""
    y_divide_by: float | None = None
    """What `y_values` are divided by at this scale."""


@dataclass(frozen=True)
class Experiment:
    """Panels with a baseline."""

    name: str = "single"
    """What it is called."""
    baseline: str = "deepspeed"
    """The system that speed-ups are over."""
    twin: str | None = None
    """The system that is measured twice in every launch; its difference from itself is the noise floor."""
    systems: list[str] | None = None
    """Replaces the systems of every panel."""
    panels: dict[str, Panel] = field(default_factory=dict)
    """One sweep each. A panel is not chosen on the command line: the `defaults` of an experiment name its panels
    (`/panel@panels.NAME: NAME`). All keys are those of one file of `conf/panel`."""


@dataclass(frozen=True)
class Tier:
    """How much is measured."""

    name: str
    """What it is called."""
    launches: int = field(metadata=WHOLE)
    """How often the processes of a point are started anew."""
    warmup: int = field(metadata=COUNT)
    """Forward passes of each system before any that counts, beside the first, which is compared with the dense
    model."""
    rounds: int = field(metadata=WHOLE)
    """Rounds in a launch. In each of them every system has a turn end to end and one in which layers are marked."""
    turn_s: float = field(metadata=COUNT)
    """Seconds of forward passes in a turn. They are spread over the round; a system that is slower has one."""
    longest_turn: int = field(metadata=WHOLE)
    """The most forward passes of a turn."""


@dataclass(frozen=True)
class Scale:
    """The size of the model and of the batch."""

    name: str
    """What it is called."""
    d_model: int
    """Width of a token."""
    d_ff: int
    """Width of an expert's hidden layer."""
    d_kv: int
    """Width of an attention head."""
    num_heads: int
    """Attention heads."""
    num_blocks: int
    """Blocks of the encoder."""
    vocab_size: int
    """Different tokens."""
    batch_size: int = field(metadata=WHOLE)
    """Sequences of each rank where no panel sweeps them."""
    batch_divisor: int = field(default=1, metadata=WHOLE)
    """What the paper's batch sizes are divided by."""
    hidden_as_run: int | None = None
    """Hidden units that the authors of MoEShard sharded; null: all."""
    learned: list[str] = field(default_factory=list)
    """What a learned router takes at this scale."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a launch measures its systems on."""

    model: ModelShape
    """The encoder around the MoE layers."""
    router: Node
    """Which expert each token goes to. [Routers](../routers.md) shows each with its use."""
    corpus: Node
    """The text that tokens come from."""
    cluster: ClusterSpec
    """What plays the ranks. [Emulation](../emulation.md) and [simulation](../simulated.md) need no GPU."""
    device: Node
    """The description that simulated ranks are priced on. [Devices](../devices.md) says where its numbers come from."""
    network: Node
    """How long collectives take beside emulated ranks. [Emulation](../emulation.md) has the formula."""
    tier: Tier
    """How much is measured."""
    batch_size: int = field(metadata=WHOLE)
    """Sequences of each rank."""
    batch_shares: list[float] | None = None
    """What part of `batch_size` each rank has, rounded, one sequence at least: numbers above 0 and up to 1, of which
    one is 1; null: all have `batch_size`."""
    seq_len: int = field(default=120, metadata=WHOLE)
    """Tokens of a sequence."""
    regime: str | None = field(default=None, metadata={"one_of": REGIMES})
    """What is timed: `encode`, `prefill` or `decode`; null: what the model does first. `decode` is of the last of
    `seq_len` tokens, where a KV cache has the others."""
    precision: str = field(default="fp32", metadata=PRECISION)
    """In what numbers are multiplied: `fp32`, `tf32`, `bf16` or `fp16`."""
    seed: int = field(default=0, metadata=COUNT)
    """What tokens, routing, weights and the order of launches are drawn from."""

    @property
    def sequences_G(self) -> list[int]:
        """Sequences of each rank."""
        return sequences_of_ranks(self.batch_size, self.batch_shares, self.cluster.world_size)

    @property
    def tokens_G(self) -> list[int]:
        """Tokens that each rank brings to an MoE layer in one pass."""
        places = 1 if self.model.regime(self.regime) == DECODE else self.seq_len
        return [sequences * places for sequences in self.sequences_G]

    @property
    def is_simulated(self) -> bool:
        return self.cluster.kind == "simulated"


@dataclass(frozen=True, kw_only=True)
class Config(Workload):
    """A workload, a system, and how results are called, drawn and kept, which changes no number."""

    system: Node
    """The MoE layer that is measured. `system=NAME` chooses it, and a panel may name several. [Each has a
    card](../systems/README.md)."""
    engine: str | None = None
    """What computes the experts: `auto`, `loop`, `grouped`, `cpu`, `triton` or `megablocks`; null leaves it to the
    system."""
    scale: Scale
    """The size of the model and of the batch."""
    experiment: Experiment = field(default_factory=Experiment)
    """What is swept. An experiment is a list of panels with a baseline; `experiment=NAME` measures all of them."""
    logger: Node = field(default_factory=Node)
    """Who else is told of the results, which are files in any case."""
    out: str = "results"
    """The folder of the campaign: raw rows, tables and figures."""

    @property
    def workload(self) -> Workload:
        """The workload alone."""
        return Workload(**{one.name: getattr(self, one.name) for one in fields(Workload)})


@dataclass(frozen=True)
class Member:
    """A cell of a launch: its system, what computes the experts, and whether it is the second half of an A/A pair."""

    system: Node
    engine: str
    twin: bool = False


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What the ranks of a launch are told, as JSON; number: which repetition it is; parent: the process to follow."""

    workload: Workload
    cells: dict[str, Member]
    cache_dir: str
    number: int = 0
    name: str = ""
    folder: str = ""
    parent: int = 0


def read(kind: type[Record], document: Mapping[str, Any], before: str = "") -> Record:
    """A record of what JSON or a resolved configuration has; ValueError names a key that is none of its fields."""
    types = get_type_hints(kind)
    given = {name: value for name, value in document.items() if name != "_target_"}  # as older campaigns have it
    for name in given.keys() - types.keys():
        raise ValueError(f"there is no key {before + name!r}; {meant(name, list(types), 'the keys there are')}")
    return kind(**{name: _read(types[name], value, f"{before}{name}.") for name, value in given.items()})


def _read(kind: Any, value: Any, before: str) -> Any:
    if _is_record(kind):
        return read(kind, value, before)
    if kind is Node:
        return Node(value)
    if get_origin(kind) is dict and _is_record(part := get_args(kind)[1]):
        return {name: read(part, own, f"{before}{name}.") for name, own in value.items()}
    return value


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and is_dataclass(kind)


def document(record: Any) -> dict[str, Any]:
    """A record as it is stored: plain values, JSON all through."""
    return asdict(record)
