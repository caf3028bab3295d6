import torch

from tune_fusion.optim.hn_adam_step import fits


def test_entries_that_differ_in_dtype_or_layout_do_not_fit():
    like = torch.zeros(2, 3, 4, 4)
    last = like.to(memory_format=torch.channels_last)
    assert fits((like, like, like, like, None))
    assert fits((last, last, last, last, last))
    assert not fits((like, last, like, like, None))
    assert not fits((like, like, like, last, None))
    assert not fits((like.double(), like.double(), like.double(), like.double(), None))
    assert not fits((like, like, like.double(), like, None))
    assert not fits((like[..., ::2], like[..., ::2], like[..., ::2], like[..., ::2], None))
