"""``python -m tune_fusion.replay``: search a table of recorded trials many times, in seconds."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from tune_fusion import commands
from tune_fusion.errors import InputError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tune_fusion.replay.judge import Verdict
    from tune_fusion.replay.table import Table

_COMMAND = "tune_fusion.replay"
_SHOWN = (10, 25, 50, 100, 150, 200, 300, 600, 1200)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    options = _parser().parse(arguments)
    from tune_fusion.replay.contenders import Contender
    from tune_fusion.replay.judge import judge, table_of
    from tune_fusion.replay.simulation import UNLIMITED
    from tune_fusion.space.settings import AshaSettings, SearchSettings

    search = {
        name: _known(name, getattr(options, name), SearchSettings)
        for name in ("sampler", "scheduler", "defaults", "stop")
    }
    if options.reduction_factor < 2:
        raise InputError(f"--reduction-factor {options.reduction_factor}: needs a whole number >= 2")
    asha = {
        "grace_epochs": options.grace_epochs,
        "reduction_factor": options.reduction_factor,
        "compare": _known("compare", options.compare, AshaSettings),
    }
    if options.slots > options.epochs:
        raise InputError(
            f"--slots {options.slots}: each would have less than one of --epochs {options.epochs}; "
            f"at most {options.epochs}"
        )
    table = table_of(options.table)
    _check(table, options)
    contender = Contender("", search, asha, trials=options.trials or UNLIMITED)
    found = judge(
        options.table, contender, options.slots, range(options.seeds), options.epochs, workers=options.workers
    )
    commands.say("\n".join(_report(table, found)))
    return 0


def _parser() -> commands.Parser:
    """Its defaults are those of a search, said once more here so that ``--help`` imports no settings."""
    parser = commands.Parser(
        prog=f"python -m {_COMMAND}",
        description="Search recorded trials: the decisions of a real search, in simulated time.",
    )
    parser.add_argument(
        "--table", type=Path, required=True, metavar="FILE", help="benchmarks/data/*.jsonl.gz"
    )
    parser.add_argument(
        "--sampler", default="tpe", metavar="NAME", help="tpe, random, grid or gp (%(default)s)"
    )
    parser.add_argument(
        "--scheduler",
        default="promotion",
        metavar="NAME",
        help="promotion, asha, hyperband, curves, none or pasha; or one-then-best or three-then-best, "
        "which have no rungs (%(default)s)",
    )
    parser.add_argument(
        "--defaults",
        default="judged",
        metavar="WORD",
        help="untuned defaults come first: judged, trained or none (%(default)s)",
    )
    parser.add_argument(
        "--stop",
        default="never",
        metavar="WORD",
        help="searches that end by themselves: never, auto (%(default)s)",
    )
    parser.add_argument(
        "--compare", default="val_loss", metavar="WORD", help="by what: val_loss, metric (%(default)s)"
    )
    parser.add_argument(
        "--grace-epochs",
        type=commands.natural,
        default=1,
        metavar="N",
        help="asha.grace_epochs (%(default)s)",
    )
    parser.add_argument(
        "--reduction-factor",
        type=commands.natural,
        default=4,
        metavar="N",
        help="asha.reduction_factor (%(default)s)",
    )
    parser.add_argument(
        "--slots", type=commands.natural, default=2, metavar="N", help="trials at once (%(default)s)"
    )
    parser.add_argument(
        "--seeds", type=commands.natural, default=100, metavar="N", help="searches (%(default)s)"
    )
    parser.add_argument(
        "--trials",
        type=commands.natural,
        metavar="N",
        help="of each search (default: as many as its epochs allow)",
    )
    parser.add_argument(
        "--epochs",
        type=commands.natural,
        default=300,
        metavar="N",
        help="of each search, all its trials together (%(default)s)",
    )
    parser.add_argument(
        "--workers", type=commands.natural, default=2, metavar="N", help="processes (%(default)s)"
    )
    return parser


def _known(name: str, value: str, settings: type[BaseModel]) -> str:
    """`value`, where a setting may have it; InputError otherwise."""
    from tune_fusion.errors import suggest
    from tune_fusion.replay.contenders import REPLAY_ONLY

    words = [*get_args(settings.model_fields[name].annotation)]
    words += REPLAY_ONLY.get(name, ())
    if value not in words:
        raise InputError(f"--{name} {value}: {suggest(value, words)}")
    return value


def _check(table: Table, options: Namespace) -> None:
    """InputError where the table does not tell how large the noise is, or lacks what was asked for."""
    from tune_fusion.space.sampling import grid_parameters

    longest = table.space.max_epochs
    if options.grace_epochs >= longest:
        raise InputError(
            f"--grace-epochs {options.grace_epochs}: the trials of --table {options.table} have {longest} "
            f"epochs; at most {longest - 1}"
        )
    try:
        _ = table.noise
        if options.sampler == "grid":
            for arm in ("fusion", "control"):
                next(grid_parameters(table.space, arm), None)
    except InputError as error:
        raise InputError(f"--table {options.table}: {error}") from error
    except ValueError as error:
        raise InputError(f"--sampler grid: {error} in the space of --table {options.table}") from error


def _report(table: Table, found: Verdict) -> list[str]:
    """What people see."""
    first, median, third = found.quartiles()
    never = int((found.hits == float("inf")).sum())
    low, high = found.median_interval()
    budget = found.regret.shape[1]
    shown = [epochs for epochs in _SHOWN if epochs < budget] + [budget]
    return [
        f"table      {len(table.runs)} configurations, {table.grid_epochs} epochs; best {table.metric} "
        f"{table.best:.4f}; noise {table.noise:.4f}: {len(table.good)} are as good",
        f"goal       after {_hit(median, budget)} epochs (median) what is returned is as good; quartiles "
        f"{_hit(first, budget)} and {_hit(third, budget)}, 95 % interval of the median "
        f"{_hit(low, budget)} to {_hit(high, budget)}; {never} of {len(found.hits)} searches never",
        "regret     " + ", ".join(f"{found.mean_regret(e):.4f} after {e}" for e in shown) + " epochs (mean)",
        f"spent      median {sorted(found.spent)[len(found.spent) // 2]:.0f} epochs in "
        f"{sorted(found.elapsed)[len(found.elapsed) // 2]:.0f} epochs' time",
    ]


def _hit(epochs: float, budget: int) -> str:
    """So many epochs; ``>budget`` where that was not enough."""
    return f"{epochs:.0f}" if isfinite(epochs) else f">{budget}"


if __name__ == "__main__":
    commands.run(_COMMAND, main)
