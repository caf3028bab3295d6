"""The memory of one arm of a search: an Optuna study that is asked for configurations and told results."""

from __future__ import annotations

import copy
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import optuna
from optuna.trial import FrozenTrial

from tune_fusion.records import TrialRecord, TrialState
from tune_fusion.space.configuration import Configuration, flat_name
from tune_fusion.space.domain import same_value
from tune_fusion.space.sampling import Arm, Scalar, default_parameters, draw, grid_parameters
from tune_fusion.space.schema import SearchSpace
from tune_fusion.tuning.tpe import TpeSampler, ended

_KNOWN = (
    optuna.trial.TrialState.COMPLETE,
    optuna.trial.TrialState.PRUNED,
    optuna.trial.TrialState.RUNNING,
)
# Ended trials from which a suggestion may be made ahead: below, it takes a few milliseconds, and one result
# more or less is a good part of all that is known.
_AHEAD_FROM = 100


@dataclass(frozen=True)
class Suggestion:
    """A configuration to try."""

    configuration: Configuration
    origin: Literal["default", "sampled"]
    parameters: dict[str, Scalar]
    """What the study was asked for, and answered."""
    seed: int | None = None
    """Of weights, order and split; None: the search's own."""


@dataclass(frozen=True)
class _Sampled(Suggestion):
    """A suggestion with the Optuna trial behind it."""

    trial: optuna.Trial = field(kw_only=True)


class Study:
    """Suggests configurations of one arm: its untuned defaults (or `first`), then what the sampler draws.

    A suggestion depends on the seed, the number of suggestions made before it and what the study was told,
    never on the process's random state, nor on when a thread had its turn: one that is made ahead knows what
    was known right after the suggestion before it, and nothing that came later.
    """

    def __init__(
        self,
        space: SearchSpace,
        arm: Arm,
        direction: Literal["max", "min"],
        *,
        first: Sequence[Mapping[str, Scalar]] | None = None,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._arm: Arm = arm
        self._asked = 0
        if first is None:
            first = [] if space.search.defaults == "none" else default_parameters(space, arm)
        self._defaults = [dict(answers) for answers in first]
        self._grid: Iterator[dict[str, Scalar]] | None = None
        self._repeated: set[str] = set()
        if space.search.sampler == "grid":
            self._defaults = []
            self._grid = iter(grid_parameters(space, arm))
        self._direction: Literal["maximize", "minimize"] = "maximize" if direction == "max" else "minimize"
        self._study = optuna.create_study(direction=self._direction)
        self._reported: dict[int, int] = {}
        """Epochs that the study was told of, by number of its trial."""
        self._seen: list[FrozenTrial] = []
        """What was known right after the newest suggestion."""
        self._ahead: Future[dict[str, Scalar]] | None = None
        """The suggestion after that, where it is being made."""
        self._thread = ThreadPoolExecutor(1, f"suggestions-{arm}")

    @property
    def left(self) -> None:
        """Nobody knows how many suggestions are left."""
        return

    def ask(self, *, ahead: bool = False) -> Suggestion | None:
        """The next configuration, or None when a grid has no more.

        With `ahead`, nobody waits for TPE to model a long history: the suggestion may have been made since
        the one before it, from what was known then, and the next is begun.
        """
        answers: dict[str, Scalar] | None = None
        origin: Literal["default", "sampled"] = "sampled"
        if self._defaults:
            answers, origin = self._defaults.pop(0), "default"
        elif self._grid is not None:
            answers = self._next_point()
            if answers is None:
                return None
        elif ahead and self._looks_ahead():
            answers = (self._ahead or self._begin()).result()
        suggestion = self._ask(answers, origin)
        if ahead and self._looks_ahead():
            self._ahead = self._begin()
        return suggestion

    def repeat(
        self,
        parameters: Mapping[str, Scalar],
        configuration: Configuration,
        origin: Literal["default", "sampled"],
    ) -> Suggestion:
        """What `ask` gave when its answers were `parameters`; the study is then as it was after that.

        It may have been another study that was asked: a default or point of the grid is then asked for no
        more. What was sampled counts as a suggestion, so that this study draws what that one has not.
        Raises ValueError where the space does not allow these answers (any more), or they would no longer
        mean what they meant in `configuration`; the study is unchanged.
        """
        drawn = draw(self._space, self._arm, Repeating(parameters))
        _check_meaning(parameters, configuration, drawn)
        if origin == "default" and dict(parameters) in self._defaults:
            self._defaults.remove(dict(parameters))
        if self._grid is not None:
            self._repeated.add(_frozen(parameters))
        return self._ask(dict(parameters), origin)

    def skip(self) -> None:
        """Count a suggestion that the space does not allow any more: it teaches nothing."""
        if self._defaults:
            self._defaults.pop(0)
        elif self._grid is not None:
            self._next_point()
        self._study.sampler = optuna.samplers.RandomSampler()
        self._asked += 1
        self._study.tell(self._study.ask(), state=optuna.trial.TrialState.FAIL)
        self._seen, self._ahead = self._known(), None

    def _next_point(self) -> dict[str, Scalar] | None:
        """The grid's next point that was not repeated; None at its end."""
        assert self._grid is not None
        return next((point for point in self._grid if _frozen(point) not in self._repeated), None)

    def _ask(self, answers: dict[str, Scalar] | None, origin: Literal["default", "sampled"]) -> Suggestion:
        """Ask for what the answers say; None: for what the sampler draws."""
        if answers is None:
            self._study.sampler = self._sampler(self._known())
        else:
            self._study.sampler = optuna.samplers.RandomSampler()
            self._study.enqueue_trial(answers)
        self._asked += 1
        trial = self._study.ask()
        configuration = draw(self._space, self._arm, trial)
        self._seen, self._ahead = self._known(), None
        return _Sampled(configuration, origin, dict(trial.params), trial=trial)

    def _known(self) -> list[FrozenTrial]:
        """The trials that a sampler learns from, as they are now: Optuna never changes one in place."""
        return [_as_known(trial) for trial in self._study.get_trials(deepcopy=False, states=_KNOWN)]

    def _looks_ahead(self) -> bool:
        """Whether the next suggestion is to be made from what was known right after the newest one."""
        return self._space.search.sampler == "tpe" and len(ended(self._seen)) >= _AHEAD_FROM

    def _begin(self) -> Future[dict[str, Scalar]]:
        """Make the next suggestion from what was known right after the newest one, on a thread."""
        return self._thread.submit(self._drawn, self._sampler(self._seen))

    def _drawn(self, sampler: optuna.samplers.BaseSampler) -> dict[str, Scalar]:
        """The answers of a study that is asked once; this one is left alone."""
        trial = optuna.create_study(sampler=sampler, direction=self._direction).ask()
        draw(self._space, self._arm, trial)
        return dict(trial.params)

    def tell(self, suggestion: Suggestion, record: TrialRecord, value: float | None, metric: str) -> None:
        """Tell how a trial ended, as what it is and at the epoch it reached.

        `value` is its best value. A stopped trial is told as pruned with the value of each epoch; a diverged
        one too, with NaN for the epoch in which it diverged, and as infeasible: TPE ranks pruned trials by
        the epoch they reached before their value, and would take a late divergence for a success. A trial
        that does not fit into memory is infeasible, too. Other failures teach nothing.
        """
        assert isinstance(suggestion, _Sampled)
        trial = suggestion.trial
        if record.state is TrialState.COMPLETED and value is not None:
            self.pause(suggestion, record, metric)
            self._study.tell(trial, value)
            return
        if record.state in (TrialState.STOPPED, TrialState.DIVERGED) or record.infeasible:
            self.pause(suggestion, record, metric)
            if record.state is not TrialState.STOPPED:
                trial.set_constraint("loss is finite, model fits", 1.0)
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return
        self._study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def pause(self, suggestion: Suggestion, record: TrialRecord, metric: str) -> None:
        """Tell each epoch of a trial; until it has ended it counts as pruned there."""
        assert isinstance(suggestion, _Sampled)
        trial = suggestion.trial
        known = self._reported.get(trial.number, 0)
        for index, metrics in enumerate(record.epochs[known:], known):
            trial.report(metrics.get(metric, math.nan), index + 1)
        self._reported[trial.number] = len(record.epochs)

    @property
    def optuna_trials(self) -> list[FrozenTrial]:
        """Everything the study was asked for and told, in order."""
        return self._study.get_trials(deepcopy=False)

    def _sampler(self, known: Sequence[FrozenTrial]) -> optuna.samplers.BaseSampler:
        """What draws the next suggestion."""
        seed = zlib.crc32(f"{self._space.search.seed}/{self._arm}/{self._asked}".encode())
        if self._space.search.sampler != "tpe":
            return optuna.samplers.RandomSampler(seed=seed)
        return TpeSampler(known, seed)


def _as_known(trial: FrozenTrial) -> FrozenTrial:
    """A trial that has no end yet but has paused teaches what it has reached."""
    if trial.state is optuna.trial.TrialState.RUNNING and trial.intermediate_values:
        trial = copy.copy(trial)
        trial.state = optuna.trial.TrialState.PRUNED
    return trial


def _frozen(parameters: Mapping[str, Scalar]) -> str:
    return json.dumps(dict(parameters), sort_keys=True)


def _check_meaning(parameters: Mapping[str, Scalar], before: Configuration, now: Configuration) -> None:
    """ValueError where an answer is not heeded any more: what was open then is another constant now."""
    flat_before, flat_now = before.flat(), now.flat()
    for name in parameters:
        key = flat_name(name)
        if not same_value(flat_before.get(key), flat_now.get(key)):
            raise ValueError(f"{name}: is {flat_now.get(key)!r} now, not {flat_before.get(key)!r}")


class Repeating:
    """A suggester that gives recorded answers, and ValueError where they do not answer what is asked."""

    def __init__(self, answers: Mapping[str, Scalar]) -> None:
        self._answers = answers

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """The number that is answered."""
        return self._within(name, low, high)

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """The whole number that is answered."""
        return int(self._within(name, low, high))

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        """The choice that is answered."""
        answer = self._answer(name)
        if not any(same_value(answer, choice) for choice in choices):
            raise ValueError(f"{name}: {answer!r} is not among the choices {list(choices)}")
        return answer

    def _within(self, name: str, low: float, high: float) -> float:
        answer = self._answer(name)
        if isinstance(answer, bool) or not isinstance(answer, int | float) or not low <= answer <= high:
            raise ValueError(f"{name}: {answer!r} is not in [{low}, {high}]")
        return answer

    def _answer(self, name: str) -> Scalar:
        if name not in self._answers:
            raise ValueError(f"{name} has no recorded value")
        return self._answers[name]
