"""Optimisers, learning rate and running mean of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class KernelMuon(torch.optim.Optimizer):
    """Muon on convolution kernels, each seen as the matrix (first axis x all others) that it multiplies by.

    Momentum whose every step is made orthogonal (Jordan et al., https://kellerjordan.github.io/posts/muon, 2024),
    scaled to move a kernel as far as Adam would at the same rate. PyTorch's own does the same, but always in bfloat16,
    which on a processor without it took as long as the network's own forward and backward pass.

    Args:
        kernels: of two or more axes.
        lr: learning rate, as for Adam.
        momentum: share of the old direction in the new one (Nesterov's).
    """

    def __init__(self, kernels: Iterable[nn.Parameter], lr: float, momentum: float = 0.95):
        super().__init__(kernels, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """One step along the gradients that the kernels hold."""
        for group in self.param_groups:
            for kernel in group["params"]:
                gradient = kernel.grad.flatten(1)
                past = self.state[kernel].setdefault("momentum_buffer", torch.zeros_like(gradient))
                past.lerp_(gradient, 1 - group["momentum"])
                direction = _orthogonal(gradient.lerp(past, group["momentum"]))
                rate = 0.2 * max(direction.shape) ** 0.5 * group["lr"]
                kernel.add_(direction.to(kernel.dtype).reshape(kernel.shape), alpha=-rate)


def _orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix whose singular values are all about 1: five steps of Newton and Schulz, for speed."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    if matrix.is_cuda:
        wide = wide.bfloat16()
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(5):
        square = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(square, square, square, beta=-4.775, alpha=2.0315), wide, beta=3.4445)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


def make_optimizers(network: nn.Module, settings: Mapping) -> list[torch.optim.Optimizer]:
    """The published recipe's Adam; or Muon on the kernels and Adam, at half the rate, on the last layer and biases.

    Each group's ``relative_rate`` says what it takes of the learning rate of a step (see ``set_learning_rate``).
    """
    rate = settings["learning_rate"]
    if settings["recipe"] == "babyai":
        optimizers = [torch.optim.Adam(network.parameters(), lr=rate)]
    else:
        named = dict(network.named_parameters())
        kernels = {name for name, parameter in named.items() if parameter.dim() == 5 and not name.startswith("head.")}
        optimizers = [
            KernelMuon([named[name] for name in named if name in kernels], rate),
            torch.optim.Adam([named[name] for name in named if name not in kernels], lr=rate / 2, betas=(0.9, 0.99)),
        ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["relative_rate"] = group["lr"] / rate
    return optimizers


def learning_rate_at(step: int, steps: int, settings: Mapping) -> float:
    """Linear warm-up, then half a cosine from the peak to the floor."""
    warm_up = min(1.0, (step + 1) / max(settings["warm_up"], 1))
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return settings["learning_rate"] * warm_up * (settings["floor"] + (1 - settings["floor"]) * cosine)


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Give every group of parameters its share of the learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["relative_rate"]


def mean_of_weights(network: nn.Module, decay: float) -> AveragedModel:
    """A network whose weights are the exponential running mean of those of ``network``; with a decay of 0, the same.

    ``update_parameters(network)`` takes in the weights after a step. At first the mean is over a fourth of the steps,
    so that the fresh weights are soon forgotten.
    """

    def updated(mean: Tensor, weights: Tensor, steps: Tensor) -> Tensor:
        return mean.lerp(weights, torch.clamp(4 / (steps + 4), min=1 - decay))

    averaged = AveragedModel(network, avg_fn=updated)
    averaged.update_parameters(network)  # the first update copies
    return averaged.requires_grad_(False)
