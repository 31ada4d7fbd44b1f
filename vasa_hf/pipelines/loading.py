"""Loading and saving a pipeline: embedded weights by name, safetensors alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open

from vasa_hf.hub import resolve


class EmbeddedWeightsMixin:
    """`from_pretrained` and `save_pretrained` of a `DiffusionPipeline`; to be named before it among the bases.

    Attributes:
        model_name (`str`, *optional*): Last part of the name that the pipeline was loaded by.
    """

    model_name: str | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> EmbeddedWeightsMixin:
        """Load a pipeline from the embedded weights, a folder, or the Hub.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Name of embedded weights (`"vasa-small"`, no network), a folder, or a repository of the Hub.
            **kwargs: As for `DiffusionPipeline.from_pretrained`. `dtype` defaults to float32.

        Raises:
            ValueError: If there is no such model, if its weights are of another class or shape than it says, or if
                `use_safetensors=False` is asked for: other weights are never loaded here.
        """
        if not kwargs.setdefault("use_safetensors", True):
            raise ValueError("`use_safetensors` must be True: pickled weights are never loaded, got False.")
        try:
            pipeline = super().from_pretrained(resolve(pretrained_model_name_or_path), **kwargs)
            for name, component in pipeline.components.items():
                check_weights(name, component)
        except torch.OutOfMemoryError:
            raise
        except (OSError, RuntimeError, SafetensorError, ValueError) as error:
            name = os.fspath(pretrained_model_name_or_path)
            raise ValueError(
                f"`pretrained_model_name_or_path` must hold a whole pipeline, got {name!r}: {error}"
            ) from error
        if not kwargs.keys() & {"dtype", "torch_dtype"}:  # older versions of diffusers know the second name only
            for component in pipeline.components.values():
                if isinstance(component, torch.nn.Module):
                    component.float()
        pipeline.model_name = Path(os.fspath(pretrained_model_name_or_path)).name
        return pipeline

    def save_pretrained(
        self, save_directory: str | os.PathLike, safe_serialization: bool = True, **kwargs: Any
    ) -> None:
        """Save all components as safetensors; see `DiffusionPipeline.save_pretrained`.

        Raises:
            ValueError: If `safe_serialization=False` is asked for.
        """
        if not safe_serialization:
            raise ValueError("`safe_serialization` must be True: weights are saved as safetensors only, got False.")
        super().save_pretrained(save_directory, safe_serialization=True, **kwargs)


def check_weights(name: str, component: Any) -> None:
    """Raise `ValueError` if a model of ours was loaded from files that lack some of its weights.

    diffusers only logs it, and goes on with random numbers: weights of another class would pass.
    """
    folder = Path(component.config.get("_name_or_path") or "") if isinstance(component, ModelMixin) else Path()
    saved = set()
    for file in folder.glob("*.safetensors") if folder.name else ():
        with safe_open(file, "pt") as weights:
            saved.update(weights.keys())
    missing = sorted(component.state_dict().keys() - saved) if saved else []
    if missing:
        raise ValueError(
            f"`{name}` must find all weights of {type(component).__name__} in {str(folder)!r}, but {len(missing)} are "
            f"not there, such as {missing[0]!r}."
        )
