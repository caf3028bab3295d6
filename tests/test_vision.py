import importlib
import subprocess
import sys
import textwrap

import pytest
import torch

from tune_fusion import vision


def run(code: str) -> str:
    """Output of `code` in a fresh interpreter: only there is nothing imported yet."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_module_imports_nothing_heavy():
    out = run("""
        import sys
        import tune_fusion.vision
        print(sorted({"torch", "torchvision", "timm"} & set(sys.modules)))
    """)
    assert out == "[]"


def test_all_modules_import_in_a_fresh_interpreter_and_from_threads_at_once():
    out = run("""
        from concurrent.futures import ThreadPoolExecutor
        from tune_fusion import vision
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: vision.prepare_torchvision(), range(8)))
        print(*(getattr(vision, name).__name__ for name in ("timm", "torchvision", "v2")))
    """)
    assert out == "timm torchvision torchvision.transforms.v2"


def test_the_names_are_the_modules_themselves():
    assert vision.timm is importlib.import_module("timm")
    assert vision.v2 is importlib.import_module("torchvision.transforms.v2")
    image = torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2)
    assert torch.equal(vision.v2.functional.horizontal_flip(image), image.flip(-1))


def test_declares_no_operator_that_is_there_already():
    vision.prepare_torchvision()
    before = list(vision._declared)
    vision.prepare_torchvision()
    assert vision._declared == before


def test_without_torchvision_it_says_so(monkeypatch):
    monkeypatch.setattr(vision, "_missing", lambda _: ["nms"])
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="pip install torchvision"):
        vision.prepare_torchvision()


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'tensorflow'"):
        vision.tensorflow  # noqa: B018  (the access is what is tested)
