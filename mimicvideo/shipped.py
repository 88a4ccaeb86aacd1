"""Where the files of conf/ are: beside the package in a clone, inside it where a wheel was installed."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"


def with_shipped(argv: list[str]) -> list[str]:
    """The arguments with every `conf/....yaml` that is not in the working directory as the path of the shipped file of that name.

    So that commands mean the same in any directory. A file that is there wins. Where there is a folder conf, what names no shipped file
    stays as it is; elsewhere it becomes a path too, beside which a message finds the nearest right name.
    """
    return ["".join((flag, equals, _shipped(value))) for flag, equals, value in map(_parted, argv)]


def _parted(argument: str) -> tuple[str, str, str]:
    """`--flag`, `=` and value, the first two empty for a value alone."""
    return argument.partition("=") if argument.startswith("-") else ("", "", argument)


def _shipped(value: str) -> str:
    if not (value.startswith("conf/") and value.endswith(".yaml")) or Path(value).exists():
        return value
    file = CONF / value.removeprefix("conf/")
    return str(file) if file.is_file() or not Path("conf").exists() else value
