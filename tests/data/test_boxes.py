import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import picture
from PIL import Image
from scipy import stats

from tune_fusion.data import boxes
from tune_fusion.data.augment import scoped_generator
from tune_fusion.data.boxes import cut_squares, random_boxes, resize_boxes
from tune_fusion.data.cache import cached_images, stored_side
from tune_fusion.vision import v2

_NAMES = ("top", "left", "height", "width")


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    """uint8 [count, 3, height, width]."""
    arrays = [np.asarray(picture(seed, width, height)).transpose(2, 0, 1) for seed in range(count)]
    return torch.from_numpy(np.stack(arrays))


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(5, 9), st.integers(5, 9), st.integers(0, 2**32))
def test_squares_are_slices(count, channels, height, width, seed):
    generator = scoped_generator(seed)
    images = torch.randint(256, (count, channels, height, width), dtype=torch.uint8, generator=generator)
    tops = torch.randint(height - 4, (count,), generator=generator)
    lefts = torch.randint(width - 4, (count,), generator=generator)
    corners = zip(images, tops.tolist(), lefts.tolist(), strict=True)
    expected = torch.stack([image[:, top : top + 5, left : left + 5] for image, top, left in corners])
    assert torch.equal(cut_squares(images, tops, lefts, 5), expected)
    assert torch.equal(cut_squares(images.transpose(2, 3), lefts, tops, 5), expected.transpose(2, 3))
    assert torch.equal(boxes._index_squares(images, tops, lefts, 5), expected)


@pytest.mark.parametrize(("height", "width"), [(37, 37), (40, 61), (200, 30)])
def test_boxes_are_distributed_as_torchvisions(height, width):
    """Two-sample Kolmogorov-Smirnov tests of sides, corners, area and aspect; seeds are fixed."""
    ours = random_boxes(4000, height, width, scoped_generator(1)).double()
    image = torch.empty(1, height, width)
    transform = v2.RandomResizedCrop(8, antialias=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        drawn = [transform.make_params([image]) for _ in range(4000)]
    theirs = torch.tensor(
        [[one[key] for key in ("top", "left", "height", "width")] for one in drawn]
    ).double()
    for mine, other in zip(_measures(ours), _measures(theirs), strict=True):
        assert stats.ks_2samp(mine, other).pvalue > 0.001


def _measures(found: torch.Tensor) -> list[np.ndarray]:
    top, left, height, width = found.numpy().T
    return [top, left, height, width, height * width, height / width]


@pytest.mark.parametrize(("height", "width"), [(2, 100), (100, 2), (3, 301)])
def test_where_no_box_fits_it_is_torchvisions_centre(height, width):
    expected = v2.RandomResizedCrop(8).make_params([torch.empty(1, height, width)])
    expected = [expected[key] for key in _NAMES]
    assert random_boxes(20, height, width, scoped_generator(3)).tolist() == [expected] * 20


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_boxes_lie_in_the_image(height, width, seed):
    top, left, box_height, box_width = random_boxes(50, height, width, scoped_generator(seed)).unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (box_height >= 1).all()
    assert (box_width >= 1).all()
    assert (top + box_height <= height).all()
    assert (left + box_width <= width).all()


@pytest.mark.parametrize("one_by_one", [True, False])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(12, 12, 12), (37, 37, 32), (37, 90, 32), (80, 80, 9), (80, 92, 96), (258, 258, 224)],
)
def test_resized_boxes_are_within_a_grey_level_of_torchvisions_and_pillows(
    monkeypatch, height, width, size, one_by_one
):
    monkeypatch.setattr(boxes, "_ONE_BY_ONE", 1 if one_by_one else 1000)
    images = pictures(24, height, width)
    found = random_boxes(24, height, width, scoped_generator(height))
    found[0] = torch.tensor([0, 0, height, width])
    found[1] = torch.tensor([height - 1, width - 1, 1, 1])
    mirrored = torch.arange(24) % 2 == 1
    ours = resize_boxes(images, found, mirrored, size).int()
    for image, box, turn, mine in zip(images, found.tolist(), mirrored.tolist(), ours, strict=True):
        top, left, box_height, box_width = box
        theirs = v2.functional.resized_crop(image, *box, [size, size], antialias=True)
        cut = Image.fromarray(image.permute(1, 2, 0).numpy()).crop(
            (left, top, left + box_width, top + box_height)
        )
        pillow = torch.from_numpy(np.array(cut.resize((size, size), Image.Resampling.BILINEAR)))
        for expected in (theirs, pillow.permute(2, 0, 1)):
            assert (mine - (expected.flip(-1) if turn else expected).int()).abs().max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_large_boxes_are_torchvisions_own(channels):
    images = pictures(6, 90, 80)[:, :channels]
    found = random_boxes(6, 90, 80, scoped_generator(1))
    ours = resize_boxes(images, found, torch.zeros(6, dtype=torch.bool), 64)
    for image, box, mine in zip(images, found.tolist(), ours, strict=True):
        assert torch.equal(mine, v2.functional.resized_crop(image, *box, [64, 64], antialias=True))


@pytest.mark.parametrize("mode", ["crop_flip", "resized_crop"])
def test_crops_of_stored_images_are_those_of_the_full_photographs(tmp_path, mode):
    """The cache keeps 1.15 times the input size: against the same part cut out of the file itself by Pillow,
    pixels differ by less than two grey levels in the mean, in smooth photographs."""
    size, side = 64, stored_side(64)
    names = [f"{seed}.jpg" for seed in range(8)]
    for seed, name in enumerate(names):
        picture(seed, 400, 300).save(tmp_path / name, quality=95)
    images = cached_images(tmp_path, names, size).images
    found = random_boxes(8, side, side, scoped_generator(7))
    if mode == "crop_flip":
        found[:, 2:] = size
        found[:, :2] = torch.arange(8)[:, None] % (side - size + 1)
        ours = cut_squares(images, found[:, 0], found[:, 1], size)
    else:
        ours = resize_boxes(images, found, torch.zeros(8, dtype=torch.bool), size)
    scale = 300 / side  # the stored square is the centre of the photograph
    for name, box, mine in zip(names, found.tolist(), ours, strict=True):
        top, left, height, width = (scale * value for value in box)
        with Image.open(tmp_path / name) as photograph:
            place = (50 + left, top, 50 + left + width, top + height)
            whole = photograph.resize((size, size), Image.Resampling.BILINEAR, box=place)
        difference = mine.int() - torch.from_numpy(np.array(whole)).permute(2, 0, 1).int()
        assert difference.abs().float().mean() < 2
