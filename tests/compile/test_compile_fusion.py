"""What each fusion phase does to real decoders, and that the rules leave everything else as it is."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import tiny
import tvm_ffi
from small_llama import CONFIG, LAYERS
from tvm import relax

from mlcrt.compile import compile_model, fusion, ops
from mlcrt.compile.pipeline import phases
from mlcrt.compile.rewrite import apply_rule
from mlcrt.models import decoder_config
from mlcrt.models.decoder import build_module
from mlcrt.quant.scheme import SCHEMES
from mlcrt.targets import all_targets

FUSIONS = ["fuse-dequantize-matmul", "fuse-bias", "fuse-norm", "fuse-gate", "fuse-residual"]
ENTRIES = ("prefill", "decode", "score")


def counts(mod, entry: str) -> Counter:
    """How often each operator is called in a function; relax.nn.silu as "silu", mlcrt.linear as "linear"."""
    found: Counter = Counter()

    def visit(expr):
        if isinstance(expr, relax.Call) and hasattr(expr.op, "name"):
            found[expr.op.name.split(".")[-1]] += 1

    relax.analysis.post_order_visit(mod[entry], visit)
    return found


def stages(hf_config: dict, scheme: str = "q4f16_1") -> dict:
    """{"export" and each fusion phase: the module after it} of a decoder."""
    cpu = all_targets()["cpu"]
    library = cpu.library(cpu.attributes("x86-64-v3"), "float32")
    mod, _ = build_module(decoder_config(hf_config), lambda _: SCHEMES[scheme], library.kv_shapes, library.kv_dtype)
    result = {"export": mod}
    for name, phase in phases(library):
        if name not in FUSIONS:
            break
        result[name] = mod = phase(mod)
    assert list(result) == ["export", *FUSIONS]
    return result


@pytest.fixture(scope="module")
def llama():
    return stages(CONFIG)


LINEARS = 4 * LAYERS + 1  # and the head


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("export", {"matmul": LINEARS, "dequantize": LINEARS, "permute_dims": LINEARS, "linear": 0,
                    "rms_norm": 2 * LAYERS + 1, "add": 2 * LAYERS, "split": LAYERS, "silu": LAYERS,
                    "multiply": LAYERS}),
        ("fuse-dequantize-matmul", {"matmul": 0, "dequantize": 0, "permute_dims": 0, "linear": LINEARS,
                                    "rms_norm": 2 * LAYERS + 1, "add": 2 * LAYERS, "silu": LAYERS}),
        ("fuse-bias", {"linear": LINEARS, "add": 2 * LAYERS}),
        ("fuse-norm", {"linear": LINEARS, "rms_norm": 0, "add": 2 * LAYERS, "silu": LAYERS}),
        ("fuse-gate", {"linear": LINEARS, "silu": 0, "multiply": 0, "split": 0, "add": 2 * LAYERS}),
        ("fuse-residual", {"linear": LINEARS, "add": 0}),
    ],
)  # fmt: skip
def test_every_phase_of_llama(llama, phase, expected, entry):
    found = counts(llama[phase], entry)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_llama_layer_ends_as_six_calls(llama, entry):
    """Four linears, rope_append and attention; besides them only what the whole model needs once."""
    rest = {"prefill": {"finish_step": 1, "call_tir": 1}, "decode": {"finish_step": 1}, "score": {}}[entry]
    assert counts(llama["fuse-residual"], entry) == {
        "linear": LINEARS, "rope_append": LAYERS, "attention": LAYERS, "embed": 1, "rotary_tables": 1, **rest,
    }  # fmt: skip


def linears(mod, entry: str) -> list[fusion.LinearCall]:
    found = []
    relax.analysis.post_order_visit(mod[entry], lambda e: found.append(fusion.LinearCall.parse(e)))
    return [call for call in found if call is not None]


def test_what_the_llama_linears_took_in(llama):
    taken = Counter(
        (c.norm is not None, c.bias is not None, c.gate, c.residual is not None)
        for c in linears(llama["fuse-residual"], "decode")
    )
    assert taken == {
        (True, False, None, False): LAYERS + 1,  # qkv and the head
        (False, False, None, True): 2 * LAYERS,  # o and down
        (True, False, "silu", False): LAYERS,  # gate_up
    }


@pytest.mark.parametrize(
    ("case", "after"),
    [
        # per layer unless it says otherwise; what cannot fuse is there by the decoder's design
        ("llama_linear_bias", {"linear": 4, "add": 0, "rms_norm": 0}),
        ("qwen2_yarn", {"linear": 4, "add": 0, "rms_norm": 0}),
        ("qwen3_norms", {"linear": 4, "add": 0, "rms_norm": 0}),
        ("phi3_longrope", {"linear": 4, "add": 0, "rms_norm": 0}),
        ("llama_mha", {"linear": 4, "gelu": 0, "add": 0}),
        ("gemma2_softcap", {"linear": 4, "add": 2, "rms_norm": 2, "gelu_tanh": 0}),  # post-norms stand between
        ("mixtral", {"linear": 3, "moe": 1, "rms_norm": 1, "add": 1}),  # the norm feeds router and experts
    ],
)
def test_other_families(case, after):
    config = tiny.record(case)["config"]
    layers = config["num_hidden_layers"]
    mod = stages(config)["fuse-residual"]
    for entry in ENTRIES:
        found = counts(mod, entry)
        found["linear"] -= 1  # the head
        assert {name: found[name] for name in after} == {name: n * layers for name, n in after.items()}
        assert found["matmul"] == found["dequantize"] == found["split"] == 0
    biases = sum(c.bias is not None for c in linears(mod, "decode"))
    assert biases == {"llama_linear_bias": 4, "qwen2_yarn": 1}.get(case, 0) * layers


@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe"])
def test_experts_take_the_norm_and_the_residual_where_the_library_can(case):
    mod = stages(tiny.record(case)["config"])["fuse-residual"]
    assert tvm_ffi.structural_equal(apply_rule(mod, fusion.fuse_experts(SimpleNamespace(fuses_experts=False))), mod)
    mod = apply_rule(mod, fusion.fuse_experts(SimpleNamespace(fuses_experts=True)))
    layers = tiny.record(case)["config"]["num_hidden_layers"]
    for entry in ENTRIES:
        found = counts(mod, entry)
        assert found["moe"] == layers and found["linear"] == 3 * layers + 1
        assert found["rms_norm"] == found["add"] == 0


def test_dump_ir_writes_every_phase(model, tmp_path):
    compile_model(model, "q4f16_1", "cpu", dist_root=tmp_path / "dist", dump_ir=tmp_path / "ir" / "new")
    cpu = all_targets()["cpu"]
    names = [name for name, _ in phases(cpu.library(cpu.attributes(""), "float16"))]
    files = sorted((tmp_path / "ir" / "new").iterdir())
    assert [f.name for f in files] == [f"{i:02d}-{n}.py" for i, n in enumerate(["export", *names])]
    text = {f.name[3:-3]: f.read_text() for f in files}
    weights = text["export"].count("mlcrt.dequantize")  # of every entry point
    assert weights > 3 * LINEARS and "mlcrt.linear" not in text["export"]
    assert text["fuse-residual"].count("mlcrt.linear") == weights and "mlcrt.dequantize" not in text["fuse-residual"]
    assert "mlcrt.linear" not in text["lower-operators"] and "call_tir" in text["lower-operators"]
    assert "R.nn.silu" in text["fuse-norm"] and "R.nn.silu" not in text["fuse-gate"]
    assert "alloc_storage" in text["plan-memory"]


# --- graphs that only look like a match ---

ROWS, COLUMNS = 8, 32
F32 = SCHEMES["q0f32"]


def variable(name: str, *shape) -> relax.Var:
    return relax.Var(name, relax.TensorType(list(shape), "float32"))


def unchanged(rule, parameters: list, build) -> bool:
    """Whether the rule leaves the function alone that `build` emits from the parameters."""
    builder = relax.BlockBuilder()
    with builder.function("main", parameters):
        with builder.dataflow():
            out = builder.emit_output(builder.emit(build(builder)))
        builder.emit_func_output(out)
    mod = builder.finalize()
    before, after = counts(mod, "main"), counts(apply_rule(mod, rule), "main")
    return before == after


def linear(x, w, rows: int = ROWS, **more):
    return fusion.LinearCall(x, [w], F32.name, rows, COLUMNS, **more).build()


N = 5
X, W = variable("x", N, COLUMNS), variable("w", ROWS, COLUMNS)


def dequantized(builder, w=W):
    rows, columns = (int(d) for d in w.ty.shape)
    return builder.emit(ops.make("dequantize", [w], scheme=F32.name, rows=rows, columns=columns))


def test_matmul_rule():
    rule, op = fusion.fuse_dequantize_matmul, relax.op
    turned = variable("t", COLUMNS, ROWS)
    square = variable("s", ROWS, ROWS)
    batch = variable("b", 2, N, COLUMNS)
    assert not unchanged(rule, [X, W], lambda b: op.matmul(X, b.emit(op.permute_dims(dequantized(b)))))
    assert unchanged(rule, [X, turned], lambda b: op.matmul(X, turned))
    assert unchanged(rule, [X, W], lambda b: op.matmul(X, b.emit(op.permute_dims(W))))
    assert unchanged(rule, [square, W], lambda b: op.matmul(square, dequantized(b)))
    assert unchanged(rule, [batch, W], lambda b: op.matmul(batch, b.emit(op.permute_dims(dequantized(b)))))
    even = variable("e", COLUMNS, COLUMNS)
    assert not unchanged(rule, [X, even], lambda b: op.matmul(X, b.emit(op.permute_dims(dequantized(b, even)))))
    assert unchanged(rule, [X, even], lambda b: op.matmul(X, b.emit(op.permute_dims(dequantized(b, even), [0, 1]))))
    assert not unchanged(rule, [X, W], lambda b: op.matmul(X, b.emit(op.permute_dims(dequantized(b), [1, 0]))))


def test_bias_rule():
    rule, op = fusion.fuse_bias, relax.op
    bias, one, full = variable("b", ROWS), variable("b", 1), variable("b", N, ROWS)
    assert not unchanged(rule, [X, W, bias], lambda b: op.add(b.emit(linear(X, W)), bias))
    assert unchanged(rule, [X, W, one], lambda b: op.add(b.emit(linear(X, W)), one))
    assert unchanged(rule, [X, W, full], lambda b: op.add(b.emit(linear(X, W)), full))
    assert unchanged(rule, [bias, variable("c", ROWS)], lambda b: op.add(bias, bias))
    assert unchanged(rule, [X, W, bias], lambda b: op.add(b.emit(linear(X, W, bias=bias)), bias))
    assert unchanged(rule, [X, W, bias], lambda b: op.multiply(b.emit(linear(X, W)), bias))
    half = variable("b", ROWS // 2)
    assert unchanged(rule, [X, W, half], lambda b: op.add(b.emit(linear(X, W, gate="silu")), half))


def test_norm_rule():
    rule, op = fusion.fuse_norm, relax.op
    weight = variable("n", COLUMNS)
    assert not unchanged(rule, [X, W, weight], lambda b: linear(b.emit(op.nn.rms_norm(X, weight, axes=[-1])), W))
    assert not unchanged(rule, [X, W, weight], lambda b: linear(b.emit(op.nn.rms_norm(X, weight, axes=[1])), W))
    tall = variable("x", COLUMNS, COLUMNS)
    assert unchanged(rule, [tall, W, weight], lambda b: linear(b.emit(op.nn.rms_norm(tall, weight, axes=[0])), W))
    both = variable("n", N, COLUMNS)
    assert unchanged(rule, [X, W, both], lambda b: linear(b.emit(op.nn.rms_norm(X, both, axes=[0, 1])), W))
    twice = [X, W, weight]
    assert unchanged(
        rule, twice, lambda b: linear(b.emit(op.nn.rms_norm(X, weight, axes=[-1])), W, norm=weight, norm_eps=1e-5)
    )
    assert unchanged(rule, [X, W], lambda b: linear(b.emit(op.nn.silu(X)), W))


def test_gate_rule():
    rule, op = fusion.fuse_gate, relax.op

    def gated(b, first=0, second=1, axis=-1, sections=2, activation=op.nn.silu, source=None):
        halves = b.emit(op.split(b.emit(linear(X, W)) if source is None else source, sections, axis=axis))
        item = [b.emit(relax.TupleGetItem(halves, i)) for i in (first, second)]
        return op.multiply(b.emit(activation(item[0])), item[1])

    given = [X, W]
    assert not unchanged(rule, given, gated)
    assert not unchanged(rule, given, lambda b: gated(b, activation=op.nn.gelu))
    assert not unchanged(rule, given, lambda b: gated(b, activation=op.nn.gelu_tanh))
    assert unchanged(rule, given, lambda b: gated(b, 1, 0)), "up before gate is another function"
    assert unchanged(rule, given, lambda b: gated(b, 0, 0))
    assert unchanged(rule, given, lambda b: gated(b, activation=op.nn.relu))
    assert unchanged(rule, given, lambda b: gated(b, sections=4)), "two of four parts"
    even = variable("x", 4, COLUMNS)
    assert unchanged(rule, [even, W], lambda b: gated(b, axis=0, source=b.emit(linear(even, W)))), "halves the tokens"
    assert unchanged(rule, [even], lambda b: gated(b, source=even)), "no linear before"


def test_residual_rule():
    rule, op = fusion.fuse_residual, relax.op
    before = variable("r", N, ROWS)
    assert not unchanged(rule, [X, W, before], lambda b: op.add(before, b.emit(linear(X, W))))
    for shape in ((ROWS,), (1, ROWS), (N, 1), ()):
        other = variable("r", *shape)
        assert unchanged(rule, [X, W, other], lambda b, other=other: op.add(other, b.emit(linear(X, W)))), shape
    assert unchanged(rule, [before], lambda b: op.add(before, before))
    assert unchanged(rule, [X, W, before], lambda b: op.subtract(before, b.emit(linear(X, W))))
    assert unchanged(rule, [X, W, before], lambda b: op.add(before, b.emit(linear(X, W, residual=before))))


def test_results_are_handed_on_packed_where_the_next_product_takes_them_so():
    """gate_up → down and attention → o of one token on tensor-core targets; nothing in prefill."""
    cuda = all_targets()["cuda"]
    library = cuda.library(cuda.attributes("sm_90"), "float16")
    mod, _ = build_module(decoder_config(CONFIG), lambda _: SCHEMES["q4f16_1"], library.kv_shapes, library.kv_dtype)
    for name, phase in phases(library):
        mod = phase(mod)
        if name == "pack-activations":
            break
    found: dict = {}
    for entry in ENTRIES:

        def visit(expr, entry=entry):
            if ops.name_of(expr) in ("linear", "rope_attention"):
                for key in {"packed_in", "packed_out"} & set(ops.attributes(expr)):
                    found.setdefault((entry, key), []).append(expr)

        relax.analysis.post_order_visit(mod[entry], visit)
    assert set(found) == {("decode", "packed_in"), ("decode", "packed_out")}
    takers, makers = found["decode", "packed_in"], found["decode", "packed_out"]
    assert len(takers) == len(makers) == 2 * LAYERS
    assert all(str(taker.args[0].ty.dtype) == "float16" for taker in takers)
    assert counts(mod, "decode")["linear"] == LINEARS and counts(mod, "decode")["rope_attention"] == LAYERS
