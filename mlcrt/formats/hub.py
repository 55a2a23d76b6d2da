"""Models of the Hugging Face hub, fetched into its own cache, which other tools share.

The hub client picks a dropped connection up where it broke off, and a later run keeps every file that is complete.
"""

from __future__ import annotations

import re
from pathlib import Path

from mlcrt.errors import MlcrtError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_GGUF = re.compile(rf"({HUB_ID.pattern})/(.+\.gguf)")
MODEL_FILES = [
    "config.json", "generation_config.json", "*.safetensors", "model.safetensors.index.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "chat_template.jinja", "chat_template.json",
]  # fmt: skip
OTHER_COPIES = ["*/*", "consolidated*", "adapter_*"]  # other formats' folders, Mistral's second copy, LoRA adapters


def fetch_model(repo: str, revision: str | None, progress: bool) -> Path:
    """The local folder of a hub model, downloading what the cache lacks. Raises MlcrtError in one sentence."""
    return _snapshot(repo, revision, progress, MODEL_FILES, OTHER_COPIES)


def fetch_gguf(repo: str, file: str, revision: str | None, progress: bool) -> Path:
    """The local path of one GGUF file of a hub repository; all parts of it when it is split."""
    parts = re.sub(r"-\d{5}(-of-\d{5}\.gguf)$", r"-*\1", file)
    path = _snapshot(repo, revision, progress, [parts], None) / file
    if not path.is_file():
        raise MlcrtError(f"The hub repository '{repo}' has no file {file}; look up its name on the model's page.")
    return path


def _snapshot(repo: str, revision: str | None, progress: bool, allow: list[str], ignore: list[str] | None) -> Path:
    import huggingface_hub
    from huggingface_hub import errors, utils

    quiet = not progress and not utils.are_progress_bars_disabled()
    if quiet:
        utils.disable_progress_bars()
    try:
        folder = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=allow, ignore_patterns=ignore
        )
    except errors.GatedRepoError as error:
        raise MlcrtError(
            f"The hub model '{repo}' is gated: accept its terms on its page, then log in with `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise MlcrtError(
            f"The hub model '{repo}' has no revision '{revision}'; name a branch, tag or commit."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise MlcrtError(
            f"'{repo}' is neither a local path nor a hub model this machine may read; check the name, "
            "or log in with `hf auth login` if the model is private."
        ) from error
    except errors.HFValidationError as error:
        raise MlcrtError(f"'{repo}' is neither a local path nor a valid hub name of the form owner/model.") from error
    except errors.LocalEntryNotFoundError as error:
        raise MlcrtError(
            f"'{repo}' is neither a local path nor completely in the hub cache, and the hub cannot be reached "
            "(offline, or HF_HUB_OFFLINE is set); connect and try again, or give a local folder."
        ) from error
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:160]
        raise MlcrtError(f"Downloading '{repo}' failed: {reason}; run it again, complete files are kept.") from error
    except Exception as error:  # the transport below the hub client has its own exceptions, which change by version
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise MlcrtError(f"Downloading '{repo}' failed: {reason}; run it again, complete files are kept.") from error
    finally:
        if quiet:
            utils.enable_progress_bars()
    return Path(folder)
