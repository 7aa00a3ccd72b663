"""The Hugging Face hub: a bundle is a dataset repository as it stands, with its card and Parquet files.

Nothing is sent unless `--push-to` asks for it. A repository that is not there is made private; one that is there keeps
its visibility. Format: dataset card metadata as of huggingface_hub 1 and 2.
Source: https://huggingface.co/docs/hub/datasets-cards
"""

from __future__ import annotations

from pathlib import Path

from engine.bundle import Exporter
from engine.errors import EndpointError


def _publish(folder: Path, repository: str) -> str:
    """Send a bundle and return the repository's address.

    Raises: EndpointError where the hub refuses or does not answer.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        address = hub.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
        hub.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=folder,
            commit_message=f"Potstill export: {folder.name}",
        )
    except Exception as error:  # the hub's client raises whatever its network library does
        reason = str(error).strip().partition("\n")[0]
        raise EndpointError(
            f"the hub did not take {repository} ({reason}); the bundle is whole in {folder}: check the name and "
            f"`hf auth login`, then send it with hf upload {repository} {folder} . --repo-type dataset"
        ) from error
    return str(address)


EXPORTER = Exporter(
    consumer="the Hugging Face hub",
    usage="`hf upload OWNER/NAME . . --repo-type dataset`",
    needs=("parquet",),
    packages=("huggingface_hub",),
    publish=_publish,
)
