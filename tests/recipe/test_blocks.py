"""The blocks ``boost:`` and ``lines:`` of a recipe: what they become, and what is said of mistakes."""

from __future__ import annotations

import pytest

from fastmerge.checkpoint.layers import layouts
from fastmerge.errors import InvalidInput
from fastmerge.recipe import load

RECIPE = """
merge_method: {method}
base_model: org/base
models:
- model: org/one
- model: org/two
parameters: {{weight: 0.5}}
{blocks}
"""


def load_with(blocks, method="task_arithmetic"):
    return load(RECIPE.format(method=method, blocks=blocks))


def problems(blocks, method="task_arithmetic"):
    with pytest.raises(InvalidInput) as caught:
        load_with(blocks, method)
    return str(caught.value)


def test_blocks_become_parameters_of_the_method():
    recipe = load_with("lines: {alpha: 0.2, beta: 1}\nboost:\n  beta: [0.1, 0.3]\n  splitting: heads")
    assert recipe.method == "task_arithmetic+lines+boost"
    assert {name for name in recipe.parameters if "." in name} == {
        "boost.beta", "boost.splitting", "lines.alpha", "lines.beta",
    }  # fmt: skip
    assert recipe.parameters["boost.beta"].branches[0].value == (0.1, 0.3)
    assert load_with("boost: {}").method == "task_arithmetic+boost"
    assert load_with("").method == "task_arithmetic"


@pytest.mark.parametrize(
    ("blocks", "method", "message"),
    [
        ("boost: {betta: 0.2}", "ties", ":8:9: boost.betta: unknown key (did you mean 'beta'?)"),
        ("boost: {svd_thresh: 0.1}", "ties", "boost.svd_thresh: unknown key (did you mean 'beta'?)"),
        ("boost: {beta: 2}", "ties", "boost.beta: is 2, expected a number in [0, 1]"),
        ("boost: {matrices: mlp}", "ties", "boost.matrices: is 'mlp', expected one of attn_mlp, all"),
        ("boost:", "ties", "boost: is empty; write {} to take the defaults, or delete the key"),
        ("boost: true", "ties", "boost: is True, expected names and values"),
        (
            "boost: {}",
            "linear",
            "boost: linear does not add a merged delta to a base, which boost could change (delete",
        ),
        ("boost: {}", "ties_sb", "boost: ties_sb has it already; set its own parameters (beta, matrices"),
        ("lines: {alpha: 1}", "ties", "ties+lines needs a value for 'lines.beta' (add beta: under lines:)"),
        ("bost: {}", "ties", "bost: unknown key (did you mean 'boost'?)"),
        ("parameters2: {}", "ties+boost", "unknown merge method 'ties+boost'"),
    ],
)
def test_mistakes(blocks, method, message):
    assert message in problems(blocks, method)


def test_a_block_among_the_parameters_is_sent_to_the_top():
    text = RECIPE.format(method="ties", blocks="").replace("{weight: 0.5}", "{weight: 0.5, boost: 1, boost.beta: 0.1}")
    with pytest.raises(InvalidInput) as caught:
        load(text)
    assert "parameters.boost: is not a parameter (write boost: at the top level of the recipe)" in str(caught.value)
    assert "boost.beta: is not a parameter (write boost: at the top" in str(caught.value)


def test_layouts():
    names = ["model.embed_tokens.weight", "lm_head.weight"]
    names += [f"model.layers.{i}.mlp.experts.{k}.up_proj.weight" for i in range(4) for k in range(2)]
    names += [f"vision_tower.layers.{i}.attn.proj.weight" for i in range(2)]
    config = {
        "text_config": {"num_attention_heads": 8, "num_key_value_heads": 2},
        "vision_config": {"num_heads": 16},
    }
    found = layouts(names, config)
    expert = found["model.layers.3.mlp.experts.1.up_proj.weight"]
    assert (expert.layer, expert.layers, expert.heads, expert.kv_heads) == (3, 4, 8, 2)
    tower = found["vision_tower.layers.1.attn.proj.weight"]
    assert (tower.layer, tower.layers, tower.heads, tower.kv_heads) == (1, 2, 16, 16)
    assert found["lm_head.weight"].layer is None and found["lm_head.weight"].layers == 0
    assert layouts(names)["lm_head.weight"].heads == 0
    assert layouts(names, {"n_head": 12})["lm_head.weight"].kv_heads == 12
