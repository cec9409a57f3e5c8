"""What training needs besides PyTorch's own optimisers."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn


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


class RunningMean:
    """A network whose weights are the exponential running mean of another's; with no decay, that other network."""

    def __init__(self, network: nn.Module, decay: float):
        self.network = copy.deepcopy(network).requires_grad_(False) if decay else network
        self._decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the network's weights after this many steps; at first the mean is over a fourth of the steps."""
        if self._decay:
            weight = max(1 - self._decay, 4 / (step + 4))
            torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), weight)
