"""Reads a document into a SearchSpace and notes every mistake on the way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tune_fusion.errors import suggest
from tune_fusion.space import rules
from tune_fusion.space.configuration import ALL
from tune_fusion.space.document import Document, Problems
from tune_fusion.space.domain import (
    Constant,
    Domain,
    DomainError,
    FloatRange,
    extremes,
    parse_choice,
    parse_domain,
    shown,
    written,
)
from tune_fusion.space.schema import SearchSpace
from tune_fusion.space.settings import (
    AshaSettings,
    DataSettings,
    ModelSettings,
    ResourceSettings,
    SearchSettings,
    Section,
    TrainingSettings,
)
from tune_fusion.space.vocabulary import Vocabulary

_SECTIONS = ("model", "data", "training", "space", "search", "asha", "resources")
_SPACE_KEYS = ("switch_layer", "low", "high", "optimizers", "controls")
_LISTS = ("low", "high", "controls")
_FOLDER = "folder:"

S = TypeVar("S", bound=Section)


class SpaceReader:
    """Turns one document into a space; every part notes its mistakes and hands on what it could read."""

    def __init__(self, document: Document, vocabulary: Vocabulary) -> None:
        self._document = document
        self._vocabulary = vocabulary
        self._problems = Problems(document.places)
        self._root = document.plain()

    def read(self, source: str) -> SearchSpace:
        """The space; raises one InputError with every mistake found."""
        self._known_keys("", self._root, _SECTIONS)
        model = self._settings("model", ModelSettings)
        data = self._settings("data", DataSettings)
        self._data_set()
        search = self._settings("search", SearchSettings)
        asha = self._settings("asha", AshaSettings)
        resources = self._settings("resources", ResourceSettings)
        training = self._training()
        space = self._section("space", required=True)
        self._known_keys("space", space, _SPACE_KEYS)
        switch = self._switch(space)
        lists = self._lists(space, single=switch == Constant(ALL))
        optimizers = self._optimizers(
            space, dict.fromkeys(name for names in lists.values() for name in names)
        )
        if search.sampler == "grid":
            self._refuse_continuous(training, optimizers)
        self._problems.report()
        return SearchSpace(
            name=Path(source).stem,
            source=source,
            description=describe_text(self._document.text),
            model=model,
            data=data,
            search=search,
            asha=asha,
            resources=resources,
            training=training,
            switch_layer=switch,
            low=lists["low"],
            high=lists["high"],
            controls=lists["controls"],
            optimizers=optimizers,
            defaults={
                name: {
                    key: words.default
                    for key, words in self._vocabulary.optimizers[name].hyperparameters.items()
                }
                for name in optimizers
            },
            text=self._document.text,
            places=self._document.places,
        )

    def _known_keys(self, section: str, content: Mapping[Any, object], known: Iterable[str]) -> None:
        for key in content:
            if key not in known:
                path = f"{section}.{key}" if section else str(key)
                self._problems.note(path, f"unknown key {str(key)!r}; {suggest(str(key), known)}")

    def _section(self, name: str, *, required: bool = False) -> dict[Any, Any]:
        content = self._root.get(name)
        if isinstance(content, dict) and (content or not required):
            return content
        if content is not None and not isinstance(content, dict):
            self._problems.note(name, f"needs a section (KEY: VALUE), got {shown(content)}")
        elif required:
            self._problems.note(name, f"the section {name!r} is missing")
        return {}

    def _settings(self, name: str, kind: type[S]) -> S:
        """The section's settings; after a mistake an unchecked stand-in, so that reading can go on."""
        required = any(field.is_required() for field in kind.model_fields.values())
        content = self._section(name, required=required)
        if required and not content:
            return kind.model_construct()
        self._known_keys(name, content, kind.model_fields)
        known = {key: value for key, value in content.items() if key in kind.model_fields}
        mistakes = dict(rules.violations(kind, known))
        mistakes |= {
            key: f"numbers must be finite, got {shown(v)}" for key, v in known.items() if not _finite(v)
        }
        for key, message in mistakes.items():
            self._problems.note(f"{name}.{key}", message)
        return kind.model_construct(**known) if mistakes else kind.model_validate(known)

    def _data_set(self) -> None:
        name = self._section("data").get("name")
        if not isinstance(name, str):
            return
        if name.startswith(_FOLDER):
            if name == _FOLDER:
                self._problems.note("data.name", "folder: needs a path behind it, such as folder:my/images")
        elif name not in self._vocabulary.data_sets:
            known = dict.fromkeys([*self._vocabulary.data_sets, f"{_FOLDER}PATH"])
            self._problems.note("data.name", f"unknown data set {name!r}; {suggest(name, known)}")

    def _training(self) -> dict[str, Domain]:
        content = self._section("training")
        self._known_keys("training", content, TrainingSettings.model_fields)
        domains: dict[str, Domain] = {}
        for key, default in TrainingSettings().model_dump().items():
            domains[key] = Constant(default)
            if key in content:
                domain = self._domain(f"training.{key}", content[key])
                if domain and self._obeys_training(key, domain):
                    domains[key] = domain
        return domains

    def _obeys_training(self, key: str, domain: Domain) -> bool:
        refused = [value for value in extremes(domain) if not rules.accepts(TrainingSettings, key, value)]
        for value in refused[:1]:
            message = rules.violation(TrainingSettings, key, value, _inside(domain))
            self._problems.note(f"training.{key}", message)
        return not refused

    def _domain(self, path: str, content: object) -> Domain | None:
        try:
            return parse_domain(content)
        except DomainError as error:
            self._problems.note(path, str(error))
            return None

    def _switch(self, space: Mapping[str, object]) -> Domain:
        """The domain of the switch layer; after a mistake a stand-in."""
        path = "space.switch_layer"
        if space.get("switch_layer") is None:
            if space:
                self._problems.note(
                    path, "is missing; give a layer's index or name, a list, {int: [0, 6]} or all"
                )
            return Constant(0)
        content = space["switch_layer"]
        try:
            domain = parse_choice(content) if isinstance(content, list) else parse_domain(content)
        except DomainError as error:
            self._problems.note(path, str(error))
            return Constant(0)
        wrong = [v for v in extremes(domain) if isinstance(v, bool) or not isinstance(v, int | str)]
        wrong += [v for v in extremes(domain) if isinstance(v, int) and v < 0]
        if wrong or isinstance(domain, FloatRange):
            shape = "needs layer indices from 0, layer names or all"
            self._problems.note(path, f"{shape}, got {shown(content)}")
            return Constant(0)
        values = extremes(domain)
        return Constant(values[0]) if len(values) == 1 else domain

    def _lists(self, space: Mapping[str, object], *, single: bool) -> dict[str, tuple[str, ...]]:
        lists = {key: self._names(f"space.{key}", space.get(key)) for key in _LISTS}
        if space and not lists["low"] and space.get("low") is None:
            self._problems.note("space.low", "is missing; give the optimizers of the low-level layers")
        if single and space.get("high") is not None:
            self._problems.note(
                "space.high",
                "must be absent (null): switch_layer is all, so one optimizer trains every layer",
            )
        if space and not single and space.get("high") is None:
            self._problems.note("space.high", "is missing; give the optimizers of the high-level layers")
        return lists

    def _names(self, path: str, content: object) -> tuple[str, ...]:
        if content is None:
            return ()
        names = content if isinstance(content, list) else [content]
        if not names and path != "space.controls":
            self._problems.note(path, "needs at least one optimizer, got []")
        known = self._vocabulary.optimizers
        good: list[str] = []
        for index, name in enumerate(names):
            item = f"{path}[{index}]" if isinstance(content, list) else path
            if not isinstance(name, str):
                self._problems.note(item, f"needs the name of an optimizer, got {shown(name)}")
            elif name not in known:
                self._problems.note(item, f"unknown optimizer {name!r}; {suggest(name, known)}")
            elif name in good:
                self._problems.note(item, f"{name!r} stands twice in {shown(names)}")
            else:
                good.append(name)
        return tuple(good)

    def _optimizers(self, space: Mapping[str, Any], named: Iterable[str]) -> dict[str, dict[str, Domain]]:
        entries = space.get("optimizers")
        if entries is None:
            entries = {}
        if not isinstance(entries, dict):
            self._problems.note("space.optimizers", f"needs a section (NAME: {{...}}), got {shown(entries)}")
            entries = {}
        named = list(named)
        self._unnamed([key for key in entries if key not in named])
        read = {}
        for name in dict.fromkeys((*named, *entries)):
            if name not in self._vocabulary.optimizers:
                continue
            ranges = entries.get(name, self._vocabulary.optimizers[name].search)
            domains = self._hyperparameters(name, ranges)
            if name in named:
                read[name] = domains
        return read

    def _unnamed(self, names: list[Any]) -> None:
        """Entries of optimizers that no list names: mistakes, unless ``--set`` shortened a list.

        In that case they leave the file as run.
        """
        places = self._document.places
        shortened = places.touched(*(f"space.{key}" for key in _LISTS), "space.switch_layer")
        dropped = []
        for name in names:
            path = f"space.optimizers.{name}"
            if name not in self._vocabulary.optimizers:
                known = self._vocabulary.optimizers
                self._problems.note(path, f"unknown optimizer {str(name)!r}; {suggest(str(name), known)}")
            elif shortened and not places.touched(path):
                dropped.append(name)
            else:
                self._problems.note(
                    path, "is named in none of low, high and controls; add it there or take it out"
                )
        if dropped:
            self._document.remove("space.optimizers", dropped)

    def _hyperparameters(self, name: str, ranges: object) -> dict[str, Domain]:
        path = f"space.optimizers.{name}"
        if not isinstance(ranges, Mapping):
            self._problems.note(path, f"needs hyperparameters ({{lr: ...}}), got {shown(ranges)}")
            return {}
        known = self._vocabulary.optimizers[name].hyperparameters
        domains = {}
        for key, content in ranges.items():
            inner = f"{path}.{key}"
            if key not in known:
                message = f"{name} has no hyperparameter {str(key)!r}; {suggest(str(key), known)}"
                self._problems.note(inner, message)
            elif domain := self._domain(inner, content):
                refused = [value for value in extremes(domain) if not known[key].check(value)]
                if refused:
                    message = f"needs {known[key].rule}, got {shown(refused[0])}{_inside(domain)}"
                    self._problems.note(inner, message)
                domains[key] = domain
        return domains

    def _refuse_continuous(
        self, training: Mapping[str, Domain], optimizers: Mapping[str, Mapping[str, Domain]]
    ) -> None:
        for path, domain in _all_domains(training, optimizers):
            if isinstance(domain, FloatRange):
                self._problems.note(
                    path,
                    f"grid needs finite choices, got {shown(written(domain))}; "
                    "give {choice: [...]} or use the sampler tpe",
                )


def describe_text(text: str) -> str:
    """The first comment line of a space file, without its mark; empty where the file starts otherwise."""
    first = text.lstrip().partition("\n")[0]
    return first.lstrip("#").strip() if first.startswith("#") else ""


def _all_domains(
    training: Mapping[str, Domain], optimizers: Mapping[str, Mapping[str, Domain]]
) -> Iterator[tuple[str, Domain]]:
    for key, domain in training.items():
        yield f"training.{key}", domain
    for name, domains in optimizers.items():
        for key, domain in domains.items():
            yield f"space.optimizers.{name}.{key}", domain


def _inside(domain: Domain) -> str:
    return "" if isinstance(domain, Constant) else f" in {shown(written(domain))}"


def _finite(value: object) -> bool:
    if isinstance(value, list):
        return all(_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)
