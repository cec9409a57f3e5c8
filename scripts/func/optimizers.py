"""What training needs besides PyTorch's own optimisers."""

from __future__ import annotations

import copy

import torch
from torch import nn


class KernelMuon(torch.optim.Muon):
    """Muon on convolution kernels, each seen as the matrix (first axis x all others) that it multiplies by."""

    def __init__(self, kernels: list[nn.Parameter], **settings):
        self._kernels = kernels
        # The matrices share the kernels' memory.
        super().__init__([nn.Parameter(kernel.data.view(len(kernel), -1)) for kernel in kernels], **settings)

    def step(self, closure=None):
        for kernel, matrix in zip(self._kernels, self.param_groups[0]["params"], strict=True):
            matrix.grad = kernel.grad.flatten(1)
        return super().step(closure)


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
