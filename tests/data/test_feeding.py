import threading

import pytest

from tune_fusion.data.feeding import ahead


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
