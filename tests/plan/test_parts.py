"""Tensors that are merged in different ways: by rules, modules, methods of slices, and where models lack them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from checkpoint_files import write_adapter
from safetensors.torch import save_file
from tiny_models import make_tensors, save_model

from fastmerge.errors import InvalidInput

LINEAR = "merge_method: linear\nbase_model: base\nparameters: {weight: 1}\nmodels: [base, a, b]\n"
TIES = "merge_method: ties\nbase_model: base\nparameters: {weight: 1}\nmodels: [a, b]\n"
UP = "model.layers.{}.mlp.up_proj.weight"


def merges(plan) -> dict[str, tuple[str, list[int]]]:
    """Return method and models of every output by name."""
    return {o.name: (o.method, [t.model for t in o.inputs.every]) for o in plan.outputs}


def replace_model(name, tensors, **config):
    shutil.rmtree(name)
    save_model(name, tensors, **config)


class TestMissing:
    @pytest.fixture
    def partial(self, family):
        """``a`` lacks one tensor of the base, ``b`` has one more, and ``c`` lacks the first one, too."""
        replace_model("a", {n: t for n, t in family.items() if n != UP.format(1)})
        replace_model("b", family | {"visual.patch.weight": torch.ones(3, 4)})
        return family

    def test_the_base_has_what_others_lack(self, partial, plan_of):
        plan = plan_of(LINEAR)
        found = merges(plan)
        assert found[UP.format(1)] == ("copy", [0])
        assert found[UP.format(0)] == ("linear", [0, 1, 2])
        assert "visual.patch.weight" not in found
        assert [d.reason for d in plan.dropped if d.name == "visual.patch.weight"] == ["base does not have it"]
        assert f"1 tensors of base are not in a: {UP.format(1)}; they are copied as they are" in plan.notes
        assert any(
            n.startswith("1 tensors of b are not in base: visual.patch.weight; they are left") for n in plan.notes
        )

    def test_they_are_merged_from_the_models_that_have_them(self, partial, plan_of):
        found = merges(plan_of(LINEAR + "missing: merge\n"))
        assert found[UP.format(1)] == ("linear", [0, 2])
        assert found["visual.patch.weight"] == ("copy", [2])

    def test_they_are_left_out(self, partial, plan_of):
        found = merges(plan_of(LINEAR + "missing: drop\n"))
        assert UP.format(1) not in found and "visual.patch.weight" not in found
        assert found[UP.format(0)][1] == [0, 1, 2]

    def test_a_rule_says_it_for_some(self, partial, plan_of):
        rules = "rules:\n- {filter: visual, missing: merge}\n- {glob: '*.1.mlp.*', missing: drop}\n"
        found = merges(plan_of(LINEAR + rules))
        assert found["visual.patch.weight"] == ("copy", [2]) and UP.format(1) not in found

    def test_deltas_need_their_base(self, partial, plan_of):
        replace_model("base", {n: t for n, t in partial.items() if n != "model.norm.weight"})
        with pytest.raises(InvalidInput, match=r"norm.weight: ties cannot merge it without base, which lacks it"):
            plan_of(TIES + "missing: merge\n")

    def test_models_with_other_names_are_refused(self, partial, plan_of):
        save_file({"language_model." + name: tensor for name, tensor in partial.items()}, "b/model.safetensors")
        with pytest.raises(InvalidInput, match=r"/b: only 0 of its \d+ tensors have a name that base has"):
            plan_of(LINEAR)

    def test_slices(self, partial, plan_of):
        slices = "slices: [{sources: [{model: b, layer_range: [0, 2]}, {model: a, layer_range: [0, 2]}]}]\n"
        found = merges(plan_of("merge_method: linear\nparameters: {weight: 1}\n" + slices))
        assert found[UP.format(1)] == ("copy", [0]) and found["visual.patch.weight"] == ("copy", [0])


class TestRules:
    def test_the_first_match_decides_method_models_and_parameters(self, family, plan_of):
        plan = plan_of(
            TIES
            + r"""
rules:
  - {filter: layers.0., merge_method: linear, parameters: {normalize: false, weight: 0.5}}
  - {glob: model.layers.1.*.weight, source: b}
  - {regex: '\.2\.mlp\.(up|down)_proj', merge_method: slerp, models: [a], parameters: {t: 0.25}}
  - {filter: layers.2., source: base}
  - {filter: lm_head, parameters: {density: [0.5]}}
"""
        )
        outputs = {output.name: output for output in plan.outputs}
        found = merges(plan)
        assert found[UP.format(0)] == ("linear", [1, 2, 0]) and outputs[UP.format(0)].group["normalize"] is False
        assert found[UP.format(1)] == ("copy", [2])
        assert found[UP.format(2)] == ("slerp", [0, 1]) and outputs[UP.format(2)].group["t"] == 0.25
        assert found["model.layers.2.mlp.gate_proj.weight"] == ("copy", [0])
        assert found[UP.format(3)] == ("ties", [0, 1, 2]) and outputs[UP.format(3)].group["density"] == (1, 1)
        assert outputs["lm_head.weight"].group["density"] == (0.5, 0.5)

    def test_a_model_that_only_a_rule_names_adds_its_tensors(self, family, plan_of):
        replace_model("c", family | {"visual.patch.weight": torch.ones(3, 4)})
        plan = plan_of(TIES + "rules: [{glob: 'visual.*', source: c}]\n")
        assert merges(plan)["visual.patch.weight"] == ("copy", [3])
        assert {d.reason for d in plan.dropped if d.model == 3} == {"no part of the recipe takes it from this model"}

    def test_a_source_that_lacks_the_tensor(self, family, plan_of):
        replace_model("c", {n: t for n, t in family.items() if n != UP.format(1)})
        with pytest.raises(InvalidInput, match=r"rules\[0\]: .*up_proj.weight is taken from c: it is not there"):
            plan_of(TIES + "rules: [{filter: layers.1., source: c}]\n")

    def test_rules_follow_the_names_of_the_output_in_slices(self, family, plan_of):
        slices = """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources: [{model: a, layer_range: [0, 2]}]
rules: [{filter: layers.3.mlp, parameters: {scale: 0.5}}]
"""
        plan = plan_of(slices)
        assert merges(plan)[UP.format(3)][0] == "passthrough" and merges(plan)[UP.format(1)][0] == "copy"
        with pytest.raises(InvalidInput, match=r"b is not one of the sources of every slice"):
            plan_of(slices.replace("parameters: {scale: 0.5}", "source: b"))


def test_a_slice_with_its_own_method(family, plan_of):
    sources = "sources: [{model: base, layer_range: [%s]}, {model: a, layer_range: [%s]}]"
    text = (
        "merge_method: ties\nbase_model: base\nparameters: {weight: 1, t: 0.5}\nslices:\n"
        f"  - {sources % ('0, 2', '0, 2')}\n    merge_method: slerp\n"
        f"  - {sources % ('2, 4', '2, 4')}\n    merge_method: ties\n"
    )
    plan = plan_of(text)
    assert [merges(plan)[UP.format(i)][0] for i in range(4)] == ["slerp", "slerp", "ties", "ties"]
    (note,) = plan.notes
    assert "merge_method: the slice is merged by slerp; mergekit takes the recipe's method" in note
    plan = plan_of(text + "semantics: mergekit\n")
    assert {method for method, _ in merges(plan).values()} == {"ties"}
    assert "has no effect with semantics mergekit: ties is taken" in plan.notes[0]


def test_only_the_base_is_the_base(family, plan_of):
    text = TIES.replace("[a, b]", "[base]")
    plan = plan_of(text)
    assert all(output.method == "copy" for output in plan.outputs)
    assert any("only the base base is listed, so the result is the base" in note for note in plan.notes)
    write_adapter("lora", {UP.format(0).removesuffix(".weight"): family[UP.format(0)].shape})
    plan = plan_of(text.replace("base\n", "base+lora\n", 1).replace("[base]", "[base+lora]"))
    (folded,) = [output for output in plan.outputs if output.method != "copy"]
    assert folded.name == UP.format(0) and folded.inputs.every[0].adapters


def test_a_model_listed_twice_counts_twice(family, plan_of):
    plan = plan_of(
        "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 0.2}}\n"
        "- {model: b, parameters: {weight: 0.5}}\n- {model: a, parameters: {weight: 0.3}}\n"
    )
    output = next(o for o in plan.outputs if o.name == UP.format(0))
    assert [t.model for t in output.inputs.every] == [0, 1, 0] and output.group["weight"] == (0.2, 0.5, 0.3)
    assert plan.notes == ("<recipe>:2:1: models: a is listed 2 times; every entry counts",)


class TestModules:
    @pytest.fixture
    def multimodal(self, family):
        """A model with a text decoder of four layers, a tower of three and a projector; ``a`` is text alone."""
        tower = {f"vision_tower.blocks.{i}.proj.weight": torch.full((4, 4), i + 1.0) for i in range(3)}
        extra = tower | {"multi_modal_projector.weight": torch.ones(4, 4)}
        for name, scale in (("base", 1.0), ("b", 2.0)):
            tensors = make_tensors(seed=int(scale), base=family)
            own = {n: t * scale for n, t in extra.items()}
            replace_model(name, (family if scale == 1 else tensors) | own, vision_config={"depth": 3})
        return extra

    def test_every_module_has_its_models(self, multimodal, plan_of):
        plan = plan_of("""
merge_method: task_arithmetic
base_model: base
modules:
  text_decoder:
    models: [{model: a, parameters: {weight: 0.5}}]
  vision_tower:
    slices:
      - sources: [{model: base, layer_range: [0, 2]}, {model: b, layer_range: [1, 3], parameters: {weight: 1}}]
  multi_modal_projector:
    models: [base]
""")
        found = merges(plan)
        assert found[UP.format(0)] == ("task_arithmetic", [0, 1])
        assert found["vision_tower.blocks.1.proj.weight"] == ("task_arithmetic", [0, 2])
        assert "vision_tower.blocks.2.proj.weight" not in found
        assert found["multi_modal_projector.weight"] == ("copy", [0])
        config = json.loads(plan.files["config.json"].text)
        assert (config["num_hidden_layers"], config["vision_config"]["depth"]) == (4, 2)
        origin = next(o for o in plan.outputs if o.name == "vision_tower.blocks.1.proj.weight").inputs.tensors[0]
        assert origin.name == "vision_tower.blocks.2.proj.weight"

    def test_what_no_module_has_is_the_bases(self, multimodal, plan_of):
        text = (
            "merge_method: linear\nmodules: {x: {glob: 'vision_tower.*', models: [base, b]}}\nparameters: {weight: 1}\n"
        )
        plan = plan_of(text)
        assert merges(plan)["vision_tower.blocks.0.proj.weight"] == ("linear", [0, 1])
        assert merges(plan)[UP.format(0)] == ("copy", [0])
        assert any("tensors belong to no module; they are base's: " in note for note in plan.notes)

    def test_one_module_is_a_recipe(self, family, plan_of):
        default = LINEAR.replace("models: [base, a, b]", "modules: {default: {models: [base, a, b]}}")
        assert merges(plan_of(default)) == merges(plan_of(LINEAR))


def test_semantics_are_asked_of_methods_that_have_a_choice(family, plan_of):
    text = TIES.replace("parameters: {weight: 1}\n", "") + "semantics: paper\n"
    plan = plan_of(
        text + "rules: [{filter: norm, source: base}, {filter: mlp, merge_method: linear, parameters: {weight: 1}}]\n"
    )
    methods = {output.name: (output.method, output.group and output.group.semantics) for output in plan.outputs}
    assert methods["model.norm.weight"] == ("copy", None)
    assert methods["model.layers.0.mlp.up_proj.weight"] == ("linear", "mergekit")
    assert methods["model.layers.0.self_attn.q_proj.weight"] == ("ties", "paper")
    with pytest.raises(InvalidInput, match="dare_ties does not have the semantics 'paper'"):
        plan_of(text + "rules: [{filter: norm, merge_method: dare_ties}]\n")
