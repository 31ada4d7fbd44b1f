import torch

from vasa_hf.geometry.keypoints import LIP_KEYPOINTS, emphasize_lips


def test_lips_go_further_from_rest_and_nothing_else_moves():
    torch.manual_seed(0)
    motion, rest = 0.1 * torch.randn(2, 20, 70), 0.1 * torch.randn(2, 70)
    result = emphasize_lips(motion, rest)
    lips = [3 * point + axis for point in LIP_KEYPOINTS for axis in range(3)]
    others = [channel for channel in range(70) if channel not in lips]
    assert torch.equal(result[..., others], motion[..., others])
    ratio = ((result - rest[:, None]) / (motion - rest[:, None]))[..., lips]
    assert ratio.min() > 1 and ratio.max() < 6
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio), rtol=1e-3, atol=1e-3)  # in the same direction
    assert torch.equal(emphasize_lips(rest[:, None], rest), rest[:, None])
    # A piece of a sequence gives the same with the largest distance given.
    largest = (motion - rest[:, None])[..., lips].square().sum(-1).amax(1)[:, None, None]
    torch.testing.assert_close(emphasize_lips(motion[:, :5], rest, largest), result[:, :5])
