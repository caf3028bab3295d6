"""What is compared: samplers and schedulers by name, some of which only replays have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tune_fusion.records import TrialRecord, TrialState
from tune_fusion.replay.gp import ModelStudy
from tune_fusion.replay.pausing import AllThenBest, Pasha
from tune_fusion.replay.simulation import UNLIMITED, Trace, replay
from tune_fusion.replay.table import Table
from tune_fusion.space.configuration import Configuration, OptimizerChoice
from tune_fusion.space.domain import largest
from tune_fusion.space.sampling import default_parameters, draw, parameters_of
from tune_fusion.space.schema import SearchSpace
from tune_fusion.space.vocabulary import Vocabulary
from tune_fusion.tuning.arms import SearchArm, make_arms
from tune_fusion.tuning.study import Repeating, Study, Suggestion

PAPER_PAIRS = (("sgd", "adam"), ("adam", "sgd"), ("adamw", "sgd"), ("radam", "sgd"), ("nadam", "sgd"))
"""Low and high optimizer in Kim & Moon 2025, Tables 2 and 3."""

_OTHERS: dict[str, Callable[[SearchSpace, int], Any]] = {
    "pasha": lambda space, epochs: Pasha(space.asha, epochs, space.rung_direction),
    "one-then-best": lambda space, epochs: AllThenBest(1, 20, 2, space.rung_direction),
    "three-then-best": lambda space, epochs: AllThenBest(3, 20, 2, space.rung_direction),
}
REPLAY_ONLY = {"scheduler": tuple(_OTHERS), "sampler": ("gp",)}
"""What no real search has, by the setting that names it."""


@dataclass(frozen=True)
class Contender:
    """One way to search."""

    name: str
    search: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `SearchSettings` that differ from the table's space."""
    asha: Mapping[str, Any] = field(default_factory=dict)
    """The same for `AshaSettings`."""
    habit: bool = False
    """Tell the study of stopped trials as complete, as Ray's OptunaSearch does."""
    papers: bool = False
    """Begin with the papers' pairs, untuned."""
    trials: int = UNLIMITED
    """Of the whole search."""

    def run(self, table: Table, vocabulary: Vocabulary, slots: int, budget: int, seed: int) -> Trace:
        """Search the table once."""
        scheduler = self.search.get("scheduler", table.space.search.scheduler)
        model = self.search.get("sampler") == "gp"
        other = _OTHERS.get(scheduler)
        search = {**self.search, "seed": seed} | ({"scheduler": "none"} if other else {})
        search |= {"sampler": "random"} if model else {}
        space = replace(
            table.space,
            search=table.space.search.model_copy(update=search),
            asha=table.space.asha.model_copy(update=dict(self.asha)),
        )

        def make(space: SearchSpace) -> Sequence[SearchArm]:
            arms = make_arms(space)
            for arm in arms:
                if model:
                    arm.study = ModelStudy(space, arm.name, space.direction)
                if self.habit:
                    arm.study = RaysHabit(space, arm.name, space.direction)
                if self.papers and arm.name == "fusion":
                    arm.study = Study(space, arm.name, space.direction, first=papers_first(space))
                if other:
                    arm.scheduler = other(space, space.max_epochs)
            return arms

        return replay(table, space, vocabulary, slots, budget, trials=self.trials, make=make)


class RaysHabit(Study):
    """Takes what a stopped trial had reached for a result like any other."""

    def tell(self, suggestion: Suggestion, record: TrialRecord, value: float | None, metric: str) -> None:
        """As `Study.tell`; a stopped trial is told as completed."""
        if record.state is TrialState.STOPPED:
            record = replace(record, state=TrialState.COMPLETED)
        super().tell(suggestion, record, value, metric)


def paper_pairs(space: SearchSpace) -> Iterator[Configuration]:
    """The papers' pairs that a space has, untuned, at its middle and its last switch layer."""
    default = draw(space, "fusion", Repeating(default_parameters(space, "fusion")[0]))
    switches = (default.switch_layer, int(largest(space.switch_layer)))

    def untuned(name: str) -> OptimizerChoice:
        return OptimizerChoice(name, {key: space.defaults[name][key] for key in space.optimizers[name]})

    for low, high in PAPER_PAIRS:
        if low in space.low and high in space.high:
            for switch in switches:
                yield Configuration(switch, untuned(low), untuned(high), default.training)


def papers_first(space: SearchSpace) -> list[dict[str, Any]]:
    """The untuned default, then the papers' pairs, as the answers that make `draw` give them."""
    answers = default_parameters(space, "fusion")
    answers += [parameters_of(space, "fusion", one) for one in paper_pairs(space)]
    return [one for index, one in enumerate(answers) if one not in answers[:index]]
