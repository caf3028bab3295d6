"""What an optimizer's step costs, on the parameters of the papers' two models.

``python benchmarks/optimizers.py [--json FILE]``: HN_Adam's kernel against torch's fused AMSGrad and against
HN_Adam without its kernel; FusedOptimizer against its two halves stepped alone. Medians of ratios over
interleaved rounds, with as many threads as torch takes by itself.
"""

import torch
from measuring import Figure, interleaved, median_ratio, medians, run

from tune_fusion import FusedOptimizer, HNAdam, build_model
from tune_fusion.optim import registry

MODELS = {"tf_efficientnetv2_s": 3, "vit_base_patch16_224": 5}
"""The models, each with a switch layer in its middle."""
ROUNDS = 15


def parameters(model, device):
    """Copies of the model's parameters on a device, with gradients of a usual size."""
    copies = [torch.nn.Parameter(p.detach().clone().to(device)) for p in model.parameters()]
    return with_gradients(copies)


def with_gradients(params):
    generator = torch.Generator().manual_seed(0)
    for p in params:
        p.grad = (1e-3 * torch.randn(p.shape, generator=generator)).to(p.device)
    return params


def steps_of(model, device):
    """The step of each single optimizer, by name; all step the same parameters."""
    params = parameters(model, device)
    optimizers = {
        "fused AMSGrad": torch.optim.Adam(params, amsgrad=True, fused=True),
        "AMSGrad": torch.optim.Adam(params, amsgrad=True, foreach=True),
        "HN_Adam": HNAdam(params),
        "HN_Adam, Λ0 3.5": HNAdam(params, lambda0=3.5),
        "HN_Adam, root": HNAdam(params, second_moment="root"),
        "HN_Adam without kernel": HNAdam(params, fused=False),
    }
    return {name: optimizer.step for name, optimizer in optimizers.items()}


def step_figures(name, seconds, target, how="", note=""):
    """What each step takes, and HN_Adam's beside AMSGrad's; `how` ends the figures' names."""
    figures = [
        Figure(f"{name}: {optimizer}{how}", 1000 * value, "ms/step", runs=len(seconds[optimizer]))
        for optimizer, value in medians(seconds).items()
    ]
    for optimizer in ("HN_Adam", "HN_Adam, Λ0 3.5", "HN_Adam, root"):
        ratio, runs = median_ratio(seconds, optimizer, "fused AMSGrad"), len(seconds[optimizer])
        label = f"{name}: {optimizer} / fused AMSGrad{how}"
        figures.append(Figure(label, ratio, "x", target, runs=runs, note=note))
    return figures


def measure_fusion(name, model, switch_layer):
    with_gradients(list(model.parameters()))
    halves = {"low": registry.factory("hn_adam_root", {}), "high": registry.factory("sgd", {"momentum": 0.9})}
    fused = FusedOptimizer.split(model, switch_layer, **halves)
    low, high = (halves[half](fused.parts[half].param_groups[0]["params"]) for half in ("low", "high"))

    def alone():
        low.step()
        high.step()

    seconds = interleaved({"fusion": fused.step, "halves": alone}, ROUNDS)
    ratio = median_ratio(seconds, "fusion", "halves")
    return [Figure(f"{name}: FusedOptimizer / its halves alone", ratio, "x", 1.05, runs=ROUNDS)]


def measure():
    figures = []
    for name, switch_layer in MODELS.items():
        model = build_model(name)
        seconds = interleaved(steps_of(model, torch.device("cpu")), ROUNDS)
        figures += step_figures(name, seconds, 2.0, note="on a CPU")
        figures += measure_fusion(name, model, switch_layer)
    return figures


if __name__ == "__main__":
    run(f"optimizer steps, {torch.get_num_threads()} threads", __doc__, measure)
