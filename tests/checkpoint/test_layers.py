"""Which stack of layers is the language model's, in models of many kinds."""

from __future__ import annotations

import pytest

from fastmerge.checkpoint.layers import belongs_before_layers, find_stacks, split_layer, stack_layers

TEXT = {"num_hidden_layers": 4}
HALVES = {"encoder_layers": 3, "decoder_layers": 5}


def stacks(config, **counts):
    """Return the stacks of a model: ``a__b=(layers, tensors)`` stands for the stack ``a.b``."""
    names = [
        f"{stack.replace('__', '.')}.{i}.part{k}.weight"
        for stack, (layers, tensors) in counts.items()
        for i in range(layers)
        for k in range(tensors)
    ]
    return find_stacks([split_layer(name) for name in names], config)


@pytest.mark.parametrize(
    ("config", "main", "layers", "others"),
    [
        # LLaVA 1.6, Qwen2-VL (flat and nested), Phi-3.5-vision, Mllama, Gemma 3, InternVL, MiniCPM-V, DeepSeek-VL2.
        ({"text_config": TEXT}, "language_model__model__layers", 4, {"vision_tower__encoder__layers": (6, 16)}),
        (TEXT, "model__layers", 4, {"visual__blocks": (8, 12)}),
        ({"text_config": TEXT}, "model__language_model__layers", 4, {"model__visual__blocks": (8, 12)}),
        (TEXT, "model__layers", 4, {"model__vision_embed_tokens__img_processor__layers": (6, 16)}),
        (
            {"text_config": TEXT, "vision_config": {"num_hidden_layers": 4}},
            "language_model__model__layers",
            4,
            {"vision_model__transformer__layers": (4, 16), "vision_model__global_transformer__layers": (2, 16)},
        ),
        ({"llm_config": TEXT}, "language_model__model__layers", 4, {"vision_model__encoder__layers": (4, 16)}),
        (TEXT, "llm__model__layers", 4, {"vpm__encoder__layers": (7, 16), "apm__layers": (4, 16)}),
        ({"language_config": TEXT}, "language__model__layers", 4, {"vision__blocks": (7, 16)}),
        # Audio, speech and several towers.
        ({"text_config": TEXT}, "language_model__model__layers", 4, {"audio_tower__layers": (9, 16)}),
        (
            {"thinker_config": {"text_config": TEXT}, "talker_config": {"num_hidden_layers": 4}},
            "thinker__model__layers",
            4,
            {f"{name}__layers": (4, 16) for name in ("thinker__audio_tower", "thinker__visual", "talker__model")},
        ),
        (TEXT, "backbone_model__layers", 4, {"depth_decoder__model__layers": (4, 16)}),
        ({"text_config": TEXT}, "language_model__model__decoder__layers", 4, {"qformer__encoder__layer": (4, 16)}),
        # A name that is not known: the number of layers decides, then what is called a text model.
        ({"text_config": TEXT}, "model__layers", 4, {"model__patches__blocks": (6, 16)}),
        ({"text_config": TEXT}, "text_model__layers", 4, {"patch_model__layers": (4, 16)}),
        (TEXT, "model__layers", 4, {"encoder__blocks": (4, 16)}),
        # Layers that predict further ahead.
        (TEXT, "model__layers", 4, {"mtp__layers": (1, 12), "model__mtp_layers": (2, 12)}),
        # No config, and models of one kind.
        (None, "model__layers", 4, {"vision_tower__layers": (6, 16)}),
        ({"num_hidden_layers": 6}, "vit__encoder__layer", 6, {}),
        ({"num_layers": 4}, "transformer__encoder__layers", 4, {"transformer__vision__transformer__layers": (6, 16)}),
    ],
)  # fmt: skip
def test_the_language_model_is_the_main_stack(config, main, layers, others):
    for order in (others | {main: (layers, 9)}, {main: (layers, 9)} | others):
        found = stacks(config, **order)
        assert (found.main, found.layers, found.beyond, found.holes) == (main.replace("__", "."), layers, 0, ())
        assert found.counts == {name.replace("__", "."): count for name, (count, _) in order.items()}
        assert found.halves is None


@pytest.mark.parametrize(
    ("config", "encoder", "decoder"),
    [
        ({"num_layers": 3, "num_decoder_layers": 5}, "encoder__block", "decoder__block"),
        (HALVES | {"num_hidden_layers": 3}, "model__encoder__layers", "model__decoder__layers"),
        (HALVES, "s__encoder__wrapped_encoder__layers", "s__decoder__wrapped_decoder__layers"),
    ],
)  # fmt: skip
def test_encoder_and_decoder(config, encoder, decoder):
    names = [name.replace("__", ".") for name in (encoder, decoder)]
    found = stacks(config, **{encoder: (3, 9), decoder: (5, 12)})
    assert found.counts == {names[0]: 3, names[1]: 5}
    assert found.halves == tuple(names)
    assert [stack_layers(config, name)[1] for name in names] == [3, 5]
    assert found.beyond == 0


def test_layers_beyond_those_that_the_config_counts():
    found = stacks({"num_hidden_layers": 4, "num_nextn_predict_layers": 2}, model__layers=(6, 9))
    assert (found.layers, found.beyond) == (4, 2)
    assert stacks({"num_hidden_layers": 8}, model__layers=(6, 9)).layers == 6


def test_a_tower_counts_its_own_layers():
    config = {"text_config": TEXT, "vision_config": {"depth": 9}, "audio_config": {"encoder_layers": 7}}
    assert stack_layers(config, "visual.blocks") == (("vision_config", "depth"), 9)
    assert stack_layers(config, "audio_tower.layers") == (("audio_config", "encoder_layers"), 7)
    assert stack_layers(config, "qformer.layers") is None
    assert stacks(config, visual__blocks=(9, 4)).beyond == 0


def test_holes_and_numbers_of_other_things():
    names = [f"model.layers.{i}.mlp.weight" for i in (0, 1, 3)] + ["model.blocks.999999999.weight", "head.7.weight"]
    found = find_stacks([split_layer(name) for name in names])
    assert (found.main, found.layers, found.holes) == ("model.layers", 4, (2,))
    assert found.counts == {"model.layers": 4}


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("model.embed_tokens.weight", True),
        ("transformer.wte.weight", True),
        ("vision_tower.post_layernorm.weight", True),
        ("visual.merger.mlp.0.weight", True),
        ("multi_modal_projector.linear_1.weight", True),
        ("audio_tower.ln_post.weight", True),
        ("model.norm.weight", False),
        ("lm_head.weight", False),
        ("embed_out.weight", False),
        ("mtp.embed_tokens.weight", False),
    ],
)
def test_what_lies_before_the_layers(name, before):
    assert belongs_before_layers(name) is before
