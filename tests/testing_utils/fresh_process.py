"""Work in a process that has not imported the package, without the seconds that importing torch takes.

The first call starts a server that imports the libraries and nothing else; each call then runs in a new fork of it.
One server serves all tests of a worker.
"""

import importlib
import multiprocessing
import sys

import torch
from safetensors.torch import load_file, save_file

_LIBRARIES = ["numba", "torch", "diffusers.models.modeling_utils", "diffusers.pipelines.pipeline_utils"]
_LIBRARIES += ["safetensors.torch", "transformers", "PIL.Image"]


def run_in_fresh_process(function, *arguments, timeout=300):
    """Call a function of a test module that does not import `vasa_hf`; what it raises fails the test."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_LIBRARIES)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(sender, function, *arguments), daemon=True)
    process.start()
    sender.close()
    try:
        assert receiver.poll(timeout), f"{function.__name__} took more than {timeout} s"
        error = receiver.recv()
        process.join(timeout)
    except EOFError:
        process.join(timeout)
        raise AssertionError(f"{function.__name__} ended with exit code {process.exitcode}") from None
    finally:
        if process.is_alive():
            process.kill()
    assert error is None, error


def _report(sender, function, *arguments):
    import traceback

    try:
        assert "vasa_hf" not in sys.modules, "the process is not a fresh one"
        function(*arguments)
    except BaseException:
        sender.send(traceback.format_exc())
    else:
        sender.send(None)


def reload_model(module, name, folder, inputs, outputs, method, fields=()):
    """Load a saved model as a user does and save its result: a tensor, the first of several, or fields of the first."""
    model = getattr(importlib.import_module(module), name).from_pretrained(folder).eval()
    with torch.no_grad():
        result = getattr(model, method)(**load_file(inputs))
    result = result if torch.is_tensor(result) else result[0]
    results = {field: getattr(result, field) for field in fields} or {"result": result}
    save_file({key: value.contiguous() for key, value in results.items()}, outputs)


def reload_pipeline(name, folder, inputs, outputs, subject, options):
    """Load a saved pipeline by its public name and save what a call returns; `subject` None: an image of `inputs`."""
    pipe = getattr(importlib.import_module("vasa_hf"), name).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    tensors = load_file(inputs)
    generator = torch.Generator().manual_seed(3)
    out = pipe(tensors["image"] if subject is None else subject, tensors["audio"], generator=generator, **options)
    save_file({"frames": out.frames.contiguous(), "motion": out.motion.contiguous()}, outputs)
