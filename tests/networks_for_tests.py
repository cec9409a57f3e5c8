"""Networks that tests reconstruct with, and a reconstruction in one call."""

import nibabel as nib
import torch

from func.networks.weights import Weights
from func.reconstruction.reconstructor import Reconstructor
from func.scans.case import Case


class Unchanged(torch.nn.Module):
    """A network that proposes the T2w it is given."""

    def forward(self, inputs):
        return inputs[:, 1:2]


def weights_of(network):
    """What ``load_weights`` would give for a file that held this network."""
    return Weights("compact", network.eval(), sha256="0" * 64)


def reconstruct(t1, t2, weights, geometry=None, sidecar=None, raw=None, **settings):
    """The reconstruction of one case whose sidecar states a slice geometry; settings are the Reconstructor's."""
    if geometry:
        sidecar = geometry.to_sidecar(float(nib.affines.voxel_sizes(t2.affine)[geometry.axis]))
    return Reconstructor(weights, **settings).reconstruct(Case.of(t1, t2, sidecar), raw)
