"""How help looks: options and commands in groups, with texts that are not cut."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence

import click

from ..errors import nearest

INPUT, RUNNING, MERGEKIT, OTHER = "Input and output", "Running", "mergekit's names", "Options"

# By the name of an option; the others stand under OTHER.
_GROUPS = {
    **dict.fromkeys(
        ("overwrite", "allow_nonfinite", "shard_size", "plugins", "seed", "semantics", "out_path", "intermediate_dir",
         "lazy", "explain", "files", "push_to_hub", "private", "report"), INPUT),
    **dict.fromkeys(
        ("threads", "backend", "ram", "device", "vram", "distributed", "rank_timeout", "dry_run", "strict", "as_json",
         "quiet"), RUNNING),
    **dict.fromkeys(
        ("allow_crimes", "unsafe_truncate_embeddings", "copy_tokenizer", "write_model_card", "random_seed",
         "out_shard_size", "num_threads", "cuda", "transformers_cache"), MERGEKIT),
}  # fmt: skip


def no_such(kind: str, name: str, choices: Iterable[str], context: click.Context) -> click.UsageError:
    """Return the error for a name that nothing has, with the one that was probably meant."""
    known = {choice.lstrip("-").replace("-", "_"): choice for choice in choices}
    close = nearest(name.lstrip("-"), known)
    meant = f" Did you mean {known[close]!r}?" if close else ""
    return click.UsageError(f"No such {kind} {name!r}.{meant}", context)


class Suggesting(click.Command):
    """A command that asks what a wrong option was meant to be, of those that its help lists."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(context, args)
        except click.NoSuchOption as error:
            shown = [param for param in self.params if isinstance(param, click.Option) and not param.hidden]
            names = [name for param in shown for name in (*param.opts, *param.secondary_opts)]
            raise no_such("option", error.option_name, [*names, "--help"], context) from None


class GroupedCommand(Suggesting):
    """A command that lists its options in groups, if it takes those of mergekit; else in one list."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {INPUT: [], RUNNING: [], MERGEKIT: [], OTHER: []}
        parameters = self.get_params(context)
        grouped = any(_GROUPS.get(parameter.name or "") == MERGEKIT for parameter in parameters)
        for parameter in parameters:
            record = parameter.get_help_record(context)
            if record is not None and isinstance(parameter, click.Option):
                groups[_GROUPS.get(parameter.name or "", OTHER) if grouped else OTHER].append(record)
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class SectionedGroup(Suggesting, click.Group):
    """A group that lists its commands under titles, each with the first sentence of its help, whole.

    Attributes:
        sections: the names of commands by title; empty: all of them.
    """

    sections: Mapping[str, Sequence[str]] = {}

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not context.resilient_parsing and self.get_command(context, name) is None and not name.startswith("-"):
            shown = [name for name, command in self.commands.items() if not command.hidden]
            raise no_such("command", name, shown, context)
        return super().resolve_command(context, args)

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        sections = self.sections or {"Commands": [name for name in self.commands if not self.commands[name].hidden]}
        width = max(len(name) for names in sections.values() for name in names)
        for title, names in sections.items():
            # Longer than any sentence: click cuts what is longer.
            records = [(name.ljust(width), self.commands[name].get_short_help_str(1000)) for name in names]
            with formatter.section(title):
                formatter.write_dl(records)


class Loaded(MutableMapping[str, click.Command]):
    """Commands by name, each of which is loaded from its module when it is asked for: a merge needs no other one."""

    def __init__(self, package: str, modules: Mapping[str, str], others: Sequence[click.Command]):
        self._package, self._modules = package, modules
        self._found: dict[str, click.Command | None] = {**dict.fromkeys(modules), **{str(o.name): o for o in others}}

    def __getitem__(self, name: str) -> click.Command:
        command = self._found[name]
        if command is None:
            module = importlib.import_module(f"{self._package}.{self._modules[name]}")
            command = self._found[name] = getattr(module, name.replace("-", "_"))
        return command

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._found[name] = command

    def __delitem__(self, name: str) -> None:
        del self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
