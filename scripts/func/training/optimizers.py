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
        """One step along the gradients that the kernels hold: of all kernels of one shape at once."""
        for group in self.param_groups:
            by_shape: dict[tuple, list[nn.Parameter]] = {}
            for kernel in group["params"]:
                by_shape.setdefault((kernel.shape, kernel.device, kernel.dtype), []).append(kernel)
            for kernels in by_shape.values():
                gradients = [kernel.grad.flatten(1) for kernel in kernels]
                pasts = [
                    self.state[kernel].setdefault("momentum_buffer", torch.zeros_like(gradient))
                    for kernel, gradient in zip(kernels, gradients, strict=True)
                ]
                torch._foreach_lerp_(pasts, gradients, 1 - group["momentum"])
                directions = _orthogonal(torch.stack(torch._foreach_lerp(gradients, pasts, group["momentum"])))
                rate = 0.2 * max(directions.shape[1:]) ** 0.5 * group["lr"]
                steps = [step.reshape(kernels[0].shape) for step in directions.to(kernels[0].dtype)]
                torch._foreach_add_(kernels, steps, alpha=-rate)


def _orthogonal(matrices: Tensor) -> Tensor:
    """The nearest matrices whose singular values are all about 1, shape (count, m, n): five steps of Newton-Schulz."""
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    if matrices.is_cuda:
        wide = wide.bfloat16()
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        square = wide @ wide.mT
        step = torch.baddbmm(square, square, square, beta=-4.775, alpha=2.0315)
        wide = torch.baddbmm(wide, step, wide, beta=3.4445)
    return wide if matrices.shape[1] <= matrices.shape[2] else wide.mT


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


def learning_rate_at(step: int, done: float, settings: Mapping) -> float:
    """Linear warm-up over the first steps, then half a cosine from the peak to the floor.

    Args:
        step: from 0.
        done: share of the run that is done, by its steps or by the clock.
        settings: of the run.
    """
    warm_up = min(1.0, (step + 1) / max(settings["warm_up"], 1))
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
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

    def update(means: list[Tensor], weights: list[Tensor], steps: Tensor) -> None:
        torch._foreach_lerp_(means, weights, max(4 / (int(averaged.n_averaged) + 4), 1 - decay))

    averaged = AveragedModel(network, multi_avg_fn=update)
    averaged.update_parameters(network)  # the first update copies
    return averaged.requires_grad_(False)
