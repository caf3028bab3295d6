"""What every worker imports beforehand where the model is timm's; see `own_ray`."""

from tune_fusion.vision import timm, v2

__all__ = ["timm", "v2"]
