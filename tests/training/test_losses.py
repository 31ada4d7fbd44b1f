import torch
from torch.nn import functional as F

from vasa_hf.training import losses


def pictures(batch=2, size=32):
    torch.manual_seed(0)
    return torch.rand(batch, 3, size, size) * 2 - 1


def test_reconstruction_weights_choose_the_place():
    target, prediction = pictures(), pictures()
    prediction[:, :, :16] += 0.5
    weight = torch.zeros(2, 1, 32, 32)
    weight[:, :, 16:] = 1
    assert losses.reconstruction_loss(prediction, target, weight) == 0
    torch.testing.assert_close(losses.reconstruction_loss(prediction, target), torch.tensor(0.25))


def test_pyramid_ignores_brightness_but_not_blur():
    target = pictures()
    assert losses.pyramid_loss(target + 0.3, target) < 1e-6
    assert losses.pyramid_loss(F.avg_pool2d(target, 3, 1, 1), target) > 0.05


def test_perceptual_is_zero_only_for_equal_features():
    torch.manual_seed(0)
    net = torch.nn.Conv2d(3, 4, 3)
    features = lambda x: [net(x), net(x).relu()]  # noqa: E731
    target = pictures()
    assert losses.perceptual_loss(features, target, target) == 0
    assert losses.perceptual_loss(features, target.flip(3), target) > 0.01


def test_hinge_losses_against_closed_form():
    real, fake = [torch.tensor([[2.0, 0.5]])], [torch.tensor([[-2.0, 0.5]])]
    torch.testing.assert_close(losses.discriminator_loss(real, fake), torch.tensor(0.25 + 0.75))
    torch.testing.assert_close(losses.generator_loss(fake), torch.tensor(0.75))
    assert losses.feature_matching_loss([real], [real]) == 0


def test_contrastive_prefers_the_driver():
    torch.manual_seed(0)
    driving, others = torch.randn(4, 8), torch.randn(4, 5, 8)
    own = losses.motion_contrastive_loss(driving, driving, others)
    wrong = losses.motion_contrastive_loss(others[:, 0], driving, others)
    assert own < wrong


def test_gaze_loss_is_one_minus_cosine():
    a = torch.tensor([[0.0, 0.0]])
    b = torch.tensor([[0.3, 0.0]])
    torch.testing.assert_close(losses.gaze_loss(a, b), 1 - torch.tensor(0.3).cos())
    assert losses.gaze_loss(a, a) == 0


def test_consistency_and_cross_identity():
    a, b = pictures(), pictures().flip(2)
    assert losses.consistency_loss(a, a) == 0 and losses.consistency_loss(a, b) > 0
    identity = lambda x: x.mean((2, 3)) + x[:, :, 0, 0]  # noqa: E731
    assert losses.cross_identity_loss(identity, a, a).abs() < 1e-6
    assert losses.cross_identity_loss(identity, a, -a) > 1.9


def test_landmark_flow_against_identity_and_shift():
    axis = (torch.arange(64) + 0.5) / 32 - 1
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)[None]
    points = torch.rand(1, 10, 2) * 0.8 + 0.1
    assert losses.landmark_flow_loss(grid, points, points) < 1e-6
    # Everything comes from 4/256 further right: 4 pixels, smooth L1 = 4 - 0.5, in x alone.
    shifted = points + torch.tensor([4 / 256, 0.0])
    torch.testing.assert_close(losses.landmark_flow_loss(grid, points, shifted), torch.tensor(1.75), atol=1e-4, rtol=0)


def test_discriminator_learns_to_tell():
    torch.manual_seed(0)
    net = losses.MultiScalePatchDiscriminator(8, 2)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    real, fake = pictures(4), torch.zeros(4, 3, 32, 32)
    first = None
    for _ in range(20):
        loss = losses.discriminator_loss(net(real)[0], net(fake)[0])
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first
