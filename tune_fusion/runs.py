"""The folder of a search, ``STORAGE/NAME``: its name and what lies where in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tune_fusion.errors import InputError, suggest
from tune_fusion.events import Chronicle, Session
from tune_fusion.journal import Lines, read_journal
from tune_fusion.storage import pull, shown, store_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class RunFolder:
    """Paths in the folder of a search."""

    path: Path

    @property
    def name(self) -> str:
        """The search's name."""
        return self.path.name

    @property
    def journal(self) -> Path:
        """Everything that happened, line by line: the truth from which all else is rebuilt."""
        return self.path / "journal.jsonl"

    @property
    def space(self) -> Path:
        """The space file as run."""
        return self.path / "space.yaml"

    @property
    def layers(self) -> Path:
        """The model's layer map."""
        return self.path / "layers.json"

    @property
    def result(self) -> Path:
        """The result."""
        return self.path / "result.json"

    @property
    def trials(self) -> Path:
        """One row a trial."""
        return self.path / "trials.csv"

    @property
    def confirmation(self) -> RunFolder:
        """The folder of the search's confirmation: a run folder of its own."""
        return RunFolder(self.path / "confirmation")

    @property
    def answer(self) -> Path:
        """What a confirmation found; in its own folder."""
        return self.path / "confirmation.json"

    @property
    def report(self) -> Path:
        """The report page; its pictures are in `figures`."""
        return self.path / "report.html"

    @property
    def figures(self) -> Path:
        """The report's pictures."""
        return self.path / "figures"

    @property
    def logs(self) -> Path:
        """Lines for people, and tracebacks."""
        return self.path / "logs"

    @property
    def model(self) -> Path:
        """The best trial's model."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """The newest checkpoints of trials that have not ended, one folder a trial."""
        return self.path / "checkpoints"

    @property
    def reserve(self) -> Path:
        """Kept while the search runs, so that one that fills its disk can still write how far it came."""
        return self.path / ".reserve"

    def checkpoint_folder(self, trial: int) -> Path:
        """The checkpoints of one trial."""
        return self.checkpoints / f"{trial:04d}"

    def weights(self, trial: int) -> Path:
        """The weights of a trial's best epoch."""
        return self.path / "weights" / f"{trial:04d}.safetensors"

    def trial_log(self, trial: int) -> Path:
        """The traceback of a trial that failed."""
        return self.logs / f"trial-{trial:04d}.txt"


@dataclass(frozen=True)
class Past:
    """A search that has been started before, as its journal tells it."""

    folder: RunFolder
    lines: Lines
    chronicle: Chronicle

    @property
    def session(self) -> Session:
        """The newest session."""
        return self.chronicle.sessions[-1]

    @property
    def complete(self) -> bool:
        """True where the search was ended as completed."""
        return self.chronicle.status == "completed"


def run_folder(storage: Path, name: str, option: str) -> RunFolder:
    """The folder of the search `name`; InputError, starting with `option`, for a name that is none."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{option} {name!r}: a name starts with a letter or digit and has letters, digits, '.', '_' and "
            "'-' only, at most 128 of them"
        )
    return RunFolder(storage.expanduser().resolve() / name)


def find_run(storage: Path, name: str, option: str) -> RunFolder:
    """The folder of a search that exists; InputError, starting with `option`, where there is none."""
    folder = run_folder(storage, name, option)
    pull(folder.path)
    if not folder.journal.is_file():
        known = _known(folder.path.parent)
        hint = suggest(name, known) if known else "--storage says where searches are kept"
        if folder.path.exists():
            raise InputError(
                f"{option} {name}: {folder.path} has no {folder.journal.name}, from which a search goes on; "
                "without it that folder can only be deleted or renamed"
            )
        raise InputError(f"{option} {name}: {shown(folder.path.parent)} holds no search of that name; {hint}")
    return folder


def _known(storage: Path) -> list[str]:
    """The names of the searches in a storage, as far as it can be read."""
    found = store_of(storage)
    try:
        if found is not None:
            return found[0].names()
        return sorted(path.parent.name for path in storage.glob("[!.]*/journal.jsonl"))
    except OSError:
        return []


def read_past(folder: RunFolder) -> Past:
    """What the journal of a search tells; InputError where it is damaged or empty."""
    lines = read_journal(folder.journal)
    if not lines.events:
        raise InputError(f"{folder.journal}: is empty: the search never began; remove {folder.path}")
    try:
        return Past(folder, lines, Chronicle.replay(lines.events))
    except ValueError as error:
        raise InputError(f"{folder.journal}: {error}") from error
