import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vasa_hf.training.ema import ExponentialMovingAverage
from vasa_hf.training.loop import Player, checkpoints, learning_rate_at, train
from vasa_hf.training.options import LoopOptions


class Points(torch.utils.data.Dataset):
    """x and y = 2x - 1 with noise; sample `i` depends on `i` alone."""

    def __getitem__(self, index):
        x = np.random.default_rng([7, index]).standard_normal(3).astype(np.float32)
        return {"x": torch.from_numpy(x), "y": torch.from_numpy(2 * x - 1)}


def regression(modules, batch, step):
    noise = 0.01 * torch.randn_like(batch["x"])  # uses the global generator, as diffusion losses do
    loss = nn.functional.mse_loss(modules["net"](batch["x"] + noise), batch["y"])
    return loss, {"error": loss.detach().sqrt()}


def options(folder, **changes):
    values = dict(
        output=str(folder), max_steps=12, batch_size=4, warmup_steps=2, log_every=4, checkpoint_every=6, cpu=True
    )
    return LoopOptions(**{**values, "sample_every": 0, **changes})


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.1), nn.Tanh(), nn.Linear(8, 3))


def run(folder, net=None, **changes):
    net = net or make_net()
    return train(
        options(folder, **changes), {"net": net}, [Player("net", ("net",), regression, 1e-2)], Points(), ("net",)
    )


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_resume_equals_uninterrupted_run(tmp_path, accumulation):
    whole = run(tmp_path / "whole", gradient_accumulation_steps=accumulation)

    class InterruptionError(Exception):
        pass

    def interrupt(step, values):
        if step == 8:
            raise InterruptionError

    arguments = {"gradient_accumulation_steps": accumulation}
    with pytest.raises(InterruptionError):
        players = [Player("net", ("net",), regression, 1e-2)]
        train(
            options(tmp_path / "cut", **arguments), {"net": make_net()}, players, Points(), ("net",), on_log=interrupt
        )
    assert [path.name for path in checkpoints(tmp_path / "cut")] == ["checkpoint-00000006"]
    torch.manual_seed(123)  # nothing of the process' random state may matter
    net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.1), nn.Tanh(), nn.Linear(8, 3))
    resumed = run(tmp_path / "cut", net, resume=True, **arguments)

    assert resumed.step == whole.step == 12
    assert same(resumed.modules["net"].parameters(), whole.modules["net"].parameters())
    assert same(resumed.ema["net"].shadow.values(), whole.ema["net"].shadow.values())


def test_loss_falls_and_is_logged(tmp_path):
    state = run(tmp_path, max_steps=200, log_every=20, checkpoint_every=0)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(20, 201, 20))
    assert lines[-1]["net_loss"] < 0.1 * lines[0]["net_loss"]
    assert state.logs["net_loss"] == pytest.approx(lines[-1]["net_loss"])
    assert len(checkpoints(tmp_path)) == 1


def test_accumulated_micro_batches_equal_one_large_batch(tmp_path):
    def plain(modules, batch, step):
        return nn.functional.mse_loss(modules["net"](batch["x"]), batch["y"]), {}

    results = []
    for name, batch_size, accumulation in (("large", 8, 1), ("small", 2, 4)):
        torch.manual_seed(0)
        chosen = options(tmp_path / name, batch_size=batch_size, gradient_accumulation_steps=accumulation)
        state = train(chosen, {"net": nn.Linear(3, 3)}, [Player("net", ("net",), plain, 1e-2)], Points())
        results.append(state.modules["net"].weight)
    # Sums in another order, twelve Adam steps: float32 rounding alone.
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_players_of_a_gan_change_only_their_own_modules(tmp_path):
    torch.manual_seed(0)
    nets = {"generator": nn.Linear(3, 3), "discriminator": nn.Linear(3, 1), "frozen": nn.Linear(3, 3)}
    before = {name: [p.detach().clone() for p in net.parameters()] for name, net in nets.items()}
    seen = []

    def generator_loss(modules, batch, step):
        assert not any(p.requires_grad for p in modules["discriminator"].parameters())
        fake = modules["generator"](modules["frozen"](batch["x"]))
        batch["fake"] = fake.detach()
        seen.append("generator")
        return -modules["discriminator"](fake).mean(), {}

    def discriminator_loss(modules, batch, step):
        seen.append("discriminator")
        logits = modules["discriminator"](batch["y"]), modules["discriminator"](batch["fake"])
        return (1 - logits[0]).relu().mean() + (1 + logits[1]).relu().mean(), {}

    players = [
        Player("generator", ("generator",), generator_loss, 1e-2),
        Player("discriminator", ("discriminator",), discriminator_loss, 1e-2),
    ]
    state = train(options(tmp_path, max_steps=3), nets, players, Points(), ("generator",))
    assert seen == ["generator", "discriminator"] * 3
    assert same(before["frozen"], nets["frozen"].parameters())
    assert not same(before["generator"], nets["generator"].parameters())
    assert not same(before["discriminator"], nets["discriminator"].parameters())
    assert all(p.requires_grad for p in state.modules["discriminator"].parameters())


def test_sample_callback_sees_averaged_weights_and_training_keeps_its_own(tmp_path):
    seen = {}

    def on_sample(modules, step, folder):
        seen[step] = modules["net"][0].weight.detach().clone()
        assert not modules["net"].training

    players = [Player("net", ("net",), regression, 1e-2)]
    state = train(
        options(tmp_path, sample_every=6), {"net": make_net()}, players, Points(), ("net",), on_sample=on_sample
    )
    assert list(seen) == [6, 12]
    assert torch.equal(seen[12], state.ema["net"].shadow["0.weight"])
    assert not torch.equal(seen[12], state.modules["net"][0].weight)
    assert same(run(tmp_path / "without").modules["net"].parameters(), state.modules["net"].parameters())


def test_time_limit_ends_the_run_and_the_learning_rate(tmp_path):
    state = run(tmp_path, max_steps=10**9, max_minutes=0.02, checkpoint_every=0)
    assert 0.02 <= state.minutes < 0.2 and state.step > 1
    assert len(checkpoints(tmp_path)) == 1


def test_learning_rate_warms_up_and_ends_low():
    chosen = LoopOptions(warmup_steps=10, final_lr_ratio=0.1)
    assert learning_rate_at(0.0, 0, chosen) == pytest.approx(0.1)
    assert learning_rate_at(0.0, 9, chosen) == pytest.approx(1.0)
    assert learning_rate_at(0.5, 500, chosen) == pytest.approx(0.55)
    assert learning_rate_at(1.0, 1000, chosen) == pytest.approx(0.1)


def test_inverse_square_root_schedule():
    chosen = LoopOptions(warmup_steps=10, lr_schedule="inverse_sqrt")
    assert [learning_rate_at(0.0, step, chosen) for step in (0, 9, 39, 159)] == pytest.approx([0.1, 1.0, 0.5, 0.25])


def test_bf16_trains(tmp_path):
    state = run(tmp_path, mixed_precision="bf16", max_steps=200, log_every=20, checkpoint_every=0)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["net_loss"] < 0.5 * lines[0]["net_loss"]
    assert state.modules["net"][0].weight.dtype == torch.float32


def test_resume_without_checkpoint_says_so(tmp_path):
    with pytest.raises(ValueError, match="`resume`.*checkpoint"):
        run(tmp_path, resume=True)


def test_ema_forgets_the_start_and_reloads():
    net = nn.Linear(2, 2)
    average = ExponentialMovingAverage(net, decay=0.9)
    with torch.no_grad():
        net.weight.fill_(1.0)
    for _ in range(200):
        average.update(net)
    torch.testing.assert_close(average.shadow["weight"], torch.ones(2, 2), rtol=0, atol=1e-4)
    other = ExponentialMovingAverage(nn.Linear(2, 2), decay=0.9)
    other.load_state_dict(average.state_dict())
    assert other.updates == 200 and torch.equal(other.shadow["weight"], average.shadow["weight"])
    with pytest.raises(ValueError, match="`state`"):
        other.load_state_dict({"weight": torch.ones(2, 2), "ema.updates": torch.tensor(1)})


_TWO_PLAYERS = """
import os
import sys
import torch
from safetensors.torch import save_file
from torch import nn
from tests.training.test_loop import Points
from vasa_hf.training.loop import Player, train
from vasa_hf.training.options import LoopOptions

def generator_loss(modules, batch, step):
    fake = modules["generator"](batch["x"])
    batch["fake"] = fake.detach()
    return nn.functional.mse_loss(fake, batch["y"]) - 0.01 * modules["discriminator"](fake).mean(), {}

def discriminator_loss(modules, batch, step):
    real, fake = modules["discriminator"](batch["y"]), modules["discriminator"](batch["fake"])
    return (1 - real).relu().mean() + (1 + fake).relu().mean(), {}

torch.manual_seed(0)
nets = {"generator": nn.Linear(3, 3), "discriminator": nn.Linear(3, 1)}
losses = {"generator": generator_loss, "discriminator": discriminator_loss}
players = [Player(name, (name,), loss, 1e-2) for name, loss in losses.items()]
options = LoopOptions(sys.argv[1], max_steps=8, batch_size=int(sys.argv[2]), warmup_steps=2, cpu=True, sample_every=0)
state = train(options, nets, players, Points(), ("generator",))
if os.environ.get("RANK", "0") == "0":
    save_file({name: net.weight.detach() for name, net in state.modules.items()}, f"{sys.argv[1]}/weights.safetensors")
"""


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(tmp_path):
    (tmp_path / "train.py").write_text(_TWO_PLAYERS)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    weights = []
    for name, head, batch in (("two", launch, "4"), ("one", [sys.executable], "8")):
        command = [*head, str(tmp_path / "train.py"), str(tmp_path / name), batch]
        subprocess.run(command, check=True, env=environment, cwd=tmp_path, timeout=300, capture_output=True)
        weights.append(load_file(tmp_path / name / "weights.safetensors"))
    for name, value in weights[0].items():
        # The same sums in another order, eight Adam steps: float32 rounding alone.
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-5)
