"""The alternative source: files of a repository on the Hugging Face hub."""

from collections.abc import Iterator
from pathlib import Path

from tokenarium.data.packages import cache_directory
from tokenarium.data.sources import Hub
from tokenarium.errors import TokenariumError
from tokenarium.files import sha256


def collect(hub: Hub) -> dict[str, Path]:
    """Fetch the files of a repository; returns path in the repository -> file in the cache.

    Raises TokenariumError: no network, no such file, or a SHA-256 that is not the pinned one.
    """
    # Imported here because most runs never ask the hub and the import takes a second.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    collected = {}
    for name, expected in hub.files.items():
        try:
            path = Path(
                hf_hub_download(
                    hub.repository,
                    name,
                    repo_type=hub.kind,
                    revision=hub.revision,
                    cache_dir=cache_directory() / "hub",
                )
            )
        except (OSError, EntryNotFoundError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise TokenariumError(f"{hub}: {name} could not be fetched: {reason}") from error
        if expected is not None and (found := sha256(path)) != expected:
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise TokenariumError(
                f"{hub}: {name} is not the pinned one (SHA-256 expected {expected}, found {found}); "
                "the download was removed, run again to fetch it anew"
            )
        collected[name] = path
    return collected


def stream_texts(repository: str, files: str, column: str, num_bytes: int) -> Iterator[str]:
    """The first texts, `num_bytes` bytes of UTF-8 in all, of a data set's files of JSON lines, read while they come.

    files: a pattern within the repository, "de_meta/*.jsonl.zst". Raises TokenariumError where the package `datasets`
    is missing, or the repository does not give the files or the column.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise TokenariumError("data sets of the hub need the package datasets: pip install tokenarium[hub]") from None
    try:
        place = f"hf://datasets/{repository}/{files}"
        for row in load_dataset("json", data_files=place, split="train", streaming=True):
            yield row[column]
            num_bytes -= len(row[column].encode())
            if num_bytes <= 0:
                return
    except (OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TokenariumError(f"{repository}: {files} could not be read from the hub: {reason}") from error
