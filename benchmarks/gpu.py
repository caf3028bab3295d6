"""What one GPU does: optimizer steps, training of the papers' two models, and data that live on it.

``python benchmarks/gpu.py [--json FILE]``, some minutes; without a GPU it says so and exits with 2. Needs no
Ray. Steps: HN_Adam against torch's fused AMSGrad on the models' parameters, once as the GPU counts (events,
with the host ahead, as it is after a backward pass), once as the clock does. Training: the trainer's own step
in bfloat16, channels last and compiled, against the loop of a tutorial (bfloat16, eager) on one batch that
never changes, and beside the rates that timm has published. Data: batches of a CIFAR-10 of JPEG files
($TUNE_FUSION_BENCH_JPEGS, which holds ``train/CLASS/*``; else a folder that it makes), augmented on the GPU,
against torchvision's ImageFolder and a DataLoader.
"""

import itertools
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from data import MEAN, STD, folder_settings, make_photographs, their_batches
from measuring import Figure, interleaved, median_ratio, medians, run
from optimizers import step_figures, steps_of

from tune_fusion import build_model
from tune_fusion.data.datasets import load_data
from tune_fusion.data.pipeline import Batches
from tune_fusion.space.configuration import ALL, Configuration, OptimizerChoice
from tune_fusion.space.settings import DataSettings, ModelSettings, TrainingSettings
from tune_fusion.training.trainer import Trainer
from tune_fusion.training.workbench import Workbench

TARGET = 1.15
VALIDATION_BATCHES = 2
PUBLISHED = {
    "tf_efficientnetv2_s": (488.25, "at 300 px, batch 128"),
    "vit_base_patch16_224": (392.99, "at 224 px, batch 192"),
}
"""timm's results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv: images/s, and what else differs."""


@dataclass(frozen=True)
class Plan:
    """What is measured, where, and how often."""

    device: torch.device
    models: tuple[str, ...] = ("tf_efficientnetv2_s", "vit_base_patch16_224")
    image_size: int = 224
    photographs: int = 1024
    """To train on, which is a multiple of the batch size."""
    batch_size: int = 128
    compile: bool = True
    step_rounds: int = 50
    training_steps: int = 20
    rounds: int = 5
    small_images: int = 10_240
    workers: int = min(8, os.cpu_count() or 1)


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def waited(function, device):
    """The function, done when the device is."""

    def whole():
        function()
        wait(device)

    return whole


def device_seconds(work, rounds, device):
    """As `interleaved`, but as the GPU counts: it is kept busy until the host has asked for all of it."""
    load = torch.ones(4096, 4096, device=device)
    seconds = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, function in work.items():
            started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            for _ in range(5):
                load @ load
            started.record()
            function()
            ended.record()
            torch.cuda.synchronize(device)
            if number > 0:
                seconds[name].append(started.elapsed_time(ended) / 1000)
    return seconds


def measure_steps(plan, name):
    work = steps_of(build_model(name), plan.device)
    del work["AMSGrad"]  # which is not fused: a reference for CPUs
    figures = []
    if plan.device.type == "cuda":
        figures += step_figures(name, device_seconds(work, plan.step_rounds, plan.device), TARGET, ", GPU")
    work = {optimizer: waited(step, plan.device) for optimizer, step in work.items()}
    return figures + step_figures(name, interleaved(work, plan.step_rounds), TARGET, ", clock")


def our_steps(plan, name, folder):
    """Trains another step at each call, as a trial does."""
    # What is left to train on fills whole batches, so that one graph is compiled.
    validation = VALIDATION_BATCHES * plan.batch_size
    data = DataSettings(name=f"folder:{folder}", validation=validation, image_size=plan.image_size)
    training = TrainingSettings(
        batch_size=plan.batch_size, precision="bfloat16", channels_last=True, compile=plan.compile
    )
    bench = Workbench(ModelSettings(name=name), data, 0, plan.device)
    trainer = Trainer(bench, Configuration(ALL, OptimizerChoice("adamw"), None, training))
    steps = trainer.steps()
    return lambda: next(steps)


def plain_steps(plan, name):
    """The loop of a tutorial, on one batch that is on the device already."""
    model = build_model(name, num_classes=10, image_size=plan.image_size).to(plan.device).train()
    optimizer = torch.optim.AdamW(model.parameters())
    criterion = torch.nn.CrossEntropyLoss()
    images = torch.randn(plan.batch_size, 3, plan.image_size, plan.image_size, device=plan.device)
    labels = torch.randint(10, (plan.batch_size,), device=plan.device)

    def step():
        optimizer.zero_grad()
        with torch.autocast(plan.device.type, dtype=torch.bfloat16):
            loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()

    return step


def measure_training(plan, name, folder):
    ours, plain = our_steps(plan, name, folder), plain_steps(plan, name)
    started = time.perf_counter()
    waited(ours, plan.device)()
    first = time.perf_counter() - started

    def several(step):
        return waited(lambda: [step() for _ in range(plan.training_steps)], plan.device)

    seconds = interleaved({"ours": several(ours), "plain loop": several(plain)}, plan.rounds)
    images = plan.training_steps * plan.batch_size
    figures = [
        Figure(f"{name}: {who}", images / value, "images/s", runs=plan.rounds)
        for who, value in medians(seconds).items()
    ]
    if name in PUBLISHED:
        rate, how = PUBLISHED[name]
        note = f"RTX 3090, {how}, AMP, channels last, not compiled"
        figures.append(Figure(f"{name}: published by timm", rate, "images/s", note=note))
    ratio = median_ratio(seconds, "plain loop", "ours")
    return [
        *figures,
        Figure(f"{name}: ours / plain loop", ratio, "x", runs=plan.rounds),
        Figure(f"{name}: first step", first, "s", note="compiled in it" if plan.compile else ""),
    ]


def measure_data(plan, folder):
    data = load_data(folder_settings(folder, plan.small_images), seed=0, image_size=32)
    ours = Batches(
        data.train,
        batch_size=plan.batch_size,
        image_size=32,
        mean=MEAN,
        std=STD,
        augment="crop_flip",
        shuffle=True,
        seed=0,
        device=plan.device,
        channels_last=True,
    )
    theirs = their_batches(folder, len(data.train), 32, "crop_flip", plan.workers)
    epochs = itertools.count(1)

    def go_through(batches):
        for images, labels in batches:
            images.to(plan.device, non_blocking=True), labels.to(plan.device, non_blocking=True)

    work = {
        "resident": waited(lambda: go_through(ours.epoch(next(epochs))), plan.device),
        f"DataLoader, {plan.workers} workers": waited(lambda: go_through(theirs), plan.device),
    }
    seconds = interleaved(work, plan.rounds)
    figures = [
        Figure(f"32 px, crop_flip: {who}", len(data.train) / value, "images/s", runs=plan.rounds)
        for who, value in medians(seconds).items()
    ]
    resident, loader = work
    ratio = median_ratio(seconds, loader, resident)
    return [*figures, Figure("32 px, crop_flip: resident / DataLoader", ratio, "x", runs=plan.rounds)]


def figures_of(plan):
    """Each figure as soon as it is measured."""
    for name in plan.models:
        yield from measure_steps(plan, name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["TUNE_FUSION_CACHE"] = str(folder / "cache")
        small = Path(os.environ.get("TUNE_FUSION_BENCH_JPEGS") or folder / "small")
        if not small.exists():
            make_photographs(small, plan.small_images, 32, 32)
        yield from measure_data(plan, small)
        side = round(plan.image_size * 1.15)
        count = plan.photographs + VALIDATION_BATCHES * plan.batch_size
        make_photographs(folder / "photographs", count, side, side)
        for name in plan.models:
            yield from measure_training(plan, name, folder / "photographs")


def measure():
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py: torch finds no GPU, so there is nothing to measure", file=sys.stderr)
        raise SystemExit(2)
    return figures_of(Plan(torch.device("cuda", 0)))


if __name__ == "__main__":
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    run(f"GPU, {gpu}", __doc__, measure)
