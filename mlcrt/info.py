"""What a dist folder holds, and which of its libraries this machine can run."""

from __future__ import annotations

import math
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

from mlcrt.dist import LIBRARY_ABI, Dist, compile_again, open_dist, sha256
from mlcrt.models import parameters
from mlcrt.runtime.memory import DEFAULT_CONTEXT
from mlcrt.select import why_not
from mlcrt.targets import all_targets
from mlcrt.targets.platforms import DEFAULT, PLATFORMS


def describe(folder: Path) -> dict[str, Any]:
    """A dictionary for JSON: the model, its files, and one entry for each library. Raises MlcrtError.

    Sizes are in bytes, `context` in tokens. `runs_here` is whether the engine would take the library as things are,
    and `reason` a sentence if not; `intact` says whether the file is the one that was compiled.
    """
    dist = open_dist(folder)
    config, params = dist.config, dist.manifest["params"]
    weights = sum(math.prod(parameter.shape) for parameter in parameters(config))
    schemes = Counter(dist.manifest["schemes"].values())
    return {
        "folder": str(dist.path),
        "name": dist.name,
        "quantization": dist.manifest.get("quantization"),
        "mlcrt": dist.manifest.get("mlcrt"),
        "architecture": {
            "family": config.family, "layers": config.layers, "hidden": config.hidden,
            "intermediate": config.intermediate, "heads": config.heads, "kv_heads": config.kv_heads,
            "head_dim": config.head_dim, "vocab": config.vocab, "experts": config.moe.experts if config.moe else None,
        },
        "parameters": weights,
        "parameter_bytes": params["bytes"],
        "parameter_files": [
            {"file": name, "bytes": (dist.path / name).stat().st_size} for name in params["files"]
        ],
        "schemes": dict(schemes.most_common()),
        "context": config.context,
        "default_context": min(config.context, DEFAULT_CONTEXT),
        "libraries": [library(dist, slot) for slot in dist.manifest["targets"]],
    }  # fmt: skip


def library(dist: Dist, slot: str) -> dict[str, Any]:
    """One library of an opened folder."""
    entry = dist.manifest["targets"][slot]
    target = slot.partition(":")[0]
    entry = entry if isinstance(entry, dict) else {}
    file = dist.path / str(entry.get("library", ""))
    there = file.is_file()
    intact = there and sha256(file) == entry.get("sha256")
    platform = entry.get("platform", DEFAULT)
    reason = _reason(dist, slot, entry, there, intact)
    return {
        "slot": slot,
        "target": target,
        "arch": entry.get("arch"),
        "system": PLATFORMS[platform].text if platform in PLATFORMS else platform,
        "file": entry.get("library"),
        "bytes": file.stat().st_size if there else None,
        "intact": intact,
        "mlcrt": entry.get("mlcrt"),
        "tvm": entry.get("tvm"),
        "kv_dtype": entry.get("kv_dtype"),
        "runs_here": reason is None,
        "reason": reason,
    }


def _reason(dist: Dist, slot: str, entry: dict, there: bool, intact: bool) -> str | None:
    """Why the engine would not take a library here: a sentence, or None."""
    name = slot.partition(":")[0]
    module = all_targets().get(name)
    if module is None:
        return f"this mlcrt does not know the target {name}; update it"
    again = compile_again(dist, slot)
    if not there:
        return f"its file is missing; {again}"
    if not intact:
        return f"its file is not the one that was compiled; {again}"
    elsewhere = why_not(entry, module)
    if elsewhere:
        return f"it {elsewhere}"
    probed = module.probe()
    if not probed.available:
        return probed.reason
    if entry.get("abi") != LIBRARY_ABI:
        return f"it was made by another mlcrt ({entry.get('mlcrt')}); {again}"
    installed = metadata.version("apache-tvm")
    if entry.get("tvm") != installed:
        return f"it needs apache-tvm {entry.get('tvm')}, installed is {installed}"
    if entry.get("signature") != dist.manifest["params"]["signature"]:
        return f"it was made for other parameters; {again}"
    return None


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The same as (name, text) for people, libraries apart."""
    a = found["architecture"]
    experts = f", {a['experts']} experts" if a["experts"] else ""
    schemes = ", ".join(f"{scheme} × {count}" for scheme, count in found["schemes"].items())
    return [
        ("folder", found["folder"]),
        ("model", f"{found['name']}, {found['parameters'] / 1e6:,.1f} million parameters"),
        (
            "architecture",
            f"{a['family']}: {a['layers']} layers, hidden {a['hidden']}, {a['heads']} heads of {a['head_dim']}"
            f" ({a['kv_heads']} for K and V), vocabulary {a['vocab']}{experts}",
        ),
        ("quantization", f"{found['quantization']} (weights: {schemes})"),
        (
            "weights",
            f"{found['parameter_bytes'] / 1e6:,.1f} MB, {8 * found['parameter_bytes'] / found['parameters']:.2f} bits"
            " a parameter",
        ),
        ("context", f"{found['context']} tokens, {found['default_context']} unless --context says otherwise"),
        ("made by", f"mlcrt {found['mlcrt']}"),
    ]
