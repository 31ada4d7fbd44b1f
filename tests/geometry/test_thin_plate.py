import torch

from vasa_hf.geometry.thin_plate import thin_plate_flow, warp_by_landmarks


def test_thin_plate_moves_landmarks_and_holds_the_border():
    source = torch.tensor([[[0.4, 0.5], [0.6, 0.5], [0.5, 0.7]]])
    target = source + torch.tensor([0.05, 0.0])
    flow = (thin_plate_flow(source, target, 101, 1e-6) + 1) / 2
    for before, after in zip(source[0], target[0], strict=True):
        x, y = (after * 101).long().tolist()
        torch.testing.assert_close(flow[0, y, x], before, atol=0.01, rtol=0)
    assert (flow[0, 0, :, 1]).abs().max() < 0.02
    image = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    torch.testing.assert_close(warp_by_landmarks(image, source, source), image, atol=0.01, rtol=0)
    assert (warp_by_landmarks(image, source, target) - image).abs().max() > 0.03
