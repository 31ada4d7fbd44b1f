"""The training loop that every stage shares, to be read from top to bottom.

A stage brings modules, a dataset and one or more players. A player is a loss together with the modules that this
loss may change: a plain model has one player, a GAN has two (generator, then discriminator), which take turns on every
batch. The loop brings accelerate (devices, mixed precision, gradient accumulation, several processes), the learning
rate, clipping, averaged weights, checkpoints, logs and sample sheets.

Resume equals an uninterrupted run because nothing random is carried over: sample `i` of the dataset must be a pure
function of `i`, and each micro-batch seeds its own random numbers from its number and the seed of the run.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from vasa_hf.training.ema import ExponentialMovingAverage
from vasa_hf.training.options import LoopOptions


@dataclass
class Player:
    """One loss and the modules it may change.

    Args:
        name (`str`): Name in logs.
        modules (`tuple[str, ...]`): Names of the modules this player optimises. All others are frozen in its turn.
        loss (`Callable`): `loss(modules, batch, step) -> (scalar loss, dict of scalars to log)`. `modules` maps every
            name to its module. What a player writes into `batch` the next player can read (detached fakes of a GAN).
        learning_rate (`float`): Peak learning rate.
        betas (`tuple[float, float]`): Of AdamW.
        weight_decay (`float`): Of AdamW, for matrices and kernels; vectors are not decayed.
    """

    name: str
    modules: tuple[str, ...]
    loss: Callable[[dict[str, nn.Module], dict[str, Any], int], tuple[Tensor, dict[str, Any]]]
    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01


@dataclass
class TrainingState:
    """What `train` returns: the modules (own weights), their averages, steps and minutes done, last logged values."""

    modules: dict[str, nn.Module]
    ema: dict[str, ExponentialMovingAverage]
    step: int = 0
    minutes: float = 0.0
    logs: dict[str, float] = dataclasses.field(default_factory=dict)


class _SampleOrder(Sampler[int]):
    """Indices first, first + 1, ...: the dataset itself decides what sample `i` is."""

    def __init__(self, first: int, last: int):
        self.first, self.last = first, last

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.last))

    def __len__(self) -> int:
        return self.last - self.first


def learning_rate_at(progress: float, step: int, options: LoopOptions) -> float:
    """Share of the peak learning rate: linear warm-up, then half a cosine down to `final_lr_ratio`, or 1 / sqrt."""
    warmup = min(1.0, (step + 1) / max(1, options.warmup_steps))
    if options.lr_schedule == "inverse_sqrt":
        return warmup * math.sqrt(max(1, options.warmup_steps) / max(1, options.warmup_steps, step + 1))
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return warmup * (options.final_lr_ratio + (1.0 - options.final_lr_ratio) * cosine)


def train(
    options: LoopOptions,
    modules: dict[str, nn.Module],
    players: list[Player],
    dataset: Dataset,
    ema_of: tuple[str, ...] = (),
    on_log: Callable[[int, dict[str, float]], None] | None = None,
    on_sample: Callable[[dict[str, nn.Module], int, Path], None] | None = None,
) -> TrainingState:
    """Train `modules` by the losses of `players`.

    Args:
        options (`LoopOptions`): See there.
        modules (`dict[str, torch.nn.Module]`): All modules, also those that no player changes (they are moved to the
            device and stay frozen).
        players (`list[Player]`): They take their turns on each batch in this order.
        dataset (`torch.utils.data.Dataset`): `dataset[i]` is a dict of tensors and a pure function of `i`, for any
            `i >= 0` (draw with `numpy.random.default_rng([seed, i])`).
        ema_of (`tuple[str, ...]`): Names of the modules to average. They carry the averaged weights
            while `on_sample` runs.
        on_log (`Callable`, *optional*): `on_log(step, values)` next to the log file.
        on_sample (`Callable`, *optional*): `on_sample(modules, step, folder)` every `sample_every` steps and at the
            end; runs in evaluation mode without gradients on the main process.

    Returns:
        `TrainingState`; `state.ema[name].copy_to(state.modules[name])` gives the weights to publish.
    """
    AcceleratorState._reset_state()  # a second run in one process may use another precision
    accelerator = Accelerator(
        mixed_precision=options.mixed_precision,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        cpu=options.cpu,
        log_with=None if options.report_to == "none" else options.report_to,
        project_dir=options.output,
    )
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    if options.report_to != "none":
        accelerator.init_trackers("vasa_hf", config=dataclasses.asdict(options))

    # Modules, optimisers, averages. Modules without a player are only moved.
    owned = {name for player in players for name in player.modules}
    for name in modules.keys() - owned:
        modules[name].to(accelerator.device).eval().requires_grad_(False)
    trainable = {
        name: [parameter for parameter in modules[name].parameters() if parameter.requires_grad] for name in owned
    }
    optimizers = {player.name: _optimizer(player, trainable) for player in players}
    wrapped = {name: accelerator.prepare(modules[name]) for name in sorted(owned)}
    optimizers = {name: accelerator.prepare(optimizer) for name, optimizer in optimizers.items()}
    averages = {name: ExponentialMovingAverage(modules[name], options.ema_decay) for name in ema_of}
    state = TrainingState(modules, averages)
    if options.resume:
        _load_checkpoint(accelerator, state, folder)

    loader = _loader(accelerator, options, dataset, state.step)
    start_time = time.monotonic() - 60.0 * state.minutes
    finished = state.step >= options.max_steps
    totals: dict[str, list[Tensor]] = {}
    for micro_batch, batch in enumerate(loader, start=state.step * options.gradient_accumulation_steps):
        set_seed((options.seed * 1_000_003 + micro_batch * 997 + accelerator.process_index) % 2**32)
        progress = state.step / options.max_steps
        if options.max_minutes is not None:
            progress = max(progress, state.minutes / options.max_minutes)
        for player in players:
            for group in optimizers[player.name].param_groups:
                group["lr"] = player.learning_rate * learning_rate_at(progress, state.step, options)

        # One micro-batch: every player has its turn. Only its own modules are wrapped (gradients averaged over the
        # processes) and unfrozen; accelerate skips the optimiser's step inside an accumulation.
        with accelerator.accumulate(*wrapped.values()):
            for player in players:
                for name in owned:
                    for parameter in trainable[name]:
                        parameter.requires_grad_(name in player.modules)
                    modules[name].train(name in player.modules)
                view = {**modules, **{name: wrapped[name] for name in player.modules}}
                with accelerator.autocast():
                    loss, values = player.loss(view, batch, state.step)
                accelerator.backward(loss)
                if accelerator.sync_gradients and options.max_grad_norm > 0:
                    parameters = [parameter for name in player.modules for parameter in trainable[name]]
                    norm = accelerator.clip_grad_norm_(parameters, options.max_grad_norm)
                    values = {**values, f"{player.name}_grad_norm": norm}
                optimizers[player.name].step()
                optimizers[player.name].zero_grad(set_to_none=True)
                for name, value in {f"{player.name}_loss": loss, **values}.items():
                    totals.setdefault(name, []).append(torch.as_tensor(value).detach())
        if not accelerator.sync_gradients:
            continue

        for name, average in state.ema.items():
            average.update(modules[name])
        state.step += 1
        state.minutes = (time.monotonic() - start_time) / 60.0
        finished = state.step >= options.max_steps
        if options.max_minutes is not None and _any_process(accelerator, state.minutes >= options.max_minutes):
            finished = True

        if state.step % options.log_every == 0 or finished:
            means = torch.tensor([float(sum(values)) / len(values) for values in totals.values()])
            means = accelerator.reduce(means.to(accelerator.device), "mean")  # over the processes
            state.logs = dict(zip(totals, means.tolist(), strict=True))
            totals = {}
            _log(accelerator, state, options, folder, on_log)
        if on_sample and (finished or (options.sample_every and state.step % options.sample_every == 0)):
            _sample(accelerator, state, folder, on_sample)
        if finished or (options.checkpoint_every and state.step % options.checkpoint_every == 0):
            _save_checkpoint(accelerator, state, folder)
        if finished:
            break

    accelerator.wait_for_everyone()
    for name in owned:
        state.modules[name] = accelerator.unwrap_model(wrapped[name], keep_fp32_wrapper=False).eval()
        for parameter in trainable[name]:
            parameter.requires_grad_(True)
    accelerator.end_training()
    return state


def _optimizer(player: Player, trainable: dict[str, list[nn.Parameter]]) -> torch.optim.Optimizer:
    parameters = [parameter for name in player.modules for parameter in trainable[name]]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": player.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=player.learning_rate, betas=player.betas)


def _loader(accelerator: Accelerator, options: LoopOptions, dataset: Dataset, first_step: int) -> DataLoader:
    samples_a_step = options.batch_size * options.gradient_accumulation_steps * accelerator.num_processes
    order = _SampleOrder(first_step * samples_a_step, options.max_steps * samples_a_step)
    loader = DataLoader(
        dataset,
        batch_size=options.batch_size,
        sampler=order,
        num_workers=options.num_workers,
        persistent_workers=options.num_workers > 0,
        pin_memory=accelerator.device.type == "cuda",
    )
    return accelerator.prepare(loader)


def _any_process(accelerator: Accelerator, condition: bool) -> bool:
    """Whether the condition holds on any process; all must stop at the same step."""
    if accelerator.num_processes == 1:
        return condition
    flag = torch.tensor([float(condition)], device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum").item() > 0)


def _log(accelerator: Accelerator, state: TrainingState, options: LoopOptions, folder: Path, on_log) -> None:
    if accelerator.is_main_process:
        line = {"step": state.step, "minutes": round(state.minutes, 3), **state.logs}
        with open(folder / "log.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        if on_log:
            on_log(state.step, state.logs)
    if options.report_to != "none":
        accelerator.log(state.logs, step=state.step)


def print_log(step: int, values: dict[str, float]) -> None:
    """Print a line of logs: what trainers give as `on_log`."""
    print(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()), flush=True)


@torch.no_grad()
def _sample(accelerator: Accelerator, state: TrainingState, folder: Path, on_sample) -> None:
    if accelerator.is_main_process:
        with ExitStack() as stack:
            for name, average in state.ema.items():
                stack.enter_context(average.apply(state.modules[name]))
            for module in state.modules.values():
                module.eval()
            on_sample(state.modules, state.step, folder)
    accelerator.wait_for_everyone()


def _save_checkpoint(accelerator: Accelerator, state: TrainingState, folder: Path) -> None:
    """Write `checkpoint-<step>` under a temporary name, rename it, then drop the older ones."""
    target, partial = folder / f"checkpoint-{state.step:08d}", folder / "checkpoint.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    if accelerator.is_main_process:
        for name, average in state.ema.items():
            tensors = {key: value.cpu().contiguous() for key, value in average.state_dict().items()}
            save_file(tensors, partial / f"ema_{name}.safetensors")
        (partial / "progress.json").write_text(json.dumps({"step": state.step, "minutes": state.minutes}))
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
        for old in checkpoints(folder)[:-1]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def _load_checkpoint(accelerator: Accelerator, state: TrainingState, folder: Path) -> None:
    found = checkpoints(folder)
    if not found:
        raise ValueError(f"`resume` expects a checkpoint-<step> folder in {str(folder)!r}, but there is none.")
    accelerator.load_state(str(found[-1]))
    for name, average in state.ema.items():
        average.load_state_dict(load_file(found[-1] / f"ema_{name}.safetensors", device=str(accelerator.device)))
    progress = json.loads((found[-1] / "progress.json").read_text())
    state.step, state.minutes = progress["step"], progress["minutes"]


def checkpoints(folder: str | Path) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first."""
    return sorted(path for path in Path(folder).glob("checkpoint-*") if (path / "progress.json").exists())
