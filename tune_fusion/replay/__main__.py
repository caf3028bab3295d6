"""``python -m tune_fusion.replay``: search a table of recorded trials many times, in seconds."""

from __future__ import annotations

from collections.abc import Sequence
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
    from tune_fusion.space.settings import AshaSettings, SearchSettings

    search = {
        name: _known(name, getattr(options, name), SearchSettings)
        for name in ("sampler", "scheduler", "defaults", "stop")
    }
    asha = {
        "grace_epochs": options.grace_epochs,
        "reduction_factor": options.reduction_factor,
        "compare": _known("compare", options.compare, AshaSettings),
    }
    table = table_of(options.table)
    contender = Contender("", search, asha)
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
        "--sampler", default="tpe", metavar="NAME", help="search.sampler, or gp (%(default)s)"
    )
    parser.add_argument(
        "--scheduler",
        default="promotion",
        metavar="NAME",
        help="search.scheduler, or pasha, one-then-best, three-then-best (%(default)s)",
    )
    parser.add_argument("--defaults", default="judged", metavar="WORD", help="search.defaults (%(default)s)")
    parser.add_argument("--stop", default="never", metavar="WORD", help="search.stop (%(default)s)")
    parser.add_argument("--compare", default="val_loss", metavar="WORD", help="asha.compare (%(default)s)")
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
        default=15,
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
        "--epochs", type=commands.natural, default=300, metavar="N", help="of each search (%(default)s)"
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
        f"goal       median {median:.0f} epochs until what is returned is as good (quartiles {first:.0f} to "
        f"{third:.0f}, 95 % of the median {low:.0f} to {high:.0f}); {never} of "
        f"{len(found.hits)} searches never",
        "regret     " + ", ".join(f"{found.mean_regret(e):.4f} after {e}" for e in shown) + " epochs (mean)",
        f"spent      median {sorted(found.spent)[len(found.spent) // 2]:.0f} epochs in "
        f"{sorted(found.elapsed)[len(found.elapsed) // 2]:.0f} epochs' time",
    ]


if __name__ == "__main__":
    commands.run(_COMMAND, main)
