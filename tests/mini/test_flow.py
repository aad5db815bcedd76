"""Training gives the transformer what the engine gives it, and what was trained is what the loader opens."""

import numpy as np
import torch

from mini import samples
from mini.export import write_snapshot
from mini.scene import Scene, scene
from wan_orchestration.engine.conditioning import to_tensor
from wan_orchestration.engine.models import Models
from wan_orchestration.families.animate.animator import Animator, SegmentInput
from wan_orchestration.preprocess.geometry import crop_face
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.weights.snapshot import open_snapshot


def drawn(start, scene: Scene, replace: bool) -> samples.Sample:
    """A batch of one for the scene, as the cache holds it."""
    character = samples.describe_character(start.codec, start.models().image_encoder(), scene, replace)
    return {name: value[None] for name, value in (samples.describe_motion(start.codec, scene) | character).items()}


def spy(transformer) -> list[tuple]:
    """Inputs and output of each of its steps from now on."""
    seen, stock = [], transformer.denoise

    def denoise(*inputs):
        copies = [value.clone() if isinstance(value, torch.Tensor) else value for value in inputs]
        flow = stock(*inputs)
        seen.append((*copies, flow.clone()))
        return flow

    transformer.denoise = denoise
    return seen


def engine_inputs(models: Models, scene: Scene, replace: bool, guide: torch.Tensor | None) -> tuple:
    animator = Animator(
        models,
        GenerateSettings(clip_len=17, sampling_steps=1, refert_num=guide.shape[1] if guide is not None else 1),
        scene.reference(),
        128,
        128,
        (),
    )
    seen = spy(animator.transformer)
    faces = [scene.face(t) for t in scene.frames]
    stack = {
        "pose": np.stack([scene.pose(t) for t in scene.frames]),
        "face": np.stack([crop_face(face, (0, 0, *face.shape[1::-1])) for face in faces]),
    }
    if replace:
        stack["background"] = np.stack([scene.background(t) for t in scene.frames])
        stack["mask"] = np.stack([np.repeat(scene.mask(t)[..., None] * 255, 3, axis=2) for t in scene.frames])
    animator.animate(animator.condition(SegmentInput(**stack), guide), lambda done: None)
    del animator.transformer.denoise
    return seen[0]


def test_the_trainee_sees_what_the_engine_gives(start, tmp_path):
    trainee = start.trainee().eval()
    vae = start.models().vae()
    start.codec.install(vae)
    write_snapshot(
        tmp_path / "snapshot", start.base, dict(trainee.transformer.named_parameters()), dict(vae.named_parameters())
    )
    one = scene(5, 17)
    video = to_tensor(np.stack([one.truth(t) for t in one.frames]))[0]
    models = Models(open_snapshot(tmp_path / "snapshot"), torch.device("cpu"), torch.float32)
    for replace, guides in ((False, 0), (True, 5)):
        guide = video[:, :guides] if guides else None
        latents, timestep, y, pose, branch, flow = engine_inputs(models, one, replace, guide)
        seen = spy(trainee.transformer)
        clip = drawn(start, one, replace)
        if guides:
            clip["video"] = start.codec.encode(video)[None]
        torch.manual_seed(0)
        with torch.no_grad():
            trainee.loss(clip, timestep / 1000, latents, guides, False, wear=0.0)
        del trainee.transformer.denoise
        _, _, own_y, own_pose, own_branch, _ = seen[0]
        torch.testing.assert_close(own_y, y, atol=0.06, rtol=0.02)
        torch.testing.assert_close(own_pose, pose, atol=0.06, rtol=0.02)
        torch.testing.assert_close(own_branch.motion, branch.motion, atol=0.06, rtol=0.02)
        with torch.no_grad():
            own_flow = trainee.transformer.denoise(latents, timestep, own_y, own_pose, own_branch)
        torch.testing.assert_close(own_flow, flow, atol=0.06, rtol=0.02)
