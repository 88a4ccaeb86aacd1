"""Verbs that are plain functions: jsonargparse makes their options out of their signatures."""

import importlib
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser, auto_cli, auto_parser

from mimicvideo.compose import compose_argv
from mimicvideo.messages import ShortErrors

FUNCTIONS = {
    "rollout": "mimicvideo.rollout.rollout",
    "demos": "mimicvideo.benchmark.demos.demos",
    "report": "mimicvideo.report.report",
    "captions": "mimicvideo.caption_tool.captions",
    "export": "mimicvideo.action.load.export_policy",
    "fuse": "mimicvideo.video.fused.fuse_adapter",
    "import-decoder": "mimicvideo.action.native.import_decoder",
    "import": "mimicvideo.video.native.import_native",
}


class FunctionParser(ShortErrors, ArgumentParser):
    """A jsonargparse parser with short errors."""


def run_function(argv: list[str]) -> None:
    """Runs `argv[0]` with the options that follow; a `--config` may be a file of conf/."""
    verb, *args = compose_argv(argv)  # before the function is imported: what Hydra refuses is refused at once
    auto_cli(_function(verb), args=args, **_options(verb))


def function_parser(verb: str) -> ArgumentParser:
    """The parser of a verb, to check a configuration without running anything."""
    return auto_parser(_function(verb), **_options(verb))


def _function(verb: str) -> Callable[..., Any]:
    module, _, name = FUNCTIONS[verb].rpartition(".")
    return getattr(importlib.import_module(module), name)


def _options(verb: str) -> dict[str, Any]:
    return {
        "as_positional": False,
        "parser_class": FunctionParser,
        "prog": f"mimicvideo {verb}",
        "parser_mode": "omegaconf",
        "allow_abbrev": False,
    }
