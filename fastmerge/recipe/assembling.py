"""The typed file of a recipe -> Recipe: names of parameters are looked up, references put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..methods import BLOCKS, Method, method_called
from .document import Findings, KeyPath
from .document_schema import Filtered, ModelItem, ModuleItem, RecipeFile, RuleItem, SliceItem, SourceItem
from .filters import NameFilter, parse_filter
from .modules import filters_of
from .names import block_parameter_of, method_of, parameter_of, with_blocks_of
from .references import parse_token
from .settings import read_setting
from .types import ModelRef, Module, Parameters, Recipe, Rule, SliceSpec, SourceSpec, TokenizerSpec, TokenSpec


class Assembly:
    """Makes a Recipe of a typed file; what is wrong or has no effect is added to ``findings``."""

    def __init__(self, findings: Findings, file: RecipeFile):
        self._findings, self._file = findings, file
        self._own = method_of(findings, ("merge_method",), file.merge_method)
        rules = [rule.merge_method for rule in file.rules or ()]
        # None stands for a method that does not exist; it is reported once, where it is named.
        self._of_rules = [method_of(findings, ("rules", i, "merge_method"), n) for i, n in enumerate(rules) if n]

    def recipe(self, card: Mapping[str, Any]) -> Recipe:
        file, document = self._file, self._findings.document
        extended = with_blocks_of(self._findings, file, self._own)
        if file.tokenizer and file.tokenizer_source:
            what = "both tokenizer and tokenizer_source are given"
            self._findings.problem(("tokenizer_source",), what, "give one of them")
        modules = self._modules()
        methods = list(dict.fromkeys([self._own, *self._of_rules, *self._of_slices(modules)]))
        return Recipe(
            path=document.name,
            text=document.text,
            method=extended.name if extended else file.merge_method,
            modules=modules,
            base=file.base_model,
            parameters=self._settings((), file, methods),
            rules=tuple(self._rule(("rules", i), rule, modules) for i, rule in enumerate(file.rules or ())),
            missing=file.missing,
            integers=file.integers,
            name=file.name if isinstance(file.name, str) else "",
            dtype=file.dtype,
            out_dtype=file.out_dtype,
            keep_float32=self._keep_float32(),
            tokenizer=self._tokenizer(),
            chat_template=file.chat_template,
            names=file.names,
            config_source=file.config_source,
            semantics=file.semantics,
            seed=file.seed or 0,
            card=card,
            document=document,
        )

    def _keep_float32(self) -> tuple[NameFilter, ...]:
        file, wanted = self._file, self._file.keep_float32
        if not wanted:
            return ()
        if (file.out_dtype or file.dtype) in (None, "float32"):
            self._findings.note(("keep_float32",), "has no effect without a dtype of 16 bits")
        parts = wanted if isinstance(wanted, tuple) else ("",)
        return tuple(NameFilter("filter", "" if part == "*" else part) for part in parts)

    def _modules(self) -> tuple[Module, ...]:
        file, findings = self._file, self._findings
        kinds = [key for key in ("models", "slices", "modules") if getattr(file, key)]
        if len(kinds) != 1:
            what = f"both {' and '.join(kinds)} are given" if kinds else "neither models nor slices are given"
            findings.problem((), what, "give one of them")
            return ()
        if file.modules is None:
            return (Module("default", (), self._slices((), file)),)
        modules = []
        for name, item in file.modules.items():
            path = ("modules", name)
            if bool(item.models) == bool(item.slices):
                what = "both models and slices are given" if item.models else "neither models nor slices are given"
                findings.problem(path, what, "give one of them")
                continue
            own = self._filter(path, item)
            filters = (own,) if own else filters_of(name)
            if filters is None:
                what = f"which tensors the module {name!r} has is not known"
                findings.problem(path, what, "add filter:, glob: or regex: to the module")
                continue
            module = Module(name, filters, self._slices(path, item))
            methods = [self._own, *self._of_rules, *self._of_slices([module])]
            modules.append(replace(module, parameters=self._parameters(path, item.parameters, methods)))
        return tuple(modules)

    def _slices(self, path: KeyPath, item: RecipeFile | ModuleItem) -> tuple[SliceSpec, ...]:
        where = self._findings.document.where
        if item.models:
            methods = [self._own, *self._of_rules]
            sources = [self._source((*path, "models", i), model, methods) for i, model in enumerate(item.models)]
            return (SliceSpec(tuple(sources), where=where((*path, "models"))),)
        return tuple(self._slice((*path, "slices", i), part) for i, part in enumerate(item.slices or ()))

    def _slice(self, path: KeyPath, part: SliceItem) -> SliceSpec:
        findings, method, name = self._findings, self._own, None
        if part.residual_weight is not None:
            findings.note((*path, "residual_weight"), "has no effect, here and in mergekit")
        if part.merge_method not in (None, self._file.merge_method):
            here = (*path, "merge_method")
            if self._file.semantics == "mergekit":
                findings.note(here, f"has no effect with semantics mergekit: {self._file.merge_method} is taken")
            else:
                what = f"the slice is merged by {part.merge_method}; mergekit takes the recipe's method"
                findings.note(here, f"{what}, as semantics: mergekit does")
                name = part.merge_method
                method = method_of(findings, here, part.merge_method)
        methods = [method, *self._of_rules]
        sources = [self._source((*path, "sources", i), item, methods) for i, item in enumerate(part.sources)]
        settings = self._settings(path, part, methods)
        return SliceSpec(tuple(sources), part.base_model, settings, findings.document.where(path), name)

    def _source(self, path: KeyPath, item: ModelItem, methods: Sequence[Method | None]) -> SourceSpec:
        model, layers = item.model, item.layer_range if isinstance(item, SourceItem) else None
        if item.revision is not None:
            self._findings.note((*path, "revision"), f"is taken as {model.path}@{item.revision}; mergekit ignores it")
            model = replace(model, revision=item.revision)
        if item.lora is not None:
            self._findings.note((*path, "lora"), f"is taken as {model}+{item.lora}; mergekit ignores it")
            model = replace(model, lora=item.lora)
        settings = self._parameters(path, item.parameters, methods)
        where = self._findings.document.where(path)
        return SourceSpec(model, (layers[0], layers[1]) if layers else None, settings, where)

    def _rule(self, path: KeyPath, rule: RuleItem, modules: Sequence[Module]) -> Rule:
        findings = self._findings
        own = rule.merge_method
        if rule.source is not None and (own or rule.models):
            what = "source copies one model's tensors, so there is no method and there are no models"
            findings.problem((*path, "source"), what, "delete source:, or merge_method: and models:")
        if rule.source is not None:
            own = "passthrough"
        methods = [method_called(own)] if own else list(dict.fromkeys([self._own, *self._of_slices(modules)]))
        sources = [self._source((*path, "models", i), model, methods) for i, model in enumerate(rule.models or ())]
        if rule.source is not None:
            sources = [SourceSpec(self._tensor_source(rule.source, modules), where=findings.document.where(path))]
        settings = self._parameters(path, rule.parameters, methods)
        filter_ = self._filter(path, rule)
        where = findings.document.where(path)
        return Rule(filter_, own, tuple(sources), rule.missing, settings, where)

    def _tensor_source(self, source: ModelRef | str, modules: Sequence[Module]) -> ModelRef:
        if isinstance(source, ModelRef):
            return source
        first = next((part.sources[0].model for module in modules for part in module.slices), ModelRef("base"))
        return self._file.base_model or first

    def _filter(self, path: KeyPath, item: Filtered) -> NameFilter | None:
        try:
            return parse_filter({"filter": item.filter, "glob": item.glob, "regex": item.regex})
        except ValueError as error:
            self._findings.problem(path, str(error))
            return None

    def _parameters(self, path: KeyPath, table: Mapping[str, Any], methods: Sequence[Method | None]) -> Parameters:
        settings = {}
        for name, value in table.items():
            here = (*path, "parameters", name)
            before = len(self._findings.problems)
            if parameter_of(self._findings, here, methods, self._file.semantics):
                settings[name] = read_setting(self._findings, here, value)
            elif isinstance(value, dict) and "value" not in value and len(self._findings.problems) == before:
                what = "is no parameter, and has keys of its own"
                self._findings.problem(here, what, "write one parameter per line")
        return settings

    def _settings(self, path: KeyPath, item: RecipeFile | SliceItem, methods: Sequence[Method | None]) -> Parameters:
        """Return the parameters, and those of blocks by their full names."""
        settings = dict(self._parameters(path, item.parameters, methods))
        for block in BLOCKS:
            for key, value in (getattr(item, block) or {}).items():
                here = (*path, block, key)
                if name := block_parameter_of(self._findings, here, block):
                    settings[name] = read_setting(self._findings, here, value)
        return settings

    def _of_slices(self, modules: Sequence[Module]) -> list[Method | None]:
        """Return the methods that slices have of their own."""
        return [method_called(part.method) for module in modules for part in module.slices if part.method]

    def _tokenizer(self) -> TokenizerSpec | None:
        file, where = self._file, self._findings.document.where
        if file.tokenizer is None:
            if file.tokenizer_source is None:
                return None
            return TokenizerSpec(file.tokenizer_source, where=where(("tokenizer_source",)))
        tokens: list[TokenSpec] = []
        for token, entry in (file.tokenizer.tokens or {}).items():
            try:
                tokens.append(parse_token(token, entry.source, entry.force))
            except ValueError as error:
                self._findings.problem(("tokenizer", "tokens", token, "source"), str(error))
        item = file.tokenizer
        return TokenizerSpec(item.source, tuple(tokens), item.pad_to_multiple_of, where(("tokenizer",)))
