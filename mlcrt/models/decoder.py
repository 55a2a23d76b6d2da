"""The one decoder: a pre-norm transformer described by DecoderConfig, written with relax.frontend.nn.

Entry points share the weights (one packed tuple) and the decode state (device buffers that keep their address):

    prefill(tokens [n] i32, state, params)   appends n tokens; leaves logits, argmax token and position in the state
    decode(state, params)                    the same for the one token held in the state: no argument changes
    score(tokens [n] i32, state, params)     appends n tokens; returns logits [n, vocab] of every position
    hidden(tokens [n] i32, state, params)    appends n tokens; returns [n, hidden], before the final norm

state = (token [1] i32, position [1] i32, logits [1, vocab] f32, k_0, v_0, k_1, v_1 …).

Where the kernels have paged caches, many sequences share cache = (k_0, v_0 …), and places = (positions [n] i32,
sequences [n] i32, blocks [sequences, most blocks] i32) tells for each token which sequence it continues where:

    batch_prefill(tokens [pieces] i32, places, cache, params) returns [pieces, hidden], before the final norm
    batch_decode(tokens [rows] i32, places, cache, params)    returns logits [rows, vocab], each row as if it were alone
    batch_logits(x [rows, hidden], params)                    logits of rows that batch_prefill returned
    batch_choose(logits [rows, vocab], masks, mask, bias_starts, bias_tokens, biases, params)    see kernels: choose
"""

from __future__ import annotations

from tvm import te
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op

from mlcrt.compile import ops
from mlcrt.quant.scheme import Scheme

from .config import DecoderConfig

PIECES = "pieces"  # the dimension that counts tokens of several prompts, cut where it suited a step
BATCH = "rows"  # the dimension that counts independent sequences; kernels compute each as if it were alone
PLAIN = "values"  # attribute holding a weight stored as plain floats; left out of parameter names


def emit(name: str, args: list, **attrs) -> nn.Tensor | tuple:
    """Emit a project operator on nn tensors."""
    return op.wrap_nested(ops.make(name, [a._expr for a in args], **attrs), name)


class Weight(nn.Module):
    """A stored 2-D weight [rows, columns] (or a stack of `experts` of them) in the parts its scheme defines."""

    def __init__(self, scheme: Scheme, rows: int, columns: int, experts: int | None = None):
        self.scheme, self.rows, self.columns = scheme, rows, columns
        self.parts = []
        for suffix, (shape, dtype) in scheme.tensors(rows, columns).items():
            parameter = nn.Parameter(shape if experts is None else (experts, *shape), dtype)
            setattr(self, suffix or PLAIN, parameter)
            self.parts.append(parameter)

    def shape_attributes(self) -> dict:
        return {"scheme": self.scheme.name, "rows": self.rows, "columns": self.columns}

    def dequantize(self) -> nn.Tensor:
        return emit("dequantize", self.parts, **self.shape_attributes())


class Linear(nn.Module):
    """x @ W^T (+ bias), weights in their scheme, result float32."""

    def __init__(self, scheme: Scheme, rows: int, columns: int, bias: bool = False):
        self.weight = Weight(scheme, rows, columns)
        self.bias = nn.Parameter((rows,), "float32") if bias else None

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        y = op.matmul(x, op.permute_dims(self.weight.dequantize()))
        return y if self.bias is None else op.add(y, self.bias)


class Embedding(nn.Module):
    def __init__(self, scheme: Scheme, vocab: int, hidden: int, scale: float):
        self.weight = Weight(scheme, vocab, hidden)
        self.attributes = {"scheme": scheme.name, "vocab": vocab, "hidden": hidden, "scale": scale}

    def forward(self, tokens: nn.Tensor) -> nn.Tensor:
        return emit("embed", [*self.weight.parts, tokens], **self.attributes)


class Layer(nn.Module):
    """One transformer layer. Attribute names are the canonical parameter names of names.py."""

    def __init__(self, config: DecoderConfig, index: int, scheme_of):
        c, prefix = config, f"layers.{index}."
        self.config, self.window, self.rope = c, c.layer_window[index], c.layer_rope[index]

        def linear(name: str, rows: int, columns: int, bias: bool = False) -> Linear:
            return Linear(scheme_of(f"{prefix}{name}.weight"), rows, columns, bias)

        def norm(size: int) -> nn.Parameter:
            return nn.Parameter((size,), "float32")

        self.attn_norm = norm(c.hidden)
        self.qkv = linear("qkv", (c.heads + 2 * c.kv_heads) * c.head_dim, c.hidden, c.qkv_bias)
        if c.qk_norm:
            self.q_norm, self.k_norm = norm(c.head_dim), norm(c.head_dim)
        self.o = linear("o", c.hidden, c.heads * c.head_dim, c.o_bias)
        self.mlp_norm = norm(c.hidden)
        if c.post_norms:
            self.attn_post_norm, self.mlp_post_norm = norm(c.hidden), norm(c.hidden)
        if c.moe:
            self.router = linear("router", c.moe.experts, c.hidden)
            self.experts = Experts(c, prefix, scheme_of)
        else:
            self.gate_up = linear("gate_up", 2 * c.intermediate, c.hidden, c.mlp_bias)
            self.down = linear("down", c.hidden, c.intermediate, c.mlp_bias)

    def forward(self, x, tables, places, cache) -> nn.Tensor:
        y = self.attention(self.normalize(x, self.attn_norm), tables[self.rope], places, cache)
        x = op.add(x, self.normalize(y, self.attn_post_norm) if self.config.post_norms else y)
        y = self.normalize(x, self.mlp_norm)
        y = self.experts(y, self.router(y)) if self.config.moe else self.mlp(y)
        return op.add(x, self.normalize(y, self.mlp_post_norm) if self.config.post_norms else y)

    def normalize(self, x: nn.Tensor, weight: nn.Parameter) -> nn.Tensor:
        return op.rms_norm(x, weight, axes=[-1], epsilon=self.config.norm_eps)

    def attention(self, x, tables, places, cache) -> nn.Tensor:
        c = self.config
        shape = {"heads": c.heads, "kv_heads": c.kv_heads, "head_dim": c.head_dim, "paged": _paged(places)}
        norms = [self.q_norm, self.k_norm] if c.qk_norm else []
        k, v, q = emit(
            "rope_append",
            [self.qkv(x), *tables, *places, *norms, *cache],
            **shape,
            rotary_dim=2 * len(c.ropes[self.rope].inv_freq),
            norm_eps=c.norm_eps if c.qk_norm else None,
        )
        scale = {"scale": c.attention_scale, "window": self.window, "softcap": c.attention_softcap}
        return self.o(emit("attention", [q, k, v, *places], **shape, **scale))

    def mlp(self, x: nn.Tensor) -> nn.Tensor:
        gate, up = op.split(self.gate_up(x), 2, axis=-1)
        activation = self.config.activation
        gate = op.silu(gate) if activation == "silu" else op.gelu(gate, "tanh" if activation == "gelu_tanh" else None)
        return self.down(op.multiply(gate, up))


class Experts(nn.Module):
    """The routed MLPs of one layer: the top_k by router logits run, weighted by their (renormalised) softmax."""

    def __init__(self, config: DecoderConfig, prefix: str, scheme_of):
        m = config.moe
        self.gate_up = Linear(scheme_of(f"{prefix}experts.gate_up.weight"), 2 * m.intermediate, config.hidden)
        self.gate_up.weight = Weight(self.gate_up.weight.scheme, 2 * m.intermediate, config.hidden, m.experts)
        self.down = Linear(scheme_of(f"{prefix}experts.down.weight"), config.hidden, m.intermediate)
        self.down.weight = Weight(self.down.weight.scheme, config.hidden, m.intermediate, m.experts)
        self.attributes = {
            "hidden": config.hidden,
            "intermediate": m.intermediate,
            "experts": m.experts,
            "top_k": m.top_k,
            "normalize": int(m.normalize_top_k),
            "activation": config.activation,
            "gate_up_scheme": self.gate_up.weight.scheme.name,
            "down_scheme": self.down.weight.scheme.name,
        }

    def forward(self, x: nn.Tensor, router_logits: nn.Tensor) -> nn.Tensor:
        args = [x, router_logits, *self.gate_up.weight.parts, *self.down.weight.parts]
        return emit("moe", args, **self.attributes)


class Decoder(nn.Module):
    """`scheme_of(parameter name)` tells the scheme of each 2-D weight."""

    def __init__(self, config: DecoderConfig, scheme_of):
        c = self.config = config
        self.embed = Embedding(scheme_of("embed.weight"), c.vocab, c.hidden, c.embed_scale)
        self.rope = nn.ModuleList([RopeFrequencies(len(r.inv_freq)) for r in c.ropes])
        self.layers = nn.ModuleList([Layer(c, i, scheme_of) for i in range(c.layers)])
        self.final_norm = nn.Parameter((c.hidden,), "float32")
        self.lm_head = None if c.tie_embeddings else Linear(scheme_of("lm_head.weight"), c.vocab, c.hidden)

    def hidden(self, tokens: nn.Tensor, state) -> nn.Tensor:
        return self.run(tokens, [state[1]], state[3:])

    def run(self, tokens: nn.Tensor, places, cache) -> nn.Tensor:
        """[n, hidden] after the last layer, before the final norm; places as kernels take them."""
        x = self.embed(tokens)
        tables = [
            emit(
                "rotary_tables", [table.inv_freq, places[0], tokens], factor=rope.attention_factor, own=_paged(places)
            )
            for table, rope in zip(self.rope, self.config.ropes, strict=True)
        ]
        for i, layer in enumerate(self.layers):
            x = layer(x, tables, places, (cache[2 * i], cache[2 * i + 1]))
        return x

    def logits(self, x: nn.Tensor) -> nn.Tensor:
        x = op.rms_norm(x, self.final_norm, axes=[-1], epsilon=self.config.norm_eps)
        y = self.lm_head(x) if self.lm_head else op.matmul(x, op.permute_dims(self.embed.weight.dequantize()))
        return y if self.config.final_softcap is None else emit("softcap", [y], cap=self.config.final_softcap)

    def prefill(self, tokens: nn.Tensor, state) -> tuple:
        last = op.tensor_expr_op(_last_row, "last_row", [self.hidden(tokens, state)])
        return emit("finish_step", [self.logits(last), tokens, state[2], state[0], state[1]])

    def decode(self, state) -> tuple:
        return emit("finish_step", [self.logits(self.hidden(state[0], state)), state[2], state[0], state[1]])

    def draw(self, state, drawing) -> tuple:
        """Another token in the place of the best one, after decode or prefill."""
        return emit("draw", [state[2], *drawing, state[0]])

    def score(self, tokens: nn.Tensor, state) -> nn.Tensor:
        return self.logits(self.hidden(tokens, state))

    def batch_prefill(self, tokens: nn.Tensor, places, cache) -> nn.Tensor:
        return self.run(tokens, list(places), cache)

    def batch_decode(self, tokens: nn.Tensor, places, cache) -> nn.Tensor:
        return self.logits(self.run(tokens, list(places), cache))

    def batch_logits(self, x: nn.Tensor) -> nn.Tensor:
        return self.logits(x)

    def batch_choose(self, logits, masks, mask, bias_starts, bias_tokens, biases) -> tuple:
        return emit("choose", [logits, masks, mask, bias_starts, bias_tokens, biases])


class RopeFrequencies(nn.Module):
    """One rotary table's angular frequencies; a parameter so that the library serves any scaling of the same model."""

    def __init__(self, count: int):
        self.inv_freq = nn.Parameter((count,), "float32")


def _paged(places) -> int | None:
    return 1 if len(places) == 3 else None


def _last_row(x: te.Tensor) -> te.Tensor:
    return te.compute((1, x.shape[1]), lambda _, j: x[x.shape[0] - 1, j], name="last_row")


def build_module(
    config: DecoderConfig, scheme_of, kv_shapes, kv_dtype: str, batched: bool = False, draws: bool = False
):
    """Export the decoder: (IRModule with its entry points; ordered [(parameter name, nn.Parameter)]).

    kv_shapes(kv_heads, head_dim, blocks) gives the target's layout of one layer's cache; `blocks` stays symbolic, so
    the context length is chosen when the library is loaded. `batched`: with the entry points for paged caches;
    `draws`: with that which draws tokens at random (see kernels/simt/draw.py for its state).
    """
    decoder = Decoder(config, scheme_of)
    k_shape, v_shape = kv_shapes(config.kv_heads, config.head_dim, "blocks")
    cache = [nn.spec.Tensor(list(shape), kv_dtype) for _ in range(config.layers) for shape in (k_shape, v_shape)]
    fixed = [nn.spec.Tensor([1], "int32"), nn.spec.Tensor([1], "int32"), nn.spec.Tensor([1, config.vocab], "float32")]
    state = (*fixed, *cache)
    tokens, mode = nn.spec.Tensor(["n"], "int32"), {"param_mode": "packed", "effect_mode": "none"}
    spec = {
        "prefill": {"tokens": tokens, "state": state, "$": mode},
        "decode": {"state": state, "$": mode},
        "score": {"tokens": tokens, "state": state, "$": mode},
        "hidden": {"tokens": tokens, "state": state, "$": mode},
    }
    if draws:
        drawing = (nn.spec.Tensor([8], "int32"), fixed[2], nn.spec.Tensor([2], "int32"))
        spec["draw"] = {"state": state, "drawing": drawing, "$": mode}
    if batched:
        spec |= {name: {**arguments, "$": mode} for name, arguments in _batch_spec(config, cache).items()}
    module, params = decoder.export_tvm(spec=spec)
    return module, [(name.removesuffix(f".{PLAIN}"), parameter) for name, parameter in params]


def _batch_spec(config: DecoderConfig, cache: list) -> dict:
    def places(n: str) -> tuple:
        blocks = nn.spec.Tensor(["sequences", "most"], "int32")
        return nn.spec.Tensor([n], "int32"), nn.spec.Tensor([n], "int32"), blocks

    def tokens(n: str) -> dict:
        return {"tokens": nn.spec.Tensor([n], "int32"), "places": places(n), "cache": tuple(cache)}

    logits, words = nn.spec.Tensor([BATCH, config.vocab], "float32"), -(-config.vocab // 32)
    return {
        "batch_prefill": tokens(PIECES),
        "batch_decode": tokens(BATCH),
        "batch_logits": {"x": nn.spec.Tensor([BATCH, config.hidden], "float32")},
        "batch_choose": {
            "logits": logits,
            "masks": nn.spec.Tensor(["masks", words], "int32"),
            "mask": nn.spec.Tensor([BATCH], "int32"),
            "bias_starts": nn.spec.Tensor(["starts"], "int32"),
            "bias_tokens": nn.spec.Tensor(["biases"], "int32"),
            "biases": nn.spec.Tensor(["biases"], "float32"),
        },
    }


__all__ = ["Decoder", "build_module"]
