import torch

from vasa_hf.geometry.quaternions import matrix_from_quaternion, quaternion_from_matrix, quaternion_multiply


def test_matrices_are_rotations_as_the_quaternion_product_defines_them():
    quats, points = torch.randn(50, 4, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64)
    matrix = matrix_from_quaternion(quats)
    unit = quats / quats.norm(dim=-1, keepdim=True)
    conjugate = unit * unit.new_tensor([1, -1, -1, -1])
    sandwich = quaternion_multiply(quaternion_multiply(unit, torch.nn.functional.pad(points, (1, 0))), conjugate)
    assert torch.allclose((matrix @ points[..., None])[..., 0], sandwich[..., 1:])
    assert torch.allclose(torch.linalg.det(matrix), torch.ones(50, dtype=torch.float64))


def test_product_is_the_composition():
    first, second = torch.randn(2, 50, 4, dtype=torch.float64)
    product = matrix_from_quaternion(quaternion_multiply(first, second))
    assert torch.allclose(product, matrix_from_quaternion(first) @ matrix_from_quaternion(second))


def test_quaternion_from_matrix_inverts_also_at_half_turns_with_finite_gradients():
    quats = torch.cat(
        [torch.randn(100, 4), torch.eye(4), torch.tensor([[1e-5, 1.0, 0, 0], [0, 0, 0.6, -0.8]])]
    ).double()
    matrix = matrix_from_quaternion(quats).requires_grad_()
    found = quaternion_from_matrix(matrix)
    assert torch.allclose(matrix_from_quaternion(found), matrix, atol=1e-9)
    found.square().sum(dim=0).dot(torch.arange(4.0, dtype=torch.float64)).backward()
    assert torch.isfinite(matrix.grad).all()
