"""The architectures that a mixture of dense models can have: names of tensors, and the keys of their configs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...recipe.mixtures import Mixture
from ...recipe.types import Recipe
from ..findings import Findings
from ..models import OpenModel


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        name:     as recipes call it.
        spelled:  other spellings.
        bases:    the ``model_type`` of dense models that it can be made of.
        experts, router: names behind ``model.layers.N.``; ``{expert}`` is a number, ``{projection}`` one of three.
        projections: what gate, up and down are called in an expert.
        shared:   as ``experts``; empty where there is none.
        shared_gate: name of what scales the shared expert; empty where nothing does.
        least_shared, most_shared: how many shared experts a recipe must and may have.
        attention_bias: its attention may have biases.
        settings: keys of the config that are always the same.
    """

    name: str
    spelled: tuple[str, ...]
    bases: tuple[str, ...]
    experts: str
    router: str
    projections: Mapping[str, str] = field(default_factory=lambda: {p: f"{p}_proj" for p in ("gate", "up", "down")})
    shared: str = ""
    shared_gate: str = ""
    least_shared: int = 0
    most_shared: int = 0
    attention_bias: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


_ROUTED = "mlp.experts.{expert}.{projection}.weight"
_LOSS = {"output_router_logits": False, "router_aux_loss_coef": 0.001}
_EVERY_LAYER = {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}
_DEEPSEEK_CODE = "deepseek-ai/deepseek-moe-16b-base--"

FAMILIES = (
    Family(
        "mixtral", (), ("llama", "mistral"), "block_sparse_moe.experts.{expert}.{projection}.weight",
        "block_sparse_moe.gate.weight", {"gate": "w1", "up": "w3", "down": "w2"},
        settings={
            "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "router_jitter_noise": 0.0, **_LOSS,
        },
    ),
    Family(
        "deepseek", ("deepseek moe", "deepseek_moe"), ("llama", "mistral"), _ROUTED, "mlp.gate.weight",
        shared="mlp.shared_experts.{projection}.weight", most_shared=1, attention_bias=True,
        settings={
            "architectures": ["DeepseekForCausalLM"], "model_type": "deepseek", "first_k_dense_replace": 0,
            "moe_layer_freq": 1, "norm_topk_prob": True, "scoring_func": "softmax",
            "auto_map": {
                "AutoConfig": f"{_DEEPSEEK_CODE}configuration_deepseek.DeepseekConfig",
                "AutoModel": f"{_DEEPSEEK_CODE}modeling_deepseek.DeepseekModel",
                "AutoModelForCausalLM": f"{_DEEPSEEK_CODE}modeling_deepseek.DeepseekForCausalLM",
            },
        },
    ),
    Family(
        "qwen", ("qwen2", "qwen2_moe", "qwen2moe", "qwen moe"), ("qwen2",), _ROUTED, "mlp.gate.weight",
        shared="mlp.shared_expert.{projection}.weight", shared_gate="mlp.shared_expert_gate.weight",
        least_shared=1, most_shared=1, attention_bias=True,
        settings={"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", **_EVERY_LAYER, **_LOSS},
    ),
    Family(
        "qwen3", ("qwen3_moe", "qwen3moe", "qwen3 moe"), ("qwen3",), _ROUTED, "mlp.gate.weight", attention_bias=True,
        settings={"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", **_EVERY_LAYER, **_LOSS},
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """What the config of a mixture says: the architecture, its numbers of experts, and the rows of one's gate."""

    family: Family
    mixture: Mixture
    width: int
    shared_width: int


def family_of(recipe: Recipe, mixture: Mixture, base: OpenModel, findings: Findings) -> Family | None:
    """Return the architecture that a recipe names, or that fits its base; None after saying why there is none."""
    kind = (base.checkpoint.config or {}).get("model_type")
    names = ", ".join(family.name for family in FAMILIES)
    fitting = [family for family in FAMILIES if kind in family.bases]
    if mixture.architecture is None:
        family = next((f for f in fitting if f.least_shared <= len(mixture.shared) <= f.most_shared), None)
        family = family or next(iter(fitting), None)
        if family is None:
            what = f"model_type is {kind!r}, of which no mixture of experts is made"
            findings.problem(f"{base.checkpoint.folder}/config.json", what, f"use {_bases()}")
            return None
    else:
        asked = mixture.architecture.strip().lower()
        family = next((f for f in FAMILIES if asked in (f.name, *f.spelled)), None)
        if family is None:
            findings.problem(recipe.where("architecture"), f"is {mixture.architecture!r}, expected one of {names}")
            return None
        if family not in fitting:
            what = f"{family.name} is made of {' or '.join(family.bases)} models, but {base} is {kind!r}"
            findings.problem(recipe.where("architecture"), what, "leave it out, or choose another base")
            return None
    if not family.least_shared <= len(mixture.shared) <= family.most_shared:
        expected = "exactly one" if family.least_shared else "at most one" if family.most_shared else "no"
        what = f"lists {len(mixture.shared)} models; {family.name} has {expected} shared expert"
        where = recipe.where("shared_experts", "architecture", "experts")
        findings.problem(where, what, "change the list, or the architecture")
        return None
    return family


def mixture_config(config: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    """Return the config of a mixture that is built on a base with ``config``."""
    result = copy.deepcopy(dict(config))
    for key in ("auto_map", "mlp_bias", "pretraining_tp"):
        result.pop(key, None)
    result |= copy.deepcopy(dict(shape.family.settings))
    count, mixture = len(shape.mixture.experts), shape.mixture
    result["num_experts_per_tok"] = mixture.per_token
    if shape.family.name == "mixtral":
        result.pop("attention_bias", None)
        return result | {"num_local_experts": count}
    result["moe_intermediate_size"] = shape.width
    if shape.family.name == "deepseek":
        # Its code takes the shared width from that of the experts: one shared expert counts as its multiple of them.
        shared = shape.shared_width // shape.width if mixture.shared else None
        return result | {"n_routed_experts": count, "n_shared_experts": shared}
    result["num_experts"] = count
    if mixture.shared:
        result["shared_expert_intermediate_size"] = shape.shared_width
    return result


def _bases() -> str:
    kinds = sorted({kind for family in FAMILIES for kind in family.bases})
    return f"fine-tunes of a model of one of the types {', '.join(kinds)}"
