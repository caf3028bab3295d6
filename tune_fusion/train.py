"""``python -m tune_fusion.train``: train one configuration of a space, without Ray and MLflow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tune_fusion import commands
from tune_fusion.errors import TuneFusionError
from tune_fusion.folders import new_folder

_COMMAND = "tune_fusion.train"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 diverged or failed, 2 bad input."""
    parser = commands.Parser(
        prog=_COMMAND,
        description="Train one configuration of a search space and print each epoch.",
        epilog='FILE.json holds a configuration as result.json writes it: {"switch_layer": 2, '
        '"low": {"optimizer": "adam", "lr": 0.001}, "high": {"optimizer": "sgd", "lr": 0.01}}; '
        "a result.json itself means its best configuration.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--space", metavar="NAME|FILE", required=True, help="search space: model, data, training"
    )
    parser.add_argument("--config", metavar="FILE.json", type=Path, required=True, help="the configuration")
    parser.add_argument("--epochs", type=commands.natural, metavar="N", help="epochs (training.epochs)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any key of the space file"
    )
    parser.add_argument("--seed", type=commands.seed, metavar="N", help="seed of weights, order and split")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="write weights.safetensors and epochs.json here"
    )
    options = parser.parse(arguments)
    overrides = [*options.set]
    if options.epochs is not None:
        overrides.append(f"training.epochs={options.epochs}")
    if options.seed is not None:
        overrides.append(f"search.seed={options.seed}")
    output = None if options.output is None else new_folder(options.output, f"--output {options.output}")
    return _train(options.space, tuple(overrides), options.config, output)


def _train(space_name: str, overrides: tuple[str, ...], config: Path, output: Path | None) -> int:
    from tune_fusion.space.configuration_file import read_configuration, read_values
    from tune_fusion.space.loading import read_document

    # What is no space file, or no configuration at all, is refused before torch is imported.
    read_document(space_name, overrides)
    read_values(config)
    from tune_fusion.training.checkpoint import save_weights, weights_of
    from tune_fusion.training.checks import check_space, prove
    from tune_fusion.training.trainer import Trainer
    from tune_fusion.training.workbench import pick_device

    checked = check_space(space_name, overrides)
    configuration = read_configuration(config, checked.space, checked.vocabulary, checked.layer_names)
    trainer = Trainer(prove(checked, pick_device()), configuration)
    epochs: list[dict[str, float]] = []
    while not trainer.finished:
        result = trainer.run_epoch()
        epochs.append({"epoch": result.epoch, **result.metrics})
        shown = "  ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
        print(f"epoch {result.epoch}/{configuration.training.epochs}  {shown}", flush=True)
        if result.diverged:
            raise TuneFusionError(f"diverged: the loss is not finite in epoch {result.epoch}")
    if output is not None:
        output.mkdir(parents=True)
        save_weights(weights_of(trainer.model), output / "weights.safetensors")
        (output / "epochs.json").write_text(json.dumps(epochs, indent=2) + "\n", encoding="utf-8")
        print(f"weights and epochs: {output}")
    return 0


if __name__ == "__main__":
    commands.run(_COMMAND, main)
