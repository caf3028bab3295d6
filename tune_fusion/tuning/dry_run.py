"""What a search would do, in words and numbers, without starting anything."""

from __future__ import annotations

import itertools

from tune_fusion.errors import InputError
from tune_fusion.space.sampling import describe, grid_parameters
from tune_fusion.training.checks import Checked, check_provided
from tune_fusion.tuning.arms import SearchArm, make_arms
from tune_fusion.tuning.asha import expected_trials

_SAMPLES = 10


def describe_plan(checked: Checked) -> str:
    """The layer map, ten sampled configurations, the rungs with expected trials, the plan's epochs."""
    arms = make_arms(checked.space)
    parts = [header(checked), _layer_table(checked), _samples(checked, arms), rungs(checked, arms)]
    try:
        check_provided(checked)
    except InputError as error:
        parts.append(f"not ready to start: {error}")
    return "\n\n".join(parts)


def header(checked: Checked) -> str:
    """The space in one line: model, data, and how it is searched."""
    space, data = checked.space, checked.data
    return (
        f"{space.name}: {space.model.name} on {data.name}, {data.train_images} training and "
        f"{data.validation_images} validation images, {len(data.classes)} classes; "
        f"{space.search.trials} trials, {space.search.sampler} sampler, {space.search.scheduler} scheduler, "
        f"{space.search.metric}, seed {space.search.seed}"
    )


def _layer_table(checked: Checked) -> str:
    total = sum(layer.count for layer in checked.layers)
    width = max(len(layer.name) for layer in checked.layers)
    lines = [f"layer map ({len(checked.layers)} layers, {total:,} trainable parameters)"]
    seen = 0
    for layer in checked.layers:
        seen += layer.count
        lines.append(
            f"  {layer.index:>3}  {layer.name:<{width}}  {layer.count:>12,}  "
            f"low-level share if switched here {seen / total:6.1%}"
        )
    return "\n".join(lines)


def _samples(checked: Checked, arms: list[SearchArm]) -> str:
    lines = ["sampled configurations"]
    study = next(arm.study for arm in arms if arm.name == "fusion")
    for _ in range(_SAMPLES):
        suggestion = study.ask()
        if suggestion is None:
            break
        text = describe(suggestion.configuration, checked.layer_names)
        lines.append(f"  {text}{'   (untuned default)' if suggestion.origin == 'default' else ''}")
    return "\n".join(lines)


def rungs(checked: Checked, arms: list[SearchArm]) -> str:
    """The rungs with the trials and epochs that each arm is expected to spend."""
    epochs = checked.space.max_epochs
    # How many trials these two end depends on values that nobody knows yet.
    about = "at most" if checked.space.search.scheduler in ("hyperband", "curves") else "about"
    lines = ["rungs, expected trials at each"]
    for arm in arms:
        plan = _reached(checked, arm)
        steps = ", ".join(f"epoch {rung}: {reached:.1f}" for rung, reached in plan)
        full = checked.space.search.trials * arm.share * epochs
        lines.append(f"  {arm.name:<8} {steps}; {about} {_spent(plan):.0f} of {full:.0f} epochs")
    total, full = expected_epochs(checked, arms), checked.space.search.trials * epochs
    images = checked.data.train_images
    lines.append(f"  plan     {about} {total:.0f} of {full} epochs, {total * images:,.0f} training images")
    return "\n".join(lines)


def expected_epochs(checked: Checked, arms: list[SearchArm]) -> float:
    """The epochs that a whole search is expected to train."""
    return sum(_spent(_reached(checked, arm)) for arm in arms)


def _reached(checked: Checked, arm: SearchArm) -> list[tuple[int, float]]:
    """How many of an arm's trials are expected to reach each rung, and the last epoch."""
    space = checked.space
    epochs = space.max_epochs
    trials = space.search.trials * arm.share  # as many as that, if both arms stop trials equally early
    if space.search.sampler == "grid":
        points = itertools.islice(grid_parameters(space, arm.name), space.search.trials)
        trials = min(trials, float(sum(1 for _ in points)))
    if space.search.scheduler in ("asha", "promotion"):
        return expected_trials(space.asha, epochs, trials)
    return [(epochs, trials)]


def _spent(plan: list[tuple[int, float]]) -> float:
    """The epochs of trials that get so far."""
    before = [0, *(rung for rung, _ in plan)]
    return sum(reached * (rung - start) for start, (rung, reached) in zip(before, plan, strict=False))
