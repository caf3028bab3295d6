"""Space files written in tests, read as searches read them."""

from tune_fusion.data.catalogue import DATA_SETS
from tune_fusion.optim.registry import OPTIMIZERS
from tune_fusion.space.loading import parse_space
from tune_fusion.space.vocabulary import Vocabulary

VOCABULARY = Vocabulary(OPTIMIZERS, DATA_SETS)


def read_space(text, layers, overrides=()):
    """The space of `text`, its switch layers resolved for a model with `layers`."""
    return parse_space(text, "made.yaml", VOCABULARY, overrides).with_switch(layers)
