"""Several optimizers as one: the layer-wise fusion of two, and the mechanism it shares with other composites.

Kim & Moon, "Improvement of Object Classification Performance Using a Fusion Optimizer", J. Inf. Process.
Syst., 2025: the layers up to a switch layer are trained by one optimizer, the layers after it by another.
"""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, TypeAlias, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, StateDict

from tune_fusion.errors import suggest

Factory: TypeAlias = Callable[[list[nn.Parameter]], Optimizer]
"""Makes an optimizer of a list of parameters, such as ``functools.partial(torch.optim.SGD, lr=0.1)``."""


class CompositeOptimizer(Optimizer):
    """One torch optimizer made of several, each with parameters of its own.

    ``param_groups`` holds the parts' own group dictionaries (not copies), tagged with the part's name under
    :attr:`tag` and with the optimizer's class name under ``"optimizer"`` unless that is set already. The
    parts share this optimizer's ``state``. So learning-rate schedulers, gradient scalers, ``zero_grad`` and
    ``state_dict`` treat it as any other optimizer, and what they change reaches the parts.

    Momentum-cycling schedulers (OneCycleLR, CyclicLR) work where every part knows the option they cycle;
    otherwise pass ``cycle_momentum=False``.

    Args:
        parts: the optimizers by name; at least one, each with at least one parameter. From now on they belong
            to the composite: step and load only that. State they already have is kept.
        named_parameters: every parameter that should be trained, with its name, as
            ``model.named_parameters()`` gives them; with it, errors name parameters, and one that
            requires a gradient and is in no part is refused.

    Attributes:
        parts: the optimizers by name.

    Raises:
        TypeError: a part is no optimizer, or its ``step`` cannot do without a closure (LBFGS).
        ValueError: a part is empty, or a parameter is in two parts or (with ``named_parameters``) in none.
    """

    tag: ClassVar[str] = "part"
    parts: dict[str, Optimizer]

    def __init__(
        self,
        parts: Mapping[str, Optimizer],
        *,
        named_parameters: Iterable[tuple[str, Tensor]] | None = None,
    ) -> None:
        named = dict(named_parameters) if named_parameters is not None else {}
        _check_parts(parts, self.tag, named)
        self.parts = dict(parts)
        groups = []
        for name, part in self.parts.items():
            for group in part.param_groups:
                group[self.tag] = name
                group.setdefault("optimizer", type(part).__name__)
                groups.append(group)
        # What all parts know; schedulers ask here whether there is a momentum to cycle.
        first, *others = self.parts.values()
        shared = {
            key: value for key, value in first.defaults.items() if all(key in o.defaults for o in others)
        }
        super().__init__(groups, shared)
        for part in self.parts.values():
            self.state.update(part.state)
        self._share_state()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the part it names under :attr:`tag` (may be left out where there is only one part).

        Options it lacks are that part's defaults.

        Raises:
            ValueError: the part is unknown, or a parameter is in the optimizer already.
        """
        if not any(param_group is group for part in self.parts.values() for group in part.param_groups):
            self._add_to_part(param_group)
        super().add_param_group(param_group)

    def _add_to_part(self, param_group: dict[str, Any]) -> None:
        only = next(iter(self.parts)) if len(self.parts) == 1 else None
        name = param_group.setdefault(self.tag, only)
        if name not in self.parts:
            known = suggest(str(name), self.parts)
            raise ValueError(f"a parameter group needs a {self.tag!r} it belongs to, got {name!r}; {known}")
        params = param_group["params"]
        param_group["params"] = [params] if isinstance(params, Tensor) else list(params)
        added = [p[1] if isinstance(p, tuple) else p for p in param_group["params"]]
        present = {p for group in self.param_groups for p in group["params"]}
        twice = [p for p in added if p in present]
        if twice:
            raise ValueError(f"parameters that are in the optimizer already: {_describe(twice, {})}")
        part = self.parts[name]
        param_group.setdefault("optimizer", part.param_groups[0]["optimizer"])
        part.add_param_group(param_group)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Step every part once.

        Args:
            closure: evaluates the model again and returns the loss; called once, before the parts step.

        Returns:
            What the closure returned; None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts.values():
            part.step()
        return loss

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load what ``state_dict()`` of an optimizer with the same parts returned.

        Raises:
            ValueError: the state is of other parts or other groups.
        """
        loaded: StateDict = {}

        def check(_: Optimizer, final: StateDict) -> None:
            self._check_same_parts(final)
            loaded.update(final)

        # The state dict as changed by the user's pre-hooks is at hand only between torch's own hooks.
        hooks = (
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(lambda _: self._reload_parts(loaded), prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _check_same_parts(self, state_dict: StateDict) -> None:
        saved = [(group.get(self.tag), group.get("optimizer")) for group in state_dict["param_groups"]]
        present = [(group[self.tag], group["optimizer"]) for group in self.param_groups]
        if saved != present:
            raise ValueError(
                f"the loaded state is of groups ({self.tag}, optimizer) {saved}, but this optimizer has "
                f"{present}; build it as the saved one was built"
            )

    def _reload_parts(self, state_dict: StateDict) -> None:
        """Let every part that loads in a way of its own (it keeps dtypes, say) load its share again."""
        for name, part in self.parts.items():
            if type(part).load_state_dict is Optimizer.load_state_dict:
                continue
            groups = [group for group in state_dict["param_groups"] if group[self.tag] == name]
            own = {key for group in groups for key in group["params"]}
            state = {key: value for key, value in state_dict["state"].items() if key in own}
            part.load_state_dict({"state": state, "param_groups": groups})
            self.state.update(part.state)
        # A part that loaded made new groups: these are the composite's now.
        fresh = {name: iter(part.param_groups) for name, part in self.parts.items()}
        self.param_groups = [next(fresh[group[self.tag]]) for group in self.param_groups]
        self._share_state()

    def _share_state(self) -> None:
        for part in self.parts.values():
            part.state = self.state
            if isinstance(part, CompositeOptimizer):
                part._share_state()

    def __getstate__(self) -> dict[str, Any]:
        parts = {name: (type(part), _attributes(part)) for name, part in self.parts.items()}
        return {**super().__getstate__(), "parts": parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Called by unpickling and copying with all of __getstate__, by torch's load_state_dict with groups
        # and state alone: either way the parts are linked to what is new.
        state = dict(state)
        copied: dict[str, tuple[type[Optimizer], dict[str, Any]]] = state.pop("parts", {})
        super().__setstate__(state)
        if copied:
            self.parts = {name: kind.__new__(kind) for name, (kind, _) in copied.items()}
        for name, part in self.parts.items():
            attributes = copied[name][1] if copied else {}
            groups = [group for group in self.param_groups if group[self.tag] == name]
            own: defaultdict[Tensor, Any] = defaultdict(dict)
            own.update({p: self.state[p] for group in groups for p in group["params"] if p in self.state})
            # Some optimizers (Adagrad) look into all of the state they get: first that is theirs alone.
            part.__setstate__({**attributes, "state": own, "param_groups": groups})
        self._share_state()


class FusedOptimizer(CompositeOptimizer):
    """Two optimizers as one: ``low`` for the low-level layers, ``high`` for the high-level ones.

    The groups of ``param_groups`` carry their half, ``"low"`` or ``"high"``, under ``"half"``, and the
    optimizer's name under ``"optimizer"``. A step is the two optimizers' own steps, nothing else: numbers are
    those of two optimizers used side by side, but under a gradient scaler an infinite gradient in one half
    skips both. See :class:`CompositeOptimizer` for the rest.

    Source: Kim & Moon, J. Inf. Process. Syst., 2025.

    Args:
        low: optimizer of the low-level layers.
        high: optimizer of the high-level layers; None where ``low`` has all of them.
        named_parameters: see :class:`CompositeOptimizer`.

    Raises:
        TypeError: see :class:`CompositeOptimizer`.
        ValueError: see :class:`CompositeOptimizer`.
    """

    tag = "half"

    def __init__(
        self,
        low: Optimizer,
        high: Optimizer | None = None,
        *,
        named_parameters: Iterable[tuple[str, Tensor]] | None = None,
    ) -> None:
        halves = {"low": low} if high is None else {"low": low, "high": high}
        super().__init__(halves, named_parameters=named_parameters)

    @property
    def low(self) -> Optimizer:
        """The optimizer of the low-level layers."""
        return self.parts["low"]

    @property
    def high(self) -> Optimizer | None:
        """The optimizer of the high-level layers; None where ``low`` has all of them."""
        return self.parts.get("high")

    @classmethod
    def split(
        cls, model: nn.Module, switch_layer: int | str, low: Factory, high: Factory | None = None
    ) -> FusedOptimizer:
        """Divide a model's trainable parameters at a switch layer of its layer map.

        Args:
            model: the model; parameters that require no gradient are left out.
            switch_layer: index or name of the last low-level layer, or ``"all"``: ``low`` for every layer.
            low: makes the optimizer of layers 0..switch_layer.
            high: makes the optimizer of the layers after it; not called at ``"all"``.

        Raises:
            InputError: there is no such layer, or nothing would remain for ``high``.
            TypeError: ``high`` is needed and missing, or see the class.
            ValueError: a factory left a parameter out or took none, or see the class.
        """
        # Optimizers know nothing of models, but for this convenience.
        from tune_fusion.models.layers import layer_map, resolve_switch

        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        layers = layer_map(model)
        index = resolve_switch(layers, switch_layer)
        if index == "all":
            return cls(low([p for _, p in named]), named_parameters=named)
        if high is None:
            raise TypeError(
                f"switch layer {switch_layer!r} needs a factory for high; only 'all' does without"
            )
        below = {p for layer in layers[: index + 1] for p in layer.parameters.values()}
        return cls(
            low([p for _, p in named if p in below]),
            high([p for _, p in named if p not in below]),
            named_parameters=named,
        )


# What torch's own __getstate__ leaves out for a reason: hooks are not copied, and a scheduler wraps the step.
_NOT_COPIED = ("_optimizer_", "step")


def _attributes(part: Optimizer) -> dict[str, Any]:
    """All of a part that a copy needs.

    torch's own ``__getstate__`` keeps groups, state and defaults alone, but some optimizers (such as
    pytorch_optimizer's) hold settings in attributes and do not work after a copy without them.
    """
    kept = {key: value for key, value in vars(part).items() if not key.startswith(_NOT_COPIED)}
    return {**kept, **part.__getstate__()}


def _check_parts(parts: Mapping[str, Optimizer], tag: str, named: Mapping[str, Tensor]) -> None:
    if not parts:
        raise ValueError("a composite optimizer needs at least one part, got none")
    for name, part in parts.items():
        if not isinstance(part, Optimizer):
            raise TypeError(f"{tag} {name!r} must be a torch optimizer, got {type(part).__name__}")
        closure = inspect.signature(part.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise TypeError(
                f"{tag} {name!r} is {type(part).__name__}, which evaluates the model several times a step "
                "and cannot share that with another optimizer; use one that steps without a closure"
            )
        if not any(group["params"] for group in part.param_groups):
            raise ValueError(f"{tag} {name!r} ({type(part).__name__}) has no parameters")
    names = {**_group_names(parts.values()), **{p: name for name, p in named.items()}}
    owned = [
        dict.fromkeys(p for group in part.param_groups for p in group["params"]) for part in parts.values()
    ]
    claims = Counter(p for params in owned for p in params)
    twice = [p for p, count in claims.items() if count > 1]
    if twice:
        raise ValueError(f"parameters that more than one {tag} would train: {_describe(twice, names)}")
    left_out = [p for p in named.values() if p.requires_grad and p not in claims]
    if left_out:
        raise ValueError(f"parameters that no {tag} would train: {_describe(left_out, names)}")


def _group_names(optimizers: Iterable[Optimizer]) -> dict[Tensor, str]:
    def pairs() -> Iterator[tuple[Tensor, str]]:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                yield from zip(group["params"], group.get("param_names", ()), strict=False)

    return dict(pairs())


def _describe(parameters: list[Tensor], names: Mapping[Tensor, str]) -> str:
    """The parameters' names, or shapes where they have none; the first five of many."""
    words = [names.get(p, f"one of shape {tuple(p.shape)}") for p in parameters]
    return ", ".join(words[:5]) + (f" and {len(words) - 5} more" if len(words) > 5 else "")
