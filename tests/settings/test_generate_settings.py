"""Which generation settings decide what a video shows, and which leave it fresh."""

import json

import pytest

from wan_orchestration.settings.checks import CheckSettings
from wan_orchestration.settings.checks import decisive as all_decisive
from wan_orchestration.settings.defaults import default_in_words
from wan_orchestration.settings.generate import GenerateSettings

# For each setting a value other than its default.
DECIDING = {
    "mode": "replace",
    "clip_len": 81,
    "refert_num": 5,
    "sampling_steps": 21,
    "shift": 4.0,
    "sample_solver": "unipc",
    "pose_strength": 0.5,
    "face_strength": 1.5,
    "prompt": "A dance",
    "seed": 1,
    "lora": ["style.safetensors"],
    "use_relighting_lora": True,
    "quantization": "fp8",
    "vae_dtype": "bfloat16",
    "step_cache": 2,
    "trim_last_clip": True,
    "color_match": "lab",
    "retakes": 2,
    "dtype": "float32",
    "tf32": False,
}
# These change the order or the place of the computation, and so the rounding only.
NOT_DECIDING = {
    "attention": "flash3",
    "cfg_parallel": True,
    "compile": "on",
    "device": "cpu",
    "offload_model": False,
    "placement": "offload",
    "tiled_fallback": "fail",
}
GUIDANCE = {"guide_scale": 2.0, "negative_prompt": "dogs"}
ONLY_FILLS_OTHERS = {"preset", "model"}
OF_ANIMATE_2 = {"variant", "prompt_ref", "empty_slots", "driving_cache", "driving_cache_fp8"}


def decisive(**settings: object) -> dict[str, object]:
    return GenerateSettings.model_validate(settings).decisive()


def test_each_setting_is_known_to_decide_or_not():
    """Put a new setting into one of the tables above; until then, `decisive` counts it."""
    assert {*DECIDING, *NOT_DECIDING, *GUIDANCE} | ONLY_FILLS_OTHERS | OF_ANIMATE_2 == {*GenerateSettings.model_fields}


@pytest.mark.parametrize("name", DECIDING)
def test_settings_that_decide(name):
    assert decisive(**{name: DECIDING[name]}) != decisive()


@pytest.mark.parametrize("name", NOT_DECIDING)
def test_settings_that_do_not_decide(name):
    changed = GenerateSettings.model_validate({name: NOT_DECIDING[name]})
    assert changed != GenerateSettings()
    assert changed.decisive() == decisive()


@pytest.mark.parametrize("name, value", [("attention", "sage"), ("placement", "tiled")])
def test_values_that_decide_of_settings_that_do_not(name, value):
    assert decisive(**{name: value}) != decisive()
    assert decisive(attention="sage") != decisive(placement="tiled")


def test_guidance_decides_where_it_is_on():
    assert decisive(guide_scale=0.5, negative_prompt="dogs") == decisive(guide_scale=1.0)
    assert decisive(guide_scale=2.0) != decisive()
    assert decisive(guide_scale=2.0) != decisive(guide_scale=3.0)
    assert decisive(**GUIDANCE) != decisive(guide_scale=2.0)


def test_thresholds_decide_with_retakes_only():
    """Without retakes, `decisive` is as it was before there were any, so that videos stay fresh."""
    strict, usual = CheckSettings(seam=1.0), CheckSettings()
    once, again = GenerateSettings(), GenerateSettings(retakes=1)
    assert all_decisive(once, strict) == all_decisive(once, usual) == once.decisive()
    assert "retakes" not in once.decisive()
    assert all_decisive(again, strict) != all_decisive(again, usual)
    assert all_decisive(again, CheckSettings(skeleton=0.1)) == all_decisive(again, usual)


def test_a_preset_decides_by_what_it_fills_in():
    assert decisive(preset="balanced") == decisive(step_cache=2, trim_last_clip=True) != decisive()
    assert decisive(preset="balanced", step_cache=0, trim_last_clip=False) == decisive()


def test_what_decides_is_json():
    """It is hashed as JSON, and compared with what was stored as JSON."""
    settings = decisive(lora=["style.safetensors:0.5"], **GUIDANCE)
    assert json.loads(json.dumps(settings)) == settings


def test_later_settings_are_left_out_at_their_defaults():
    """Otherwise an update of this program would make every video stale."""
    assert decisive(pose_strength=1, face_strength=1.0) == decisive()
    assert not {"pose_strength", "face_strength"} & decisive().keys()


def test_defaults_that_depend_on_the_family_are_said():
    assert default_in_words(GenerateSettings, "clip_len") == "77; of animate-2: 81"
    assert default_in_words(GenerateSettings, "guide_scale") == "1.0; of animate-2: 1.0 (distilled), 3.0 (base)"
    assert default_in_words(GenerateSettings, "seed") == "42"
