"""`mlcrt convert`: a model's weights, tokenizer and configuration → a dist folder without libraries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mlcrt.dist import FORMAT, Dist, is_dist, new_folder, open_dist, signature, write_json
from mlcrt.errors import MlcrtError
from mlcrt.formats import ModelSource, open_model
from mlcrt.models import decoder_config
from mlcrt.version import __version__

from .convert import plan_conversion, stored_specs, write_params
from .scheme import KEEP, SCHEMES, scheme

DEFAULT = "q4f16_1"
Report = Callable[[str], None]


def silent(_message: str) -> None:
    pass


def convert_model(model, quantization: str | None = None, out: Path | None = None, report: Report = silent) -> Path:
    """Quantise `model` (hub id, folder, .gguf) into `out` (default dist/NAME-QUANTIZATION); the folder."""
    if quantization not in (None, KEEP):
        scheme(quantization)
    source = open_model(model)
    return _convert(source, quantization, out, report)


def converted(model, quantization: str | None, out: Path | None, dist_root: Path, report: Report) -> Path:
    """Like convert_model, but a folder that was made from the same file with the same quantization is kept."""
    if quantization not in (None, KEEP):
        scheme(quantization)
    source = open_model(model)
    quantization = quantization or default_quantization(source)
    folder = Path(out) if out else dist_root / f"{source.name}-{quantization}"
    if is_dist(folder):
        try:
            manifest = open_dist(folder).manifest
            if manifest.get("quantization") == quantization and manifest.get("source") == fingerprint(source):
                report(f"{folder}: weights are already converted")
                return folder
        except MlcrtError as error:
            report(f"{error}; converting again")
    return _convert(source, quantization, folder, report)


def default_quantization(source: ModelSource) -> str:
    """A quantised GGUF keeps its codes; everything else becomes q4f16_1."""
    if source.kind != "gguf":
        return DEFAULT
    kinds = {source.tensors.info(name).dtype for name in source.tensors.names()}
    return KEEP if kinds & {"Q4_0", "Q4_1", "Q8_0"} else DEFAULT


def fingerprint(source: ModelSource) -> list:
    """Name, size and time of every weight file: tells whether a conversion is of this very model."""
    files = sorted({source.tensors.info(name).file for name in source.tensors.names()})
    return [[Path(f).name, Path(f).stat().st_size, Path(f).stat().st_mtime_ns] for f in files]


def _convert(source: ModelSource, quantization: str | None, out: Path | None, report: Report) -> Path:
    quantization = quantization or default_quantization(source)
    folder = Path(out) if out else Path("dist") / f"{source.name}-{quantization}"
    _refuse_foreign(folder)
    config = decoder_config(source.config, where=str(source.path))
    plan = plan_conversion(source, config, quantization)
    for name, kind in _first_of_each_kind(plan.dequantised):
        report(f"{kind} (first in {name}) has no lossless scheme: dequantised to {plan.schemes[name]}")
    specs = stored_specs(plan)
    with new_folder(folder) as building:
        source.write_tokenizer(building)
        last = [-1]

        def progress(done: float) -> None:
            if int(done * 20) > last[0]:
                last[0] = int(done * 20)
                report(f"converting {source.name} to {quantization}: {done:.0%}")

        files = write_params(source, plan, building, progress)
        manifest = {
            "format": FORMAT,
            "mlcrt": __version__,
            "name": source.name,
            "quantization": quantization,
            "source": fingerprint(source),
            "config": config.to_dict(),
            "schemes": plan.schemes,
            "params": {
                "files": files,
                "bytes": sum((building / f).stat().st_size for f in files),
                "signature": signature(specs, config),
            },
            "limits": {"context": config.context},
            "targets": {},
        }
        write_json(building / "mlcrt.json", manifest)
    return folder


def _refuse_foreign(folder: Path) -> None:
    """Never replace a folder that is not ours."""
    if folder.exists() and not is_dist(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise MlcrtError(f"{folder} exists and is not a compiled model; choose another --output or remove it")


def _first_of_each_kind(dequantised: dict[str, str]) -> list[tuple[str, str]]:
    first: dict[str, str] = {}
    for name, kind in dequantised.items():
        first.setdefault(kind, name)
    return [(name, kind) for kind, name in first.items()]


def float_kind(dist: Dist) -> str:
    """The float type the dist's schemes ask of the KV cache: float16 if any weight does."""
    kinds = {SCHEMES[name].dtype for parameter, name in dist.manifest["schemes"].items() if "router" not in parameter}
    return "float16" if "float16" in kinds else "float32"
