"""The single optimizers a search may use, by name: what they are, and which hyperparameters they take.

Importing this module does not import torch: names, rules and ranges are plain data, and an optimizer's code
is loaded when the first one is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from tune_fusion.errors import InputError, suggest
from tune_fusion.optim.hyperparameters import (
    Hyperparameter,
    betas,
    decay_rate,
    flag,
    not_negative,
    number,
    positive,
)

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

_Constructor: TypeAlias = Callable[[list["nn.Parameter"], dict[str, Any]], "Optimizer"]


@dataclass(frozen=True)
class OptimizerInfo:
    """An optimizer of the registry.

    Attributes:
        name: its name in space files.
        title: its name in prose.
        description: one line on what it does.
        paper: its source.
        hyperparameters: everything a user may set or search, by name; ``weight_decay`` where it has one.
        search: default ranges, in the space file's grammar: ``{"lr": {"log": [1e-5, 1e-2]}}``.
    """

    name: str
    title: str
    description: str
    paper: str
    hyperparameters: Mapping[str, Hyperparameter]
    search: Mapping[str, Mapping[str, object]]
    _construct: _Constructor = field(repr=False)

    def check(self, settings: Mapping[str, object]) -> None:
        """Accept settings that :meth:`build` can use.

        Raises:
            InputError: a name is unknown or a value breaks its rule.
        """
        for key, value in settings.items():
            if key not in self.hyperparameters:
                known = suggest(key, self.hyperparameters)
                raise InputError(f"{self.name} has no hyperparameter {key!r}; {known}")
            hyperparameter = self.hyperparameters[key]
            if not hyperparameter.check(value):
                raise InputError(f"{self.name}.{key}: needs {hyperparameter.rule}, got {value!r}")

    def build(self, params: Iterable[nn.Parameter], **settings: object) -> Optimizer:
        """The optimizer for ``params``; each of its groups carries this entry's name under ``"optimizer"``.

        Args:
            params: the parameters to train, at least one.
            settings: hyperparameters that differ from their defaults; pairs may be tuples or lists.

        Raises:
            InputError: see :meth:`check`.
        """
        self.check(settings)
        values: dict[str, Any] = {name: h.default for name, h in self.hyperparameters.items()} | settings
        for name, value in values.items():
            if isinstance(value, list):
                values[name] = tuple(value)
        optimizer = self._construct(list(params), values)
        for group in optimizer.param_groups:
            group["optimizer"] = self.name
        return optimizer


@dataclass(frozen=True)
class OptimizerFactory:
    """Builds one optimizer of the registry with fixed settings; can be pickled and compared."""

    name: str
    settings: Mapping[str, object]

    def __call__(self, params: Iterable[nn.Parameter]) -> Optimizer:
        """The optimizer for ``params``."""
        return get(self.name).build(params, **self.settings)


def get(name: str) -> OptimizerInfo:
    """The registry's entry of this name.

    Raises:
        InputError: there is none; the message has the nearest name.
    """
    if name not in OPTIMIZERS:
        raise InputError(f"unknown optimizer {name!r}; {suggest(str(name), OPTIMIZERS)}")
    return OPTIMIZERS[name]


def factory(name: str, settings: Mapping[str, object]) -> OptimizerFactory:
    """A function of parameters that builds the optimizer, checked now rather than when it is called.

    Raises:
        InputError: the name or a setting is unknown, or a value breaks its rule.
    """
    get(name).check(settings)
    return OptimizerFactory(name, dict(settings))


# Where torch 2.11 and later have fused SGD, Adam and AdamW; Adagrad is fused on CPUs alone.
_FUSED_DEVICES = frozenset({"cpu", "cuda", "mps"})
_COUPLED = " (times the parameter, added to the gradient)"
_DECOUPLED = " (times lr: the share by which parameters shrink a step)"


def _adam_like(
    lr: float, rates: Hyperparameter, eps: float, weight_decay: float = 0.0, what: str = _COUPLED
) -> dict[str, Hyperparameter]:
    return {
        "lr": positive("lr", lr),
        "betas": rates,
        "eps": not_negative("eps", eps),
        "weight_decay": not_negative("weight_decay", weight_decay, what),
    }


def _from(module: str, name: str, **fixed: object) -> _Constructor:
    """Constructs the class of that name with the hyperparameters and what is fixed for all uses."""

    def construct(params: list[nn.Parameter], values: dict[str, Any]) -> Optimizer:
        optimizer: Optimizer = getattr(importlib.import_module(module), name)(params, **values, **fixed)
        return optimizer

    return construct


def _fused(name: str, devices: Set[str] = _FUSED_DEVICES, **fixed: object) -> _Constructor:
    """As `_from`, one of torch's optimizers that steps in a single pass on `devices`."""

    def construct(params: list[nn.Parameter], values: dict[str, Any]) -> Optimizer:
        fused = all(p.is_floating_point() and p.device.type in devices for p in params)
        return _from("torch.optim", name, fused=fused, **fixed)(params, values)

    return construct


def _sgd(params: list[nn.Parameter], values: dict[str, Any]) -> Optimizer:
    # torch refuses nesterov without momentum, where it would change nothing; a search may draw that.
    values["nesterov"] = values["nesterov"] and values["momentum"] > 0
    return _fused("SGD")(params, values)


def _muon(params: list[nn.Parameter], values: dict[str, Any]) -> Optimizer:
    """Muon for the matrices, AdamW for everything else, as one optimizer; either may have nothing to do."""
    composite = importlib.import_module("tune_fusion.optim.fused").CompositeOptimizer
    ratio = values.pop("fallback_ratio")
    shared = {"lr": values["lr"] * ratio, "weight_decay": values["weight_decay"]}
    matrices = [p for p in params if p.ndim == 2]
    others = [p for p in params if p.ndim != 2]
    parts = {}
    if matrices:
        # With this scaling updates are as large as AdamW's, so that both share a learning rate.
        parts["matrices"] = _from("torch.optim", "Muon", adjust_lr_fn="match_rms_adamw")(matrices, values)
    if others:
        parts["others"] = _fused("AdamW")(others, shared)
    optimizer: Optimizer = composite(parts)
    return optimizer


_ADAM_RATES: Mapping[str, Mapping[str, object]] = {"lr": {"log": [1e-5, 1e-2]}}
_HN_ADAM_PAPER = "Reyad, Sarhan & Arafa 2023, doi 10.1007/s00521-023-08568-z"
_HN_ADAM_SEARCH: Mapping[str, Mapping[str, object]] = {**_ADAM_RATES, "lambda0": {"float": [2, 4]}}


def _hn_adam_settings() -> dict[str, Hyperparameter]:
    return {
        **_adam_like(1e-3, betas(0.9, 0.99), 1e-8, what=""),
        "lambda0": number(2.5, "2 <= lambda0 <= 4", lambda x: 2 <= x <= 4),
        "decoupled_weight_decay": flag(False),
    }


_ENTRIES = (
    OptimizerInfo(
        "sgd",
        "SGD",
        "Stochastic gradient descent, with momentum if wanted.",
        "Robbins & Monro 1951, doi 10.1214/aoms/1177729586",
        {
            "lr": positive("lr", 1e-2),
            "momentum": decay_rate("momentum", 0.0),
            "nesterov": flag(False, " (no effect without momentum)"),
            "weight_decay": not_negative("weight_decay", 0.0, _COUPLED),
        },
        {"lr": {"log": [1e-3, 0.5]}, "momentum": {"choice": [0.0, 0.9]}},
        _sgd,
    ),
    OptimizerInfo(
        "adam",
        "Adam",
        "Steps scaled by running means of the gradient and its square.",
        "Kingma & Ba 2015, arXiv 1412.6980",
        _adam_like(1e-3, betas(0.9, 0.999), 1e-8),
        _ADAM_RATES,
        _fused("Adam"),
    ),
    OptimizerInfo(
        "adamw",
        "AdamW",
        "Adam with weight decay apart from the gradient.",
        "Loshchilov & Hutter 2019, arXiv 1711.05101",
        _adam_like(1e-3, betas(0.9, 0.999), 1e-8, 1e-2, _DECOUPLED),
        {**_ADAM_RATES, "weight_decay": {"log": [1e-3, 1e-1]}},
        _fused("AdamW"),
    ),
    OptimizerInfo(
        "radam",
        "RAdam",
        "Adam that rectifies the variance of its first steps.",
        "Liu et al. 2020, arXiv 1908.03265",
        _adam_like(1e-3, betas(0.9, 0.999), 1e-8),
        _ADAM_RATES,
        _from("torch.optim", "RAdam"),
    ),
    OptimizerInfo(
        "nadam",
        "NAdam",
        "Adam with Nesterov momentum.",
        "Dozat 2016, ICLR workshop",
        {
            **_adam_like(2e-3, betas(0.9, 0.999), 1e-8),
            "momentum_decay": not_negative("momentum_decay", 4e-3),
        },
        _ADAM_RATES,
        _from("torch.optim", "NAdam"),
    ),
    OptimizerInfo(
        "amsgrad",
        "AMSGrad",
        "Adam that divides by the largest second moment so far.",
        "Reddi, Kale & Kumar 2018, arXiv 1904.09237",
        _adam_like(1e-3, betas(0.9, 0.999), 1e-8),
        _ADAM_RATES,
        _fused("Adam", amsgrad=True),
    ),
    OptimizerInfo(
        "rmsprop",
        "RMSprop",
        "Gradient divided by the root of its running mean square.",
        "Tieleman & Hinton 2012, Neural Networks for Machine Learning, lecture 6.5",
        {
            "lr": positive("lr", 1e-2),
            "alpha": decay_rate("alpha", 0.99),
            "momentum": decay_rate("momentum", 0.0),
            "centered": flag(False),
            "eps": not_negative("eps", 1e-8),
            "weight_decay": not_negative("weight_decay", 0.0, _COUPLED),
        },
        _ADAM_RATES,
        _from("torch.optim", "RMSprop"),
    ),
    OptimizerInfo(
        "adagrad",
        "Adagrad",
        "Gradient divided by the root of the sum of all its squares.",
        "Duchi, Hazan & Singer 2011, JMLR 12",
        {
            "lr": positive("lr", 1e-2),
            "lr_decay": not_negative("lr_decay", 0.0),
            "initial_accumulator_value": not_negative("initial_accumulator_value", 0.0),
            "eps": not_negative("eps", 1e-10),
            "weight_decay": not_negative("weight_decay", 0.0, _COUPLED),
        },
        {"lr": {"log": [1e-4, 1e-1]}},
        _fused("Adagrad", frozenset({"cpu"})),
    ),
    OptimizerInfo(
        "adadelta",
        "Adadelta",
        "Steps in the ratio of two running mean squares: of updates and of gradients.",
        "Zeiler 2012, arXiv 1212.5701",
        {
            "lr": positive("lr", 1.0),
            "rho": decay_rate("rho", 0.9),
            "eps": not_negative("eps", 1e-6),
            "weight_decay": not_negative("weight_decay", 0.0, _COUPLED),
        },
        {"lr": {"log": [5e-2, 5.0]}},
        _from("torch.optim", "Adadelta"),
    ),
    OptimizerInfo(
        "adabelief",
        "AdaBelief",
        "Adam that divides by how far gradients lie from their running mean.",
        "Zhuang et al. 2020, arXiv 2010.07468",
        _adam_like(1e-3, betas(0.9, 0.999), 1e-16, what=_DECOUPLED),
        _ADAM_RATES,
        _from("pytorch_optimizer", "AdaBelief", rectify=False, weight_decouple=True),
    ),
    OptimizerInfo(
        "yogi",
        "Yogi",
        "Adam whose second moment changes by additions, so that it cannot grow or fall fast.",
        "Zaheer et al. 2018, NeurIPS",
        {
            **_adam_like(1e-2, betas(0.9, 0.999), 1e-3, what=_DECOUPLED),
            "initial_accumulator": not_negative("initial_accumulator", 1e-6),
        },
        {"lr": {"log": [1e-4, 1e-1]}},
        _from("pytorch_optimizer", "Yogi", weight_decouple=True),
    ),
    OptimizerInfo(
        "msvag",
        "M-SVAG",
        "Momentum damped where the gradient's estimated variance is large.",
        "Balles & Hennig 2018, arXiv 1705.07774",
        {"lr": positive("lr", 1e-2), "beta": decay_rate("beta", 0.9)},
        {"lr": {"log": [1e-3, 0.5]}},
        _from("pytorch_optimizer", "MSVAG"),
    ),
    OptimizerInfo(
        "swats",
        "SWATS",
        "Adam that switches to SGD, at a rate it estimates itself.",
        "Keskar & Socher 2017, arXiv 1712.07628",
        _adam_like(1e-3, betas(0.9, 0.999), 1e-6),
        _ADAM_RATES,
        _from("pytorch_optimizer", "SWATS"),
    ),
    OptimizerInfo(
        "adabound",
        "AdaBound",
        "Adam with bounds on its step sizes that narrow towards SGD.",
        "Luo et al. 2019, arXiv 1902.09843",
        {
            **_adam_like(1e-3, betas(0.9, 0.999), 1e-8),
            "final_lr": positive("final_lr", 0.1),
            "gamma": positive("gamma", 1e-3),
        },
        {**_ADAM_RATES, "final_lr": {"log": [1e-2, 1.0]}},
        _from("pytorch_optimizer", "AdaBound", weight_decouple=False),
    ),
    OptimizerInfo(
        "muon",
        "Muon",
        "Orthogonalised momentum for matrices, AdamW for all other parameters.",
        "Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv 2502.16982",
        {
            "lr": positive("lr", 1e-3),
            "fallback_ratio": positive("fallback_ratio", 1.0),
            "momentum": decay_rate("momentum", 0.95),
            "nesterov": flag(True),
            "weight_decay": not_negative("weight_decay", 0.1, _DECOUPLED),
        },
        {"lr": {"log": [1e-4, 1e-2]}},
        _muon,
    ),
    OptimizerInfo(
        "hn_adam",
        "HN_Adam",
        "Adam with an adaptive norm that turns into AMSGrad where the norm is below 2.",
        _HN_ADAM_PAPER,
        _hn_adam_settings(),
        _HN_ADAM_SEARCH,
        _from("tune_fusion.optim.hn_adam", "HNAdam", second_moment="paper"),
    ),
    OptimizerInfo(
        "hn_adam_root",
        "HN_Adam, root state",
        "HN_Adam that keeps the root of its second moment, so that steps stay near lr.",
        _HN_ADAM_PAPER,
        _hn_adam_settings(),
        _HN_ADAM_SEARCH,
        _from("tune_fusion.optim.hn_adam", "HNAdam", second_moment="root"),
    ),
)

OPTIMIZERS: Mapping[str, OptimizerInfo] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""Every optimizer a search may use, by name."""
