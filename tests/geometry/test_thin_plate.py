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


def test_batches_do_not_depend_on_the_number_of_threads():
    """Several threads once broke the batched solver: rows must equal rows solved alone."""
    torch.manual_seed(0)
    source = torch.rand(12, 162, 2)
    target = source + 0.01 * torch.randn_like(source)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        flow = thin_plate_flow(source, target, 8, 1e-2)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(flow[3:4], thin_plate_flow(source[3:4], target[3:4], 8, 1e-2), atol=1e-3, rtol=0)
