"""Windows cover every voxel, outputs blend back in place, and empty windows cost nothing."""

import itertools

import numpy as np
import pytest
import torch

from func.networks import devices
from func.networks.devices import computing
from func.networks.patches import count_patches, run_patches, tile_axis

PATCH, STRIDE = (8, 8, 8), (4, 4, 4)


class Counting(torch.nn.Module):
    """A network whose output depends on its inputs and their place in the window; it counts what it computes."""

    def __init__(self):
        super().__init__()
        self.computed = 0

    def forward(self, inputs):
        self.computed += len(inputs)
        ramp = torch.arange(inputs[0, 0].numel(), dtype=torch.float32).reshape(inputs.shape[2:]) / 1000
        return (inputs.prod(dim=1, keepdim=True) + 1) * ramp


def plain_loop(network, inputs, patch, stride):
    """The published procedure as one would write it down: pad both sides, run, add up, divide, crop."""
    shape = inputs.shape[1:]
    padded = [p + -(-max(n - p, 0) // s) * s for n, p, s in zip(shape, patch, stride, strict=True)]
    low = [(big - n) // 2 for big, n in zip(padded, shape, strict=True)]
    pads = [(at, big - n - at) for at, big, n in zip(low, padded, shape, strict=True)]
    volume = torch.from_numpy(np.pad(inputs.numpy(), [(0, 0), *pads]))
    total, count = torch.zeros(padded), torch.zeros(padded)
    for x, y, z in itertools.product(*(range(0, n - p + 1, s) for n, p, s in zip(padded, patch, stride, strict=True))):
        window = slice(x, x + patch[0]), slice(y, y + patch[1]), slice(z, z + patch[2])
        total[window] += network(volume[(slice(None), *window)][None])[0, 0]
        count[window] += 1
    x, y, z = (slice(at, at + n) for at, n in zip(low, shape, strict=True))
    return (total / count)[x, y, z]


def test_the_atlas_grid_is_tiled_the_published_way():
    x, y = tile_axis(182, 32, 16), tile_axis(218, 32, 16)
    assert (x.before, x.after, len(x.starts)) == (5, 5, 11)
    assert (y.before, y.after, len(y.starts)) == (3, 3, 13)
    assert count_patches((182, 218, 182)) == 11 * 13 * 11 == 1573


@pytest.mark.parametrize("shape", [(8, 8, 8), (12, 16, 20), (13, 9, 22), (3, 8, 11)])
def test_equal_weights_give_what_a_plain_loop_gives(shape):
    inputs = torch.rand(2, *shape)
    expected = plain_loop(Counting(), inputs, PATCH, STRIDE)
    torch.testing.assert_close(run_patches(Counting(), inputs, PATCH, STRIDE, batch_size=3)[0], expected)


@pytest.mark.parametrize("weighting", ["equal", "smooth"])
@pytest.mark.parametrize("shape", [(13, 9, 22), (3, 8, 11), (24, 24, 24)])
def test_blending_puts_every_voxel_back_in_its_place(weighting, shape):
    inputs = torch.rand(2, *shape)
    output = run_patches(lambda batch: batch[:, 1:], inputs, PATCH, STRIDE, weighting=weighting)[0]
    torch.testing.assert_close(output, inputs[1])


def test_patches_need_not_be_cubes():
    inputs = torch.rand(1, 20, 11, 17)
    for weighting in ("equal", "smooth"):
        output = run_patches(lambda batch: batch, inputs, (10, 4, 6), (5, 3, 6), weighting=weighting)[0]
        torch.testing.assert_close(output, inputs[0])


def test_smooth_windows_lie_inside_the_volume():
    axis = tile_axis(21, 8, 6, "smooth")
    assert (axis.before, axis.after, axis.starts) == (0, 0, (0, 6, 12, 13))
    assert tile_axis(5, 8, 6, "smooth").starts == (0,)


def test_smooth_weights_hide_what_a_network_does_at_the_border_of_its_window():
    def with_border_effect(batch):
        output = torch.zeros_like(batch)
        output[..., 0] = output[..., -1] = 1
        return output

    inputs = torch.ones(1, 8, 8, 48)
    equal, smooth = (
        run_patches(with_border_effect, inputs, (8, 8, 16), (8, 8, 8), weighting=weighting)[0][..., 1:-1]
        for weighting in ("equal", "smooth")
    )
    assert equal.max() == 0.5
    assert smooth.max() < 0.01


def test_windows_without_data_are_computed_once():
    inputs = torch.zeros(2, 24, 24, 24)
    inputs[:, 9:15, 9:15, 9:15] = torch.rand(2, 6, 6, 6)
    network = Counting()
    output = run_patches(network, inputs, PATCH, STRIDE)[0]
    assert count_patches((24, 24, 24), PATCH, STRIDE) == 125
    assert network.computed == 27 + 1
    torch.testing.assert_close(output, plain_loop(Counting(), inputs, PATCH, STRIDE))


def test_a_single_voxel_in_one_channel_is_data():
    inputs = torch.zeros(2, 8, 8, 24)
    inputs[1, 0, 7, 23] = 1e-6
    network = Counting()
    run_patches(network, inputs, PATCH, STRIDE)
    assert network.computed == 1 + 1


def test_ringing_below_what_float32_resolves_is_not_data():
    inputs = torch.zeros(2, 8, 8, 24)
    inputs[:, 2:6, 2:6, 2:6] = torch.rand(2, 4, 4, 4)
    ringing = inputs.clone()
    ringing[1, :, :, 8:] = -1e-8
    network, bare = Counting(), torch.nn.Conv3d(2, 1, 3, padding=1)
    run_patches(network, ringing, PATCH, STRIDE)
    assert network.computed == 2 + 1
    torch.testing.assert_close(
        run_patches(bare, ringing, PATCH, STRIDE)[0], run_patches(bare, inputs, PATCH, STRIDE)[0], rtol=0, atol=1e-7
    )


def test_the_same_call_gives_the_same_bits():
    inputs, network = torch.rand(2, 20, 20, 20), torch.nn.Conv3d(2, 1, 3, padding=1)
    first, second = (run_patches(network, inputs, PATCH, STRIDE, weighting="smooth")[0] for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad


def test_progress_counts_every_window():
    inputs = torch.zeros(1, 20, 20, 20)
    inputs[0, 10:] = 1
    counts = []
    run_patches(lambda batch: batch, inputs, PATCH, STRIDE, batch_size=5, progress=counts.append)
    assert sum(counts) == count_patches((20, 20, 20), PATCH, STRIDE)
    assert len(counts) > 2


def test_bfloat16_is_taken_where_the_processor_computes_in_it(monkeypatch):
    seen = []

    def network(batch):
        seen.append(torch.nn.functional.conv3d(batch, torch.ones(1, 1, 1, 1, 1)).dtype)
        return batch

    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(devices, "has_fast_bfloat16", lambda device, native=native: native)
        output = run_patches(network, torch.ones(1, 8, 8, 8), PATCH, STRIDE, precision="auto")[0]
        assert seen.pop() == dtype
        assert output.dtype == torch.float32


def test_float32_means_float32_on_gpus_and_leaves_their_settings_alone():
    before = torch.backends.cudnn.conv.fp32_precision
    with computing("cpu", "float32"):
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.backends.cudnn.conv.fp32_precision == before


def test_mistyped_choices_are_refused():
    with pytest.raises(ValueError, match="weighting"):
        tile_axis(20, 8, 4, "gaussian")
    with pytest.raises(ValueError, match="precision"), computing("cpu", "half"):
        pass
