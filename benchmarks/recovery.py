"""What it costs that nothing is lost: journal and checkpoints, as shares of real searches.

``python benchmarks/recovery.py`` runs two searches in a temporary folder, one of digits and one of
Fashion-MNIST in full size, and prints what their ``result.json`` says, with the seconds from a driver's death
to its successor's first new epoch. With ``--json FILE`` the figures are written there, too.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import machine

SEARCHES = {
    "digits": ["--space", "digits", "--trials", "40"],
    "Fashion-MNIST": ["--space", "fashion_mnist", "--trials", "8", "--epochs", "3"],
}

COLUMNS = {"wall s": 8, "epochs": 8, "journal s": 11, "checkpoints s": 15, "share": 8, "journal": 11}


def command(*arguments):
    return [sys.executable, "-m", "tune_fusion.search", *arguments]


def cost(folder, name, arguments):
    """Run one search; its seconds, epochs, and what of them went into journal and checkpoints."""
    subprocess.run(command(*arguments, "--name", name), cwd=folder, check=True, stdout=subprocess.DEVNULL)
    result = json.loads((folder / "runs" / name / "result.json").read_text())
    spent = result["recovery"]
    seconds = spent["journal_seconds"] + spent["checkpoint_seconds"]
    size = (folder / "runs" / name / "journal.jsonl").stat().st_size
    return {
        "wall_seconds": result["wall_seconds"],
        "epochs": result["epochs"],
        "journal_seconds": spent["journal_seconds"],
        "checkpoint_seconds": spent["checkpoint_seconds"],
        # The workers write their checkpoints side by side: as a share of one clock this is too high.
        "share": seconds / result["wall_seconds"],
        "journal_kilobytes": size / 1000,
    }


def resumption(folder):
    """Kill a driver in the middle; seconds until its successor has an epoch that it had not."""
    journal = folder / "runs" / "killed" / "journal.jsonl"

    def epochs():
        return journal.read_text().count('"event":"epoch"') if journal.exists() else 0

    arguments = ["--space", "digits", "--trials", "40"]
    first = subprocess.Popen(command(*arguments, "--name", "killed"), cwd=folder, stdout=subprocess.DEVNULL)
    while epochs() < 60:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    known, started = epochs(), time.monotonic()
    second = subprocess.Popen(command("--resume", "killed"), cwd=folder, stdout=subprocess.DEVNULL)
    while epochs() <= known:
        time.sleep(0.05)
    seconds = time.monotonic() - started
    second.wait()
    return {"known_epochs": known, "seconds_to_next_epoch": seconds}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    figures = {"machine": machine()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        columns = "".join(f"{name:>{width}}" for name, width in COLUMNS.items())
        print(f"{'search':<15}{columns}")
        for name, arguments in SEARCHES.items():
            row = figures[name] = cost(folder, name.lower(), arguments)
            print(
                f"{name:<15}{row['wall_seconds']:>8.1f}{row['epochs']:>8}{row['journal_seconds']:>11.3f}"
                f"{row['checkpoint_seconds']:>15.3f}{row['share']:>8.2%}{row['journal_kilobytes']:>8.0f} kB",
                flush=True,
            )
        row = figures["resumption"] = resumption(folder)
        print(
            f"a driver killed after {row['known_epochs']} epochs: its successor's first new epoch came after "
            f"{row['seconds_to_next_epoch']:.1f} s, start-up included"
        )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
