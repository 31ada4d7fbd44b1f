"""What every saved model must do, as one mixin."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.testing_utils.fresh_process import reload_model, run_in_fresh_process


class ModelTesterMixin:
    """Subclasses give `model_class`, `make_config()`, `make_inputs(model)` and `bad_inputs(model)`.

    `make_inputs` returns keyword arguments for `method` (default `__call__`), whose first result is a tensor.
    `bad_inputs` returns pairs (name of the argument, keyword arguments) that must raise `ValueError`.
    """

    model_class = None
    method = "__call__"
    # Parameters that the inputs of `make_inputs` cannot reach, if any.
    unreached = ()

    def make_config(self):
        raise NotImplementedError

    def make_inputs(self, model):
        raise NotImplementedError

    def bad_inputs(self, model):
        return []

    def make_model(self):
        torch.manual_seed(0)
        model = self.model_class(**self.make_config()).eval()
        with torch.no_grad():  # parts that start at zero would hide broken paths
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        return model

    def run(self, model, inputs):
        result = getattr(model, self.method)(**inputs)
        return result if torch.is_tensor(result) else result[0]

    def test_save_and_load_in_a_fresh_process(self, tmp_path):
        model = self.make_model()
        inputs = self.make_inputs(model)
        model.save_pretrained(tmp_path / "model")
        assert not list((tmp_path / "model").glob("*.bin"))
        save_file({name: value.contiguous() for name, value in inputs.items()}, tmp_path / "inputs.safetensors")
        arguments = [self.model_class.__module__, self.model_class.__name__, str(tmp_path / "model")]
        files = [str(tmp_path / "inputs.safetensors"), str(tmp_path / "out.safetensors"), self.method]
        run_in_fresh_process(reload_model, *arguments, *files)
        with torch.no_grad():
            expected = self.run(model, inputs)
        # Another process may sum in another order with another number of threads.
        torch.testing.assert_close(load_file(tmp_path / "out.safetensors")["result"], expected, rtol=1e-4, atol=1e-5)

    def test_same_input_gives_same_output(self):
        model = self.make_model()
        inputs = self.make_inputs(model)
        with torch.no_grad():
            assert torch.equal(self.run(model, inputs), self.run(model, inputs))

    def test_gradient_reaches_every_parameter(self):
        model = self.make_model().train()
        result = self.run(model, self.make_inputs(model))
        (result * torch.randn_like(result)).sum().backward()
        missing = [
            name
            for name, parameter in model.named_parameters()
            if not name.startswith(self.unreached or ("no such name",))
            and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
        ]
        assert not missing

    def test_bad_shapes_raise_and_name_the_argument(self):
        model = self.make_model()
        for name, inputs in self.bad_inputs(model):
            with pytest.raises(ValueError, match=f"`{name}`"):
                self.run(model, inputs)

    def test_unknown_config_key_fails(self):
        with pytest.raises(TypeError):
            self.model_class(**self.make_config(), no_such_key=1)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_near_float32(self, dtype):
        model = self.make_model()
        inputs = self.make_inputs(model)
        cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
        with torch.no_grad():
            expected = self.run(model, inputs)
            result = self.run(model.to(dtype), cast)
        assert result.dtype == dtype
        # bfloat16 keeps 8 bits of mantissa; a tenth of the outputs' spread is its rounding through the layers.
        assert (result.float() - expected).abs().mean() < 0.1 * expected.std()
