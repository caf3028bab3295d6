import threading

import pytest
import torch

from tune_fusion.data.feeding import Buffers, ahead


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_items_come_in_their_order(count):
    assert list(ahead(iter(range(count)))) == list(range(count))
    assert threads() == []


def test_the_next_item_is_made_while_one_is_in_use():
    making = [threading.Event() for _ in range(3)]

    def make():
        for number, event in enumerate(making):
            event.set()
            yield number

    items = ahead(make())
    assert next(items) == 0
    assert making[1].wait(60)  # nobody has asked for it yet
    assert next(items) == 1
    assert making[2].wait(60)
    assert list(items) == [2]


def test_one_item_is_made_ahead_and_no_more():
    made = []
    items = ahead(made.append(number) or number for number in range(10))
    assert next(items) == 0
    items.close()
    assert made == [0, 1]


def test_an_error_comes_where_its_item_would_have():
    items = ahead(10 // number for number in (5, 2, 0, 1))
    assert [next(items), next(items)] == [2, 5]
    with pytest.raises(ZeroDivisionError):
        next(items)
    assert threads() == []


def test_who_stops_early_leaves_no_thread_behind():
    def use():
        for item in ahead(iter(range(100))):
            if item == 3:
                return item
        return None

    assert use() == 3
    assert threads() == []


def test_memory_is_used_again_once_nothing_refers_to_it():
    buffers = Buffers()
    first = buffers.empty((4, 3, 8, 8))
    place = first.data_ptr()
    view = first[1:, :, ::2]
    del first
    second = buffers.empty((4, 3, 8, 8))
    assert second.data_ptr() != place
    del view
    third = buffers.empty((2, 3, 8, 8), channels_last=True)
    assert third.data_ptr() == place
    assert third.shape == (2, 3, 8, 8)
    assert third.is_contiguous(memory_format=torch.channels_last)


def test_memory_that_a_backward_pass_needs_is_not_used_again():
    buffers = Buffers()
    batch = buffers.empty((4, 1, 2, 2)).fill_(3.0)
    place = batch.data_ptr()
    weight = torch.ones((), requires_grad=True)
    loss = (weight * batch).sum()
    del batch
    assert buffers.empty((4, 1, 2, 2)).fill_(100.0).data_ptr() != place
    loss.backward()
    assert weight.grad == 48
    del loss
    assert buffers.empty((4, 1, 2, 2)).data_ptr() in {place}


def test_larger_tensors_get_memory_of_their_own():
    buffers = Buffers()
    buffers.empty((1, 1, 2, 2))
    large = buffers.empty((3, 1, 2, 2)).fill_(1.0)
    assert large.sum() == 12


def test_few_buffers_are_kept():
    buffers = Buffers()
    held = [buffers.empty((1, 1, 4, 4)) for _ in range(10)]
    assert len({tensor.data_ptr() for tensor in held}) == 10
    held.clear()
    assert len(buffers._spare) == 2
