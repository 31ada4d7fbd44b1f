import dataclasses
import json

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from tests.testing_utils.pipelines import BOX, make_audio, make_image, make_moda_components
from vasa_hf.data.clips import smooth_in_time
from vasa_hf.data.emotion_labels import class_numbers
from vasa_hf.data.keypoint_clips import NO_EMOTION, KeypointClips, KeypointData, KeypointShards, encode_clips
from vasa_hf.geometry.keypoints import KeypointMotion
from vasa_hf.media.video import VideoWriter
from vasa_hf.models.emotion_classifier import CLASSES
from vasa_hf.models.motion_transformer_moda import EMOTIONS, FUSIONS, ModaMotionTransformer
from vasa_hf.models.sync_expert import SyncExpert
from vasa_hf.pipelines.moda_talking_head import ModaTalkingHeadPipeline
from vasa_hf.training import moda_data
from vasa_hf.training.moda_data import LIP_CHANNELS, as_columns, lips_of
from vasa_hf.training.motion_samples import sample_motion
from vasa_hf.training.recipes import motion_transformer_moda as trainer
from vasa_hf.training.recipes import sync_expert_moda
from vasa_hf.training.recipes.motion_transformer_moda import ModaMotionOptions, flow_loss, sync_loss

WINDOW = 20
FER_AS_MODA = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
TINY = {"hidden_size": 96, "num_heads": 2, "num_four_stream": 1, "num_two_stream": 1, "num_single_stream": 1}


def make_data(lengths=(30, 12, 40, 90, 60)):
    """Clips whose lips follow the first audio channel, while the head turns slowly."""
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    audio = smooth_in_time(rng.standard_normal((offsets[-1], 8)), 1.0).astype(np.float32) * 2
    motion = 1e-3 * smooth_in_time(rng.standard_normal((offsets[-1], 70)), 2.0).astype(np.float32)
    motion[:, LIP_CHANNELS] += 0.01 * audio[:, :1] * np.linspace(-1, 1, 18, dtype=np.float32)
    motion[:, 63] += 1.3
    motion[:, 66] = 0.0
    motion[:, 67:] = 5 * smooth_in_time(rng.standard_normal((offsets[-1], 3)), 6.0)
    return KeypointData(
        torch.from_numpy(motion),
        torch.from_numpy(audio).view(-1, 2, 4).half(),
        torch.from_numpy(offsets),
        torch.from_numpy(rng.standard_normal((len(lengths), 63)).astype(np.float32)),
        torch.tensor([0, 8, 3, 5, 7][: len(lengths)]),
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "keypoint_data.safetensors"
    make_data().save(path)
    return str(path)


def options(prepared, output, **changes):
    trainer.PRESETS.setdefault("tiny", TINY)
    values = {
        "prepared": prepared,
        "output": str(output),
        "preset": "tiny",
        "window": WINDOW,
        "batch_size": 8,
        "max_steps": 4,
        "learning_rate": 3e-3,
        "ema_decay": 0.95,
        "warmup_steps": 10,
        "log_every": 2,
        "sample_every": 0,
        "cpu": True,
    }
    return ModaMotionOptions(**{**values, **changes})


@pytest.fixture(autouse=True)
def no_more_presets():
    yield
    trainer.PRESETS.pop("tiny", None)


def batch_of(dataset, numbers):
    samples = [dataset[i] for i in numbers]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


# Data


def test_samples_are_windows_of_one_clip_and_functions_of_their_number():
    data = make_data()
    dataset = KeypointClips(data, WINDOW)
    again = KeypointClips(data, WINDOW)
    again[3]
    for index in range(40):
        sample = dataset[index]
        assert all(torch.equal(value, again[index][name]) for name, value in sample.items())
        clip = int((data.keypoints == sample["keypoints"]).all(1).nonzero())
        start, stop = data.offsets[clip : clip + 2].tolist()
        rows = data.motion[start:stop]
        valid = sample["motion"][sample["frame_mask"]]
        first = int((rows == valid[0]).all(1).nonzero()[0])
        assert torch.equal(rows[first : first + len(valid)], valid)
        assert len(valid) == min(WINDOW, stop - start)
        assert torch.equal(sample["previous_motion"], rows[max(first - 1, 0)])
        assert torch.equal(
            sample["audio"][: len(valid)], data.audio[start + first : start + first + len(valid)].float()
        )
        assert sample["emotion"] == data.emotion[clip]


def test_conditions_are_dropped_as_often_as_the_paper_says():
    dataset = KeypointClips(make_data(), WINDOW)
    samples = [dataset[i] for i in range(600)]
    # Three standard deviations of 600 draws.
    assert abs(np.mean([bool(sample["drop_audio"]) for sample in samples]) - 0.5) < 0.062
    assert abs(np.mean([bool(sample["drop_emotion"]) for sample in samples]) - 0.1) < 0.037


def test_data_is_saved_and_wrong_shapes_are_named(tmp_path):
    data = make_data()
    data.save(tmp_path / "data.safetensors")
    again = KeypointData.load(tmp_path / "data.safetensors")
    assert all(torch.equal(getattr(again, item.name), getattr(data, item.name)) for item in dataclasses.fields(data))
    for name in ("motion", "audio", "keypoints", "emotion"):
        with pytest.raises(ValueError, match=f"`{name}`"):
            dataclasses.replace(data, **{name: getattr(data, name)[..., :-1].flatten()})


def make_folder(tmp_path, lengths):
    """A pipeline folder of tiny real networks, and clips; the one named mute has no sound."""
    components = make_moda_components()
    for name in ("renderer", "audio_encoder", "audio_processor"):
        components[name].save_pretrained(tmp_path / "pipe" / name)
    (tmp_path / "data" / "clips").mkdir(parents=True)
    for i, (name, frames) in enumerate(lengths.items()):
        path = tmp_path / "data" / "clips" / f"{name}.mp4"
        sound = None if name == "mute" else (make_audio(frames / 25, seed=i), 16_000)
        with VideoWriter(path, 25, (64, 64), sound, provenance=False) as writer:
            for frame in range(frames):
                writer.write(np.roll(make_image(seed=i, size=(64, 64)), frame, axis=1))
    return components


def test_a_renderer_reads_motion_and_an_encoder_sound(tmp_path):
    components = make_folder(tmp_path, {"a": 14, "mute": 9})
    (tmp_path / "data" / "emotions.csv").write_text("clip,emotion\nmute,sadness\n")
    encode_clips(tmp_path / "pipe", [tmp_path / "data"], tmp_path / "keypoints", cpu=True)
    found = KeypointData.load(tmp_path / "keypoints" / "clips-000000.safetensors")
    assert found.offsets.tolist() == [0, 14, 23] and found.emotion.tolist() == [NO_EMOTION, 6]
    assert found.motion.shape == (23, 70) and found.audio.shape == (23, 1, 16)
    assert found.motion[:14].std(0).max() > 1e-4 and not torch.equal(found.audio[2], found.audio[9])
    kp = found.keypoints[0].view(1, 21, 3)
    assert KeypointMotion.from_vector(found.motion[:1], kp).scale.item() == pytest.approx(found.motion[0, 63].item())
    sound = components["audio_processor"].load(str(tmp_path / "data" / "clips" / "a.mp4"))
    values = torch.from_numpy(np.pad(sound, (0, 14 * 640))[None, : 14 * 640])
    with torch.no_grad():
        expected = components["audio_processor"].window_features(components["audio_encoder"], values, 0, 14)[0]
    torch.testing.assert_close(found.audio[:14, 0].float(), expected, rtol=0, atol=5e-3)  # kept as float16

    (tmp_path / "data" / "emotions.csv").write_text("clip,emotion\nmute,glee\n")
    with pytest.raises(ValueError, match="glee"):
        encode_clips(tmp_path / "pipe", [tmp_path / "data"], tmp_path / "keypoints", cpu=True)


def test_a_classifier_labels_clips_that_no_file_does(tmp_path):
    """Any image classifier of transformers whose classes are emotions; those of the file go first."""
    make_folder(tmp_path, {"a": 14, "b": 9, "mute": 9})
    (tmp_path / "data" / "emotions.csv").write_text("clip,emotion\nmute,sadness\n")
    labels = dict(enumerate(["Angry", "happy", "none of them"]))
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", id2label=labels)
    torch.manual_seed(0)
    model = ResNetForImageClassification(config)
    with torch.no_grad():
        model.classifier[1].bias.copy_(torch.tensor([0.0, 9.0, 20.0]))  # happy, after what is no emotion
    model.save_pretrained(tmp_path / "classifier")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "classifier")
    classifier = {"emotion_classifier": str(tmp_path / "classifier")}
    encode_clips(tmp_path / "pipe", [tmp_path / "data"], tmp_path / "keypoints", cpu=True, **classifier)
    found = KeypointData.load(tmp_path / "keypoints" / "clips-000000.safetensors")
    assert [EMOTIONS[number] for number in found.emotion] == ["happiness", "happiness", "sadness"]
    with pytest.raises(ValueError, match="`output` holds motion of other clips"):
        encode_clips(tmp_path / "pipe", [tmp_path / "data"], tmp_path / "keypoints", cpu=True)
    assert class_numbers(CLASSES) == [EMOTIONS.index(name) for name in FER_AS_MODA]
    with pytest.raises(ValueError, match="`emotion_classifier` must have classes"):
        class_numbers(["cat", "dog", "happy dog"])


def test_files_of_two_processes_give_the_windows_of_one(tmp_path):
    make_folder(tmp_path, {"a": 14, "b": 9, "c": 11, "mute": 26})
    read = lambda name, *args, **kw: encode_clips(  # noqa: E731
        tmp_path / "pipe", [tmp_path / "data"], tmp_path / name, *args, cpu=True, **kw
    )
    read("one")
    for process in (1, 0):
        read("two", clips_per_file=1, process=process, num_processes=2)
    names = sorted(path.name for path in (tmp_path / "two").iterdir())
    assert names == [*(f"clips-{number:06d}.safetensors" for number in range(4)), "clips.json"]
    one = KeypointClips(KeypointData.load(tmp_path / "one" / "clips-000000.safetensors"), WINDOW)
    two = KeypointClips(KeypointShards(tmp_path / "two"), WINDOW)
    for index in range(12):
        assert all(torch.equal(value, two[index][name]) for name, value in one[index].items())
    # An interrupted run goes on: only what is missing is made.
    kept, lost = (tmp_path / "two" / f"clips-{number:06d}.safetensors" for number in (1, 2))
    before = kept.stat().st_mtime_ns
    lost.unlink()
    read("two", clips_per_file=1)
    assert lost.exists() and kept.stat().st_mtime_ns == before
    (tmp_path / "data" / "clips" / "mute.mp4").unlink()
    with pytest.raises(ValueError, match="`output` holds motion of other clips"):
        read("two", clips_per_file=1)


def test_training_from_videos_writes_a_pipeline_that_talks(tmp_path):
    components = make_folder(tmp_path, {"a": 30, "b": 12})
    pipe = ModaTalkingHeadPipeline(**components)
    pipe.save_pretrained(tmp_path / "pipe")
    made = options(None, tmp_path / "run", max_steps=2, pipeline=str(tmp_path / "pipe"), data=[str(tmp_path / "data")])
    made.timestep_spacing = "trailing"
    trainer.run(made)
    kept = KeypointShards(tmp_path / "run" / "keypoints")
    assert kept.offsets.tolist() == [0, 30, 42]
    prepared = dataclasses.replace(made, pipeline="", data=[], prepared=str(tmp_path / "run" / "keypoints"))
    assert torch.equal(trainer.make_dataset(prepared)[0]["motion"], trainer.make_dataset(made)[0]["motion"])
    pipe = ModaTalkingHeadPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert pipe.config.timestep_spacing == "trailing"
    pipe.set_progress_bar_config(disable=True)
    saved = ModaMotionTransformer.from_pretrained(tmp_path / "run" / "motion_transformer")
    assert torch.equal(pipe.motion_transformer.motion_mean, saved.motion_mean)
    options_of_call = {"box": BOX, "num_inference_steps": 2, "output_type": "np"}
    out = pipe(make_image(), make_audio(0.4), **options_of_call)
    assert len(out.frames) == 10 and np.isfinite(np.asarray(out.frames)).all()


# Losses


def test_loss_is_equations_4_and_5_over_real_frames():
    torch.manual_seed(1)
    prediction, target = torch.randn(2, 6, 5), torch.randn(2, 6, 5)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    prediction[1, 4:] = 99.0
    flow, first, second = [], [], []
    for b, length in enumerate((6, 4)):
        for channel in range(5):
            m, x = prediction[b, :length, channel], target[b, :length, channel]
            flow += [(x[i] - m[i]) ** 2 for i in range(length)]
            first += [((x[i] - x[i - 1]) - (m[i] - m[i - 1])) ** 2 for i in range(1, length)]
            second += [
                ((x[i + 1] - 2 * x[i] + x[i - 1]) - (m[i + 1] - 2 * m[i] + m[i - 1])) ** 2 for i in range(1, length - 1)
            ]
    mean = [torch.stack(values).mean() for values in (flow, first, second)]
    loss, parts = flow_loss(prediction, target, mask, torch.ones(5))
    torch.testing.assert_close(parts["flow"], mean[0])
    torch.testing.assert_close(parts["velocity"], mean[1] + mean[2])
    torch.testing.assert_close(loss, sum(mean))
    weighted = flow_loss(prediction, target, mask, torch.tensor([3.0, 0, 0, 0, 0]), 0.0)[0]
    torch.testing.assert_close(weighted, ((prediction - target)[..., 0][mask] ** 2).mean())


def test_features_become_columns_frame_by_frame():
    audio = torch.arange(2 * 3 * 2 * 4).view(2, 3, 2, 4).float()
    columns = as_columns(audio)
    assert columns.shape == (2, 12, 2)
    assert torch.equal(columns.view(2, 3, 8), audio.flatten(2))
    with pytest.raises(ValueError, match="`audio`"):
        as_columns(torch.zeros(1, 3, 1, 6))


@pytest.fixture(scope="module")
def expert(prepared, tmp_path_factory):
    """The lip-sync expert, trained on talk in which lips do follow the sound."""
    folder = tmp_path_factory.mktemp("alse")
    made = sync_expert_moda.AlseOptions(
        prepared=prepared,
        output=str(folder),
        window=WINDOW,
        frames=16,
        expert_window=5,
        hidden_size=16,
        embed_dim=8,
        dropout=0.0,
        batch_size=8,
        max_steps=120,
        learning_rate=5e-3,
        log_every=20,
        sample_every=0,
        ema_decay=0.9,
        cpu=True,
    )
    sync_expert_moda.run(made)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return folder / "sync_expert", log


def test_the_expert_learns_to_find_the_time(expert):
    _, log = expert
    # One of 12 windows: chance is 0.08.
    assert log[-1]["accuracy"] > 0.6 and log[-1]["accuracy"] > log[0]["accuracy"]


def test_sync_loss_knows_good_lips_and_pushes_near_ones(expert):
    model = SyncExpert.from_pretrained(expert[0]).eval().requires_grad_(False)
    batch = batch_of(KeypointClips(make_data((90, 90, 60)), WINDOW), range(6))
    real, audio, mask = batch["motion"], batch["audio"], batch["frame_mask"]
    heard = torch.ones(6, dtype=torch.bool)

    def loss_of(motion, threshold=0.4, heard=heard, mask=mask):
        return sync_loss(model, motion, real, audio, mask, heard, threshold)

    good, logs = loss_of(real)
    assert abs(logs["alse"]) < 0.05
    wrong = loss_of(real.flip(0))[1]["alse"]
    assert wrong > 0.5 and loss_of(real.flip(0))[0] < wrong / 2  # lambda is 0 for the worst
    assert loss_of(real.flip(0), threshold=10.0)[0] > 0.5

    # A step against the gradient brings the lips nearer to the sound, and moves nothing else.
    std = model.motion_std.mean()
    near = (real + 0.3 * std * torch.randn_like(real)).requires_grad_(True)
    before, logs = loss_of(near, threshold=10.0)
    before.backward()
    others = [channel for channel in range(70) if channel not in LIP_CHANNELS]
    assert not near.grad[..., others].any() and lips_of(near.grad).any()
    after = loss_of(near.detach() - 0.05 * std * near.grad / near.grad.std(), threshold=10.0)[0]
    assert after < before

    nobody = loss_of(real, heard=torch.zeros(6, dtype=torch.bool))
    assert nobody[0] == 0 and nobody[1]["alse_share"] == 0
    short = mask.clone()
    short[:, 3:] = False  # shorter than a window of the expert
    assert loss_of(real, mask=short)[0] == 0


# Training


def test_one_batch_can_be_overfitted():
    torch.manual_seed(0)
    dataset = KeypointClips(make_data(), WINDOW, drop_audio=0.0, drop_emotion=0.0)
    model = ModaMotionTransformer(audio_layers=2, audio_dim=4, window=WINDOW, overlap=4, **TINY)
    trainer.fit_statistics(model, dataset, 50)
    loss = trainer.FlowLoss(ModaMotionOptions(velocity_weight=0.0), model)
    batch = batch_of(dataset, range(4))
    optimizer, losses = torch.optim.Adam(model.parameters(), 3e-3), []
    for _ in range(150):
        torch.manual_seed(3)  # the same noise and times
        value = loss({trainer.NAME: model}, batch, 0)[0]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[1] < losses[0] and losses[-1] < 0.1 * losses[0]


def test_statistics_make_motion_and_sound_unit_sized():
    dataset = KeypointClips(make_data(), WINDOW)
    model = ModaMotionTransformer(audio_layers=2, audio_dim=4, window=WINDOW, overlap=4, **TINY)
    weight, bias = model.audio_embedder.proj1.weight.clone(), model.audio_embedder.proj1.bias.clone()
    trainer.fit_statistics(model, dataset)
    motion = model.normalize(make_data().motion)
    torch.testing.assert_close(motion[:, LIP_CHANNELS].std(0), torch.ones(18), rtol=0, atol=0.15)
    assert motion[:, 66].abs().max() < 1e-3
    audio = torch.cat([dataset[i]["audio"][dataset[i]["frame_mask"]] for i in range(300)])
    normalised = (audio - audio.mean(0)) / audio.std(0)
    expected = torch.nn.functional.linear(normalised.flatten(1), weight, bias)
    torch.testing.assert_close(model.audio_embedder.proj1(audio.flatten(1)), expected, rtol=1e-3, atol=1e-3)


def test_training_lowers_the_loss_and_the_saved_model_follows_the_audio(tmp_path, prepared, expert):
    arguments = {"max_steps": 250, "log_every": 25, "drop_audio": 0.1, "sync_expert": str(expert[0])}
    trainer.run(options(prepared, tmp_path, **arguments))
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["flow"] < 0.5 * log[0]["flow"] and log[-1]["velocity"] < log[0]["velocity"]
    assert log[-1]["alse"] < log[0]["alse"] and log[-1]["alse_share"] > 0
    assert (tmp_path / "samples-00000250.png").stat().st_size > 1000
    FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "scheduler")
    model = ModaMotionTransformer.from_pretrained(tmp_path / trainer.NAME).eval()
    assert model.config.mask_padding and model.config.overlap == 4

    batch = batch_of(KeypointClips(make_data(), WINDOW), range(1000, 1008))
    conditions = {name: batch[name] for name in ("audio", "emotion", "keypoints")}
    conditions["previous_motion"] = model.normalize(batch["previous_motion"])

    def likeness(audio):
        """Correlation of drawn and real lips."""
        generator, mask = torch.Generator().manual_seed(0), batch["frame_mask"]
        given = {**conditions, "audio": audio}
        drawn = sample_motion(
            model, FlowMatchEulerDiscreteScheduler(), given, mask, {"audio": 0.2}, generator=generator
        )
        lips = [motion[mask][:, LIP_CHANNELS[-1]] for motion in (batch["motion"], drawn)]
        return torch.corrcoef(torch.stack(lips))[0, 1]

    # After so few steps the lips follow their own sound roughly, and another's not at all.
    assert likeness(batch["audio"]) > 0.35 > 0.25 > likeness(batch["audio"].flip(0))


def test_resume_equals_uninterrupted_run(tmp_path, prepared, monkeypatch):
    arguments = {"checkpoint_every": 2, "max_steps": 4}
    whole = trainer.run(options(prepared, tmp_path / "whole", **arguments))

    def stop(step, values):
        raise KeyboardInterrupt

    monkeypatch.setattr("vasa_hf.training.saving.print_log", stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(options(prepared, tmp_path / "cut", **{**arguments, "log_every": 3}))
    monkeypatch.undo()
    resumed = trainer.run(options(prepared, tmp_path / "cut", resume=True, **arguments))
    for name, value in whole.modules[trainer.NAME].state_dict().items():
        assert torch.equal(value, resumed.modules[trainer.NAME].state_dict()[name]), name


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_ablation_trains_all_that_is_not_frozen(fusion):
    dataset = KeypointClips(make_data(), WINDOW)
    model = ModaMotionTransformer(audio_layers=2, audio_dim=4, window=WINDOW, overlap=4, fusion=fusion, **TINY)
    with torch.no_grad():  # parts that start at zero hide what lies behind them
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    trainer.freeze_unread(model)
    loss = trainer.FlowLoss(ModaMotionOptions(), model)
    loss({trainer.NAME: model}, batch_of(dataset, range(8)), 0)[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert bool(frozen) == (fusion == "four_stream")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("preset", {"preset": "large"}),
        ("save_dtype", {"save_dtype": "int8"}),
        ("fusion", {"fusion": "late"}),
        ("prepared", {"prepared": None}),
        ("priors", {"landmark_dynamics": "x.safetensors", "data": "x"}),
    ],
)
def test_bad_options_are_named(tmp_path, prepared, name, changes):
    with pytest.raises(ValueError, match=f"`{name}`"):
        trainer.run(options(**{"prepared": prepared, "output": tmp_path, **changes}))


def test_lips_are_those_of_liveportrait():
    assert LIP_CHANNELS == [18, 19, 20, 36, 37, 38, 42, 43, 44, 51, 52, 53, 57, 58, 59, 60, 61, 62]
    assert moda_data.lips_of(torch.arange(70.0)).tolist() == LIP_CHANNELS
