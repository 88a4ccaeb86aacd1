"""Models of the hub: whether it gives one, told within seconds, and the folder of its files, from an earlier download if it does not."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

PATIENCE = 5  # seconds for the hub to answer


def refusal(hub_id: str, revision: str | None) -> Exception | None:
    """Why the hub does not give the model: no connection, gated, unknown; None if it does.

    The client's own timeout holds for each of the hub's addresses, and not for finding them: a firewall that drops packets would
    take minutes.
    """
    from huggingface_hub import HfApi

    answer: Future[None] = Future()

    def ask() -> None:
        try:
            HfApi().model_info(hub_id, revision=revision, timeout=PATIENCE)
            answer.set_result(None)
        except Exception as error:  # the hub client raises errors of many kinds
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.exception(PATIENCE)  # type: ignore[return-value]
    except TimeoutError:
        return TimeoutError(f"no answer within {PATIENCE} s")


def earlier_download(hub_id: str, revision: str | None, patterns: Sequence[str]) -> Path | None:
    """The folder that a complete download left on this machine, if there was one."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns), local_files_only=True))
    except Exception:  # of many kinds, all of which mean that it is not there
        return None


def download(hub_id: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The folder of a model's files that match `patterns`; an earlier download if the hub does not answer.

    Raises:
        Exception: Whatever the hub's client raises: no connection, gated, unknown, lost connection, full disk.
    """
    from huggingface_hub import snapshot_download

    if (error := refusal(hub_id, revision)) is None:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns)))
    if (folder := earlier_download(hub_id, revision, patterns)) is None:
        raise error
    return folder
