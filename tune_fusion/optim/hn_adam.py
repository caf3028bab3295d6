"""HN_Adam: Adam with an adaptive norm that turns into AMSGrad where the norm falls below 2.

Reyad, Sarhan & Arafa, "A modified Adam algorithm for deep neural network optimization", Neural Computing
and Applications, 2023, doi 10.1007/s00521-023-08568-z. The equations stand in `adaptive_norm`; here are the
options, the state, and the batching of many small tensors into few large ones.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, StateDict

from tune_fusion.optim.adaptive_norm import SecondMoment, direction
from tune_fusion.optim.hn_adam_backends import kernel_for
from tune_fusion.optim.hn_adam_statistics import HNAdamStatistics, Tally
from tune_fusion.optim.hn_adam_step import Options, fits

# Tensors up to this size are joined, up to this size; on a CPU torch works on as many in one thread.
_SMALL = 1 << 15
# On a CPU torch computes the last few elements of a tensor one by one, and their powers differ in the last
# bit. Joined tensors are filled up to this, so that a parameter's numbers do not depend on its company.
_LANES = 64
# State names: m, then v (or n) and its running maximum, which only the AMSGrad branch reads.
_FIRST = "exp_avg"
_SECOND: dict[str, tuple[str, str]] = {
    "paper": ("exp_avg_power", "max_exp_avg_power"),
    "root": ("exp_avg_norm", "max_exp_avg_norm"),
}
_SIXTEEN_BIT = (torch.float16, torch.bfloat16)


class _Entry(NamedTuple):
    """One parameter (or a flat piece of one) and what its update reads and writes."""

    owner: Tensor
    """The whole parameter."""
    param: Tensor
    grad: Tensor
    m: Tensor
    v: Tensor
    v_max: Tensor | None


class HNAdam(Optimizer):
    r"""HN_Adam: Adam whose power Λ adapts to each element, and AMSGrad where Λ < 2.

    Per element, with g the gradient and θ the parameter::

        m_t   = β1 m_{t-1} + (1-β1) g_t
        Λ_t   = Λ0 - |m_{t-1}| / max(|m_{t-1}|, |g_t|)           0/0 = 0
        v_t   = β2 v_{t-1} + (1-β2) |g_t|^{Λ_t}
        where Λ_t < 2:  v̂_t = max(v̂_{t-1}, v_t);  θ -= η m_t / (v̂_t^{1/Λ_t} + ε)
        elsewhere:                                θ -= η m_t / (v_t^{1/Λ_t} + ε)

    Source: Reyad, Sarhan & Arafa, Neural Comput. Appl. 2023, doi 10.1007/s00521-023-08568-z, equations (20),
    (23) and (30). There is no bias correction. Deviations: |m| in equation (20), where the paper prints m (a
    negative m would leave its range 1 <= Λ <= 4), and 0/0 = 0.

    ``second_moment="root"`` keeps n_t = (β2 n_{t-1}^Λ + (1-β2) |g_t|^Λ)^{1/Λ} instead of v_t and divides by
    n_t + ε (n̂_t + ε where Λ < 2). Both forms agree while Λ is constant. When Λ varies, v_t sums different
    powers and its steps may become very large near Λ0 = 2; the root form is equivariant to the gradient's
    scale and its steps stay near lr.

    Range: the root form works over the whole range of the dtype. In the paper form |g|^Λ may leave it. Below,
    v_t becomes 0 and ε alone divides (float32, Λ = 4: |g| < 1e-11, far below the default ε). Above (float32,
    Λ = 4: |g| > 4e9), v_t becomes and stays infinite, and the element does not move any more.

    Args:
        params: parameters, named parameters or parameter groups, as for every torch optimizer; real, dense,
            floating point. Every option below may differ by group.
        lr: η >= 0; a float or a tensor of one element.
        betas: (β1, β2), each in [0, 1).
        eps: ε >= 0. At 0 an element whose gradients were all 0 becomes NaN.
        lambda0: Λ0 in [2, 4]. The paper draws it from there. Only Λ0 in (2, 3) knows both branches (at 2
            almost every step is AMSGrad's, from 3 on none is), hence the default in its middle.
        weight_decay: >= 0.
        second_moment: "paper" or "root".
        decoupled_weight_decay: θ shrinks by lr * weight_decay (as in AdamW) instead of weight_decay * θ being
            added to the gradient.
        maximize: climb instead of descend.
        foreach: True joins small tensors and cuts large ones, so that every operation has a good size; False
            takes tensor after tensor; None is True on CPU and CUDA.
        fused: True steps in one pass of machine code whatever that can be had for (float32 on a CPU with a C
            compiler, `hn_adam_kernel`, or on a GPU with Triton, `hn_adam_gpu`), and the rest as `foreach`
            says; False steps everything so. Whichever way, the numbers agree to rounding, and do not depend
            on which parameters share the optimizer.

    State has the parameter's dtype, float32 for float16 and bfloat16 parameters; the step is then taken in
    float32 and rounded once. ``collect_statistics`` may be switched at any time: while it is True, steps are
    observed for :meth:`pop_statistics`.

    Raises:
        ValueError: an option is out of its range, or a parameter is complex or no floating point number.
        TypeError: an option has the wrong type.
    """

    collect_statistics: bool = False

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        lambda0: float = 2.5,
        weight_decay: float = 0.0,
        second_moment: SecondMoment = "paper",
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "lambda0": lambda0,
            "weight_decay": weight_decay,
            "second_moment": second_moment,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
        }
        _check_options(defaults)
        self._tally = Tally()
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; a group that cannot be used is refused as by the constructor."""
        super().add_param_group(param_group)
        try:
            group = self.param_groups[-1]
            _check_options(group)
            for p in group["params"]:
                _check_tensor(p)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Args:
            closure: evaluates the model again and returns the loss, which is then returned.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            entries = self._entries(group)
            left = self._step_fused(entries, group) if group["fused"] else entries
            for batch, join in _batches(left, group["foreach"]):
                self._update(batch, join, group)
        return loss

    def pop_statistics(self) -> dict[Tensor, HNAdamStatistics]:
        """What the steps taken with ``collect_statistics`` were like since the last call, by parameter.

        Parameters without a gradient in all of these steps are left out. Waits for each device once.
        """
        tally, self._tally = self._tally, Tally()
        return tally.read()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "collect_statistics": self.collect_statistics}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("fused", True)
        self.__dict__.setdefault("_tally", Tally())

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load what ``state_dict()`` returned; float32 state of 16-bit parameters stays float32."""
        loaded: StateDict = {}
        # torch casts state to the parameter's dtype; the uncast one is at hand only between its own hooks.
        hooks = (
            self.register_load_state_dict_pre_hook(lambda _, final: loaded.update(final)),
            self.register_load_state_dict_post_hook(lambda _: self._restore_precision(loaded), prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _restore_precision(self, loaded: StateDict) -> None:
        for group, saved in zip(self.param_groups, loaded["param_groups"], strict=True):
            for p, key in zip(group["params"], saved["params"], strict=True):
                if p.dtype in _SIXTEEN_BIT:
                    for name, value in loaded["state"].get(key, {}).items():
                        self.state[p][name] = value.to(device=p.device, dtype=torch.float32, copy=True)

    def _entries(self, group: dict[str, Any]) -> list[_Entry]:
        """The group's parameters that have gradients."""
        entries = []
        second, running_max = _SECOND[group["second_moment"]]
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                raise RuntimeError(
                    "HNAdam needs dense gradients, got a sparse one for a parameter of shape "
                    f"{tuple(p.shape)}; use torch.optim.SparseAdam for it"
                )
            state = self.state[p]
            m, v = _buffer(state, _FIRST, p), _buffer(state, second, p)
            v_max = _buffer(state, running_max, p) if group["lambda0"] < 3 else None
            entries.append(_Entry(p, p, p.grad, m, v, v_max))
        return entries

    def _step_fused(self, entries: list[_Entry], group: dict[str, Any]) -> list[_Entry]:
        """Step what kernels can; returns what is left."""
        lr = group["lr"]
        if isinstance(lr, Tensor) and not lr.is_cpu:
            return entries  # a kernel gets it from the host, which would have to wait for it
        left: list[_Entry] = []
        by_device: defaultdict[torch.device, list[_Entry]] = defaultdict(list)
        for entry in entries:
            if fits(entry[1:]):
                by_device[entry.param.device].append(entry)
            else:
                left.append(entry)
        decay, decoupled = group["weight_decay"], group["decoupled_weight_decay"]
        options = Options(
            lr=float(lr),
            betas=group["betas"],
            eps=group["eps"],
            lambda0=group["lambda0"],
            root=group["second_moment"] == "root",
            maximize=group["maximize"],
            coupled_decay=0.0 if decoupled else decay,
            decoupled_decay=decay if decoupled else 0.0,
        )
        for device, ours in by_device.items():
            kernel = kernel_for(device)
            if kernel is None:
                left += ours
                continue
            sums = kernel.step([entry[1:] for entry in ours], options, observe=self.collect_statistics)
            if sums is not None:
                owners = [entry.owner for entry in ours]
                self._tally.add(sums.unbind(), owners, [p.numel() for p in owners])
        return left

    def _update(self, batch: list[_Entry], join: bool, group: dict[str, Any]) -> None:
        owners, params, grads, *states = (
            list(column) for column in zip(*batch, strict=True) if column[0] is not None
        )
        lr = group["lr"]
        if isinstance(lr, Tensor):  # one on the host is read; another one is not waited for
            lr = lr.item() if lr.is_cpu else lr.reshape(())
        grads = _effective_gradients(params, grads, states[0][0].dtype, group, lr)
        g, m, v, *v_max = (_join(tensors) if join else tensors[0] for tensors in (grads, *states))
        step, lam = direction(
            g,
            m,
            v,
            v_max[0] if v_max else None,
            lambda0=group["lambda0"],
            betas=group["betas"],
            eps=group["eps"],
            second_moment=group["second_moment"],
        )
        step.mul_(lr)
        if join:
            for tensors, flat in zip(states, (m, v, *v_max), strict=True):
                torch._foreach_copy_(tensors, _split(flat, tensors))
        torch._foreach_sub_(params, _split(step, params) if join else [step])
        if self.collect_statistics:
            self._tally.add_norms(lam, owners, [p.numel() for p in params])


def _buffer(state: dict[str, Tensor], name: str, p: Tensor) -> Tensor:
    """The named state tensor, zeros at first, laid out in memory as the parameter is."""
    if name not in state:
        dtype = torch.float32 if p.dtype in _SIXTEEN_BIT else p.dtype
        state[name] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
    return state[name]


def _batches(entries: list[_Entry], foreach: bool | None) -> Iterator[tuple[list[_Entry], bool]]:
    """The entries by device and dtype, and whether to join them."""
    by_kind: defaultdict[tuple[torch.device, torch.dtype], list[_Entry]] = defaultdict(list)
    for entry in entries:
        by_kind[entry.param.device, entry.param.dtype].append(entry)
    for (device, _), alike in by_kind.items():
        join = device.type in ("cpu", "cuda") if foreach is None else foreach
        yield from _batched(alike, device) if join else (([entry], False) for entry in alike)


def _batched(entries: list[_Entry], device: torch.device) -> Iterator[tuple[list[_Entry], bool]]:
    """Small tensors to be joined (True), large ones in flat pieces (False).

    So temporaries stay in a CPU's cache, and a GPU's extra memory is bounded.
    """
    size = (1 << 16) * torch.get_num_threads() if device.type == "cpu" else 1 << 24
    small: list[_Entry] = []
    elements = 0
    for entry in entries:
        if entry.param.numel() > _SMALL:
            yield from (([piece], False) for piece in _pieces(entry, size))
            continue
        if elements + entry.param.numel() > _SMALL:
            yield small, True
            small, elements = [], 0
        small.append(entry)
        elements += entry.param.numel()
    if small:
        yield small, True


def _pieces(entry: _Entry, block: int) -> Iterator[_Entry]:
    """The entry in flat views of ``block`` elements; whole where its tensors differ in memory layout."""
    tensors = [tensor for tensor in entry[1:] if tensor is not None]
    if all(tensor.is_contiguous() for tensor in tensors):
        flat = [tensor.view(-1) for tensor in tensors]
    elif entry.param.ndim == 4 and all(t.is_contiguous(memory_format=torch.channels_last) for t in tensors):
        flat = [tensor.permute(0, 2, 3, 1).view(-1) for tensor in tensors]
    else:
        yield entry
        return
    for param, grad, m, v, *v_max in zip(*(torch.split(tensor, block) for tensor in flat), strict=True):
        yield _Entry(entry.owner, param, grad, m, v, v_max[0] if v_max else None)


def _effective_gradients(
    params: list[Tensor], grads: list[Tensor], dtype: torch.dtype, group: dict[str, Any], lr: float | Tensor
) -> list[Tensor]:
    """The gradients in the state's dtype, negated for ``maximize``; weight decay, coupled or not, is done."""
    grads = [grad.to(dtype) for grad in grads]
    if group["maximize"]:
        grads = list(torch._foreach_neg(grads))
    decay = group["weight_decay"]
    if decay and group["decoupled_weight_decay"]:
        torch._foreach_mul_(params, 1 - lr * decay)
    elif decay:
        grads = list(torch._foreach_add(grads, params, alpha=decay))
    return grads


def _join(tensors: list[Tensor]) -> Tensor:
    missing = -sum(tensor.numel() for tensor in tensors) % _LANES
    return torch.cat([*(tensor.reshape(-1) for tensor in tensors), tensors[0].new_zeros(missing)])


def _split(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    sizes = [tensor.numel() for tensor in like]
    pieces = torch.split(flat[: sum(sizes)], sizes)
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


def _check_tensor(p: Tensor) -> None:
    if not p.is_floating_point():
        kind = "a complex" if p.is_complex() else f"a {p.dtype}"
        raise ValueError(
            f"HNAdam needs real floating point parameters, got {kind} one of shape {tuple(p.shape)}; "
            "its norm is defined for real numbers only (train torch.view_as_real of a complex parameter)"
        )


def _check_options(options: dict[str, Any]) -> None:
    """Raise where an option of a group has the wrong type or is out of its range."""
    lr = options["lr"]
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"lr must hold one number, got a tensor of shape {tuple(lr.shape)}")
        lr = lr.item()
    _check_number("lr", lr, 0, math.inf, "0 <= lr")
    _check_number("eps", options["eps"], 0, math.inf, "0 <= eps")
    _check_number("weight_decay", options["weight_decay"], 0, math.inf, "0 <= weight_decay")
    _check_number("lambda0", options["lambda0"], 2, 4, "2 <= lambda0 <= 4 (the paper's range)")
    betas = options["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"betas must be a pair of numbers, got {betas!r}")
    for index, beta in enumerate(betas):
        _check_number(f"betas[{index}]", beta, 0, math.nextafter(1, 0), f"0 <= betas[{index}] < 1")
    if options["second_moment"] not in _SECOND:
        raise ValueError(f"second_moment must be 'paper' or 'root', got {options['second_moment']!r}")
    for flag in ("decoupled_weight_decay", "maximize", "fused"):
        if not isinstance(options[flag], bool):
            raise TypeError(f"{flag} must be True or False, got {options[flag]!r}")
    if not (options["foreach"] is None or isinstance(options["foreach"], bool)):
        raise TypeError(f"foreach must be True, False or None, got {options['foreach']!r}")


def _check_number(name: str, value: object, low: float, high: float, rule: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    # Infinity is no usable option even where no upper end is named.
    if not low <= value <= high or math.isinf(value):
        raise ValueError(f"{rule} must hold, got {name}={value}")
