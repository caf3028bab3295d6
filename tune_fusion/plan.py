"""``python -m tune_fusion.plan``: what a search will take, measured before it is started, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tune_fusion import commands

_COMMAND = "tune_fusion.plan"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 2 bad input, 130 interrupted."""
    parser = commands.Parser(
        prog=_COMMAND,
        description="Measure a space's own training step, and say what a search of it will take: "
        "trials at each rung, hours, memory, disk, GPU-hours.",
        allow_abbrev=False,
    )
    commands.add_space(parser)
    commands.add_concurrent(parser)
    commands.add_output(parser)
    options = parser.parse(arguments)
    commands.check_space_given(options)
    commands.say(_plan(options.space, commands.overrides(options), options.concurrent, options.storage))
    return 0


def _plan(space: str, overrides: tuple[str, ...], concurrent: int | None, storage: Path) -> str:
    from tune_fusion.tuning.interruption import Interruption

    with Interruption(_COMMAND):
        from tune_fusion.reporting.live import Waiting
        from tune_fusion.space.loading import read_document

        with Waiting("checking the space, reading the data, measuring a training step"):
            read_document(space, overrides)  # what is no space file is refused before torch is imported
            from tune_fusion.training.checks import check_space, prove
            from tune_fusion.training.workbench import pick_device
            from tune_fusion.tuning.planning import check_plan, describe_search

            checked = check_plan(check_space(space, overrides))
            return describe_search(checked, prove(checked, pick_device(0)), concurrent, storage)


if __name__ == "__main__":
    commands.run(_COMMAND, main)
