"""Images a second, and what memory a further trial takes, beside torchvision's ImageFolder and DataLoader.

``python benchmarks/data.py`` measures a folder of small JPEG files ($TUNE_FUSION_BENCH_JPEGS, which holds
``train/CLASS/*``; else one that it makes) and one of photographs of 500 pixels that it makes, both in a
temporary cache. Either side makes normalised float32 batches with the same augmentation: ours on as many
threads as there are CPUs, from a cache that was filled before (the rate of that is shown, too), theirs with 0
or 2 worker processes, whichever is faster.
"""

import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import torch
from measuring import Figure, interleaved, median_ratio, medians, run
from PIL import Image

from tune_fusion.data.datasets import load_data
from tune_fusion.data.pipeline import Batches
from tune_fusion.space.settings import DataSettings
from tune_fusion.training.allocation import keep_freed_memory
from tune_fusion.vision import torchvision, v2

BATCH = 128
ROUNDS = 3
TRIALS = 8
WORKERS = (0, 2)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PHOTOGRAPHS = 3000


def make_photographs(folder, count, width, height, classes=10):
    """JPEG files with detail of all sizes, as photographs have: about 0.45 bytes a pixel."""

    def make(number):
        random = np.random.default_rng(number)
        pixels = np.full((height, width, 3), 128.0)
        for cells, strength in ((4, 50), (12, 30), (40, 16), (120, 8)):
            small = random.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
            scaled = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
            pixels += (np.asarray(scaled, dtype=np.float32) - 128) * (strength / 74)
        pixels += random.normal(0, 3, pixels.shape)
        path = folder / "train" / f"class{number % classes}" / f"{number:05d}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)

    for label in range(classes):
        (folder / "train" / f"class{label}").mkdir(parents=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(make, range(count)))


def settings(folder, limit=None):
    return DataSettings(name=f"folder:{folder}", validation=0.01, limit=limit)


def our_batches(data, size, augment):
    return Batches(
        data.train,
        batch_size=BATCH,
        image_size=size,
        mean=MEAN,
        std=STD,
        augment=augment,
        shuffle=True,
        seed=0,
        device=torch.device("cpu"),
    )


def their_batches(folder, count, size, augment, workers):
    """What torchvision's documentation shows, over `count` images of the folder."""
    if augment == "resized_crop":
        geometry = [v2.RandomResizedCrop(size)]
    elif size < 64:
        geometry = [v2.RandomCrop(size, padding=size // 8)]
    else:
        geometry = [v2.Resize(round(1.15 * size)), v2.CenterCrop(round(1.15 * size)), v2.RandomCrop(size)]
    finish = [v2.RandomHorizontalFlip(), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    transform = v2.Compose([*geometry, *finish, v2.Normalize(MEAN, STD)])
    images = torchvision.datasets.ImageFolder(folder / "train", transform)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count].tolist()
    return torch.utils.data.DataLoader(
        torch.utils.data.Subset(images, chosen),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def go_through(batches):
    seen = sum(len(labels) for _, labels in batches)
    assert seen > 0


def throughput(name, folder, size, count):
    """Figures for one folder: filling the cache, and images a second on both sides."""
    started = time.perf_counter()
    data = load_data(settings(folder, count), seed=0, image_size=size)
    seconds = time.perf_counter() - started
    images = len(data.train) + len(data.validation)
    figures = [Figure(f"{name}: decoded into the cache, once", images / seconds, "images/s")]
    for augment in ("crop_flip", "resized_crop"):
        ours = our_batches(data, size, augment)
        loaders = {
            workers: their_batches(folder, len(data.train), size, augment, workers) for workers in (0, 2)
        }
        work = {
            f"theirs, {workers} workers": lambda one=one: go_through(one) for workers, one in loaders.items()
        }
        seconds = interleaved({"ours": lambda one=ours: go_through(one.epoch(1)), **work}, ROUNDS)
        middle = medians(seconds)
        best = min(work, key=middle.__getitem__)
        for who in ("ours", *work):
            rate = len(data.train) / middle[who]
            figures.append(Figure(f"{name}, {augment}: {who}", rate, "images/s", runs=ROUNDS))
        ratio = median_ratio(seconds, best, "ours")
        figures.append(
            Figure(
                f"{name}, {augment}: ours / theirs", ratio, "x", 4.0, at_most=False, runs=ROUNDS, note=best
            )
        )
    return figures


def trial(folder, size, barrier, results):
    """One process that goes through an epoch: what its private memory has grown by, within it and after."""
    torch.set_num_threads(1)
    own = psutil.Process()
    before = own.memory_full_info().uss
    batches = our_batches(load_data(settings(folder), seed=0, image_size=size), size, "crop_flip")
    for number, batch in enumerate(batches.epoch(1), 1):
        assert batch
        if number == len(batches) - 1:  # the last one may be small
            barrier.wait()  # by now each has nearly all images mapped
            within = own.memory_full_info().uss
    del batch
    barrier.wait()
    after = own.memory_full_info().uss
    barrier.wait()  # nobody leaves before all have looked
    results.put((after - before, within - before))


def memory(name, folder, size):
    """What each of several processes adds for the data."""
    whole = load_data(settings(folder), seed=0, image_size=size).train.images.numel()
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(TRIALS), context.Queue()
    processes = [context.Process(target=trial, args=(folder, size, barrier, results)) for _ in range(TRIALS)]
    for process in processes:
        process.start()
    seen = [results.get(timeout=1200) for _ in processes]
    for process in processes:
        process.join()
    adds, within = (statistics.median(values) / 1e6 for values in zip(*seen, strict=True))
    shared, each = f"{TRIALS} share {whole / 1e6:.0f} MB of images", 12e-6 * BATCH * size**2
    label = f"{name}: memory of a further trial"
    return [
        Figure(label, adds, "MB", 50.0, runs=TRIALS, note=shared),
        Figure(f"{label}, batches too", within, "MB", runs=TRIALS, note=f"each {each:.0f} MB"),
    ]


def measure():
    keep_freed_memory()  # as every process that trains on a CPU does; theirs gain by it, too
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["TUNE_FUSION_CACHE"] = str(folder / "cache")
        small = Path(os.environ.get("TUNE_FUSION_BENCH_JPEGS") or folder / "small")
        if not small.exists():
            make_photographs(small, 10_000, 32, 32)
        make_photographs(folder / "photographs", PHOTOGRAPHS, 500, 375)
        cases = (("32 px", small, 32, 10_240), ("500 px", folder / "photographs", 224, 1_280))
        figures = [figure for case in cases for figure in throughput(*case)]
        for name, images, size, _ in cases:
            figures += memory(name, images, size)
    return figures


if __name__ == "__main__":
    run("data", __doc__, measure)
