"""Checkpoint tensors → quantised parameters in a folder, one row block at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlcrt.errors import MlcrtError
from mlcrt.formats import ModelSource
from mlcrt.models import DecoderConfig, Parameter, Piece, parameters, verify

from .pack import pack_rows, repack_blocks, to_layout
from .params import ParamsWriter, Spec
from .scheme import KEEP, SCHEMES, Scheme, scheme

BLOCK_ELEMENTS = 4 << 20  # float32 elements quantised at a time (16 MB and a few times that in temporaries)


# Scheme → the GGUF block types whose codes and scales it holds exactly; --quantization gguf takes the first that fits.
HOLDS = {
    "q4f16_1": {"Q4_0"},
    "q4f32_1": {"Q4_0"},
    "q4f16_0": {"Q4_0"},
    "q4f16_asym": {"Q4_1"},
    "q8f16_1": {"Q4_0", "Q8_0"},  # so a packed weight with parts of both types stays exact
}


@dataclass(frozen=True)
class Plan:
    """How each parameter is stored: `schemes` for 2-D weights, and the blocks that are repacked without loss."""

    config: DecoderConfig
    pieces: dict[str, list[Piece]]
    schemes: dict[str, str]
    repacked: frozenset[str]
    dequantised: dict[str, str]  # parameter → GGUF type that no scheme holds

    def scheme_of(self, name: str) -> Scheme:
        return SCHEMES[self.schemes[name]]


def plan_conversion(source: ModelSource, config: DecoderConfig, quantization: str) -> Plan:
    """Choose a scheme for every weight. `quantization` is a scheme name or "gguf" (keep the file's codes)."""
    if quantization != KEEP:
        scheme(quantization)
    elif source.kind != "gguf":
        raise MlcrtError(f"--quantization {KEEP} keeps a GGUF file's codes, and {source.path} is not one; use q4f16_1")
    pieces = verify(config, source.tensors)
    schemes, repacked, dequantised = {}, set(), {}
    for parameter in parameters(config):
        if len(parameter.shape) < 2:
            continue
        kinds = {source.tensors.info(p.tensor).dtype for p in pieces[parameter.name]}
        kept = next((name for name, held in HOLDS.items() if kinds <= held), None)
        if parameter.name.endswith("router.weight"):
            schemes[parameter.name] = "q0f32"  # tiny, and its argmax decides which experts run
        elif quantization == KEEP and kept is None:
            schemes[parameter.name] = "q0f32" if kinds == {"F32"} else "q0f16"
            if kinds - {"F32", "F16", "BF16"}:
                dequantised[parameter.name] = "/".join(sorted(kinds))
        elif quantization == KEEP or kinds <= HOLDS.get(quantization, set()):
            schemes[parameter.name] = kept if quantization == KEEP else quantization
            repacked.add(parameter.name)
        else:
            schemes[parameter.name] = quantization
    return Plan(config, pieces, schemes, frozenset(repacked), dequantised)


def stored_specs(plan: Plan) -> list[Spec]:
    """(name, shape, dtype) of every stored tensor, in the order in which the decoder takes them."""
    specs: list[Spec] = []
    for parameter in parameters(plan.config):
        if len(parameter.shape) < 2:
            specs.append((parameter.name, parameter.shape, "float32"))
            continue
        *experts, rows, columns = parameter.shape
        for suffix, (shape, dtype) in plan.scheme_of(parameter.name).tensors(rows, columns).items():
            name = f"{parameter.name}.{suffix}" if suffix else parameter.name
            specs.append((name, (*experts, *shape), dtype))
    for i, rope in enumerate(plan.config.ropes):
        specs.append((f"rope.{i}.inv_freq", (len(rope.inv_freq),), "float32"))
    return specs


def write_params(source: ModelSource, plan: Plan, folder: Path, progress: Callable[[float], None]) -> list[str]:
    """Quantise everything into `folder`; the file names. Raises MlcrtError naming the tensor that cannot be used."""
    specs = stored_specs(plan)
    metadata = {"format": "mlcrt", "model": source.name}
    writer = ParamsWriter(folder, specs, metadata)
    total = sum(int(np.prod(p.shape)) for p in parameters(plan.config))
    done = 0
    try:
        for parameter in parameters(plan.config):
            _write_parameter(source, plan, parameter, writer)
            done += int(np.prod(parameter.shape))
            progress(done / total)
        for i, rope in enumerate(plan.config.ropes):
            writer.write(f"rope.{i}.inv_freq", np.array(rope.inv_freq, np.float32))
        return writer.close()
    except BaseException:
        writer.abort()
        raise


def _write_parameter(source: ModelSource, plan: Plan, parameter: Parameter, writer: ParamsWriter) -> None:
    name = parameter.name
    held: dict[str, list[np.ndarray]] = {}
    for parts in _packed(source, plan, parameter):
        if "values" in parts:  # norms and biases
            writer.write(name, parts["values"])
            continue
        chosen = plan.scheme_of(name)
        for suffix, part in parts.items():
            if chosen.layout == "KN":
                held.setdefault(suffix, []).append(part)
            else:
                writer.write(f"{name}.{suffix}" if suffix else name, part)
    if not held:
        return
    chosen, rows = plan.scheme_of(name), parameter.shape[-2]
    whole = {suffix: np.concatenate(blocks) for suffix, blocks in held.items()}
    for first in range(0, len(next(iter(whole.values()))), rows):  # one expert at a time
        expert = {suffix: part[first : first + rows] for suffix, part in whole.items()}
        for suffix, part in to_layout(expert, chosen).items():
            writer.write(f"{name}.{suffix}", part)


def _packed(source: ModelSource, plan: Plan, parameter: Parameter) -> Iterator[dict[str, np.ndarray]]:
    """The parameter's rows, packed block by block in NK order; 1-D parameters as {"values": …}."""
    for piece in plan.pieces[parameter.name]:
        info = source.tensors.info(piece.tensor)
        try:
            if len(parameter.shape) < 2:
                values = source.tensors.load(piece.tensor)
                pack_rows(values.reshape(1, -1), SCHEMES["q0f32"])  # only the check for NaN
                yield {"values": values + np.float32(1) if parameter.transform == "plus_one" else values}
                continue
            for rows in _row_blocks(piece, parameter.shape[-1]):
                if parameter.name in plan.repacked:
                    blocks = source.tensors.blocks(piece.tensor, rows)
                    blocks = blocks.reshape(-1, blocks.shape[-1])
                    yield repack_blocks(blocks, info.dtype, plan.scheme_of(parameter.name))
                else:
                    values = source.tensors.load(piece.tensor, rows)
                    yield pack_rows(values.reshape(-1, parameter.shape[-1]), plan.scheme_of(parameter.name))
        except MlcrtError as error:
            if piece.tensor in str(error):
                raise
            raise MlcrtError(f"tensor {piece.tensor} in {info.file} {error}") from None


def _row_blocks(piece: Piece, columns: int) -> Iterator[slice]:
    """Slices of dimension 0 with about BLOCK_ELEMENTS elements each."""
    first, last = (piece.rows.start, piece.rows.stop) if piece.rows else (0, piece.shape[0])
    inner = int(np.prod(piece.shape[1:])) if len(piece.shape) > 2 else columns
    step = max(1, BLOCK_ELEMENTS // inner)
    for start in range(first, last, step):
        yield slice(start, min(start + step, last))
