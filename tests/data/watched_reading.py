"""Reads data sets as a search does, then their test part, and prints which files each of the two opened.

A script of its own, because the hook that sees a process open files cannot be taken out again.
Arguments: the folder of the data sets, and one JSON object with the checksums of the small CIFAR files.
"""

import json
import os
import sys
from pathlib import Path

_opened: list[str] = []


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and isinstance(arguments[0], (str, bytes, Path)):
        _opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(_hook)

from tune_fusion import vision  # noqa: E402
from tune_fusion.data.datasets import load_data  # noqa: E402
from tune_fusion.data.heldout import check_heldout, load_heldout  # noqa: E402
from tune_fusion.space.settings import DataSettings  # noqa: E402


def _know(checksums: dict[str, dict[str, str]]) -> None:
    for name, files in checksums.items():
        base = getattr(vision.torchvision.datasets, name)
        listed = [[file, files[file]] for file in files]
        base.train_list = [one for one in listed if one[0].startswith(("data", "train"))]
        base.test_list = [one for one in listed if one[0].startswith("test")]
        base.meta = base.meta | {"md5": files[base.meta["filename"]]}


def _inside(root: Path) -> list[str]:
    inside = sorted({path for path in _opened if Path(path).is_relative_to(root) and Path(path).is_file()})
    _opened.clear()
    return inside


def main() -> None:
    root = Path(sys.argv[1])
    _know(json.loads(sys.argv[2]))
    seen = {}
    names = ["mnist", "fashion_mnist", "cifar10", "cifar100", f"folder:{root}/parts", f"folder:{root}/tree"]
    for name in names:
        settings = DataSettings(name=name, root=str(root), validation=0.2)
        _opened.clear()
        counted = check_heldout(settings)
        checked = _inside(root)
        data = load_data(settings, seed=0, image_size=12)
        trained = _inside(root)
        height, width = data.train.images.shape[-2:]
        heldout = load_heldout(settings, classes=data.classes, image_size=12, size=(height, width))
        key = name.rpartition("/")[2] or name
        seen[key] = {
            "checking": checked,
            "training": trained,
            "testing": _inside(root),
            "counted": counted,
            "images": len(heldout.split),
        }
    print(json.dumps(seen))


main()
