"""TensorIR statements → structured control flow."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from . import dtypes, spirv
from .analysis import Analysis, call_name, is_pointer, literal, statements
from .dtypes import U32
from .errors import CodegenError
from .expressions import Expressions


class Statements:
    """Emits the statements of one kernel."""

    def __init__(self, expressions: Expressions, analysis: Analysis):
        self.x, self.m, self.a, self.analysis = expressions, expressions.m, expressions.a, analysis
        self._visit: dict[str, Callable] = {
            "SeqStmt": self._sequence, "For": self._for, "While": self._while, "IfThenElse": self._if,
            "Bind": self._bind, "BufferStore": self._store, "Evaluate": self._evaluate, "AttrStmt": self._attribute,
            "AllocBuffer": lambda s: self.x.memory.allocate(s.buffer), "AssertStmt": lambda s: None,
            "DeclBuffer": lambda s: self.x.memory.declare(s.buffer, s.data), "Return": lambda s: self.m.end("Return"),
            "Break": lambda s: self.x.intrinsics.jump(0), "Continue": lambda s: self.x.intrinsics.jump(1),
        }  # fmt: skip

    def emit(self, stmt) -> None:
        """Emit a statement, unless a jump before it makes it unreachable."""
        if not self.m.open:
            return
        visit = self._visit.get(type(stmt).__name__)
        if visit is None:
            raise CodegenError(f"the statement {type(stmt).__name__} is not supported on Vulkan")
        visit(stmt)

    def _sequence(self, stmt) -> None:
        for part in stmt.seq:
            self.emit(part)

    def _bind(self, stmt) -> None:
        if is_pointer(stmt.var):
            self.x.memory.alias(stmt.var, stmt.value)
        elif stmt.var in self.analysis.used:
            self.x.values[stmt.var] = self.x.lanes(stmt.value)

    def _store(self, stmt) -> None:
        lanes = dtypes.parse(str(stmt.buffer.ty.dtype))[1] * dtypes.of(stmt.indices[0])[1]
        self.x.memory.store(stmt.buffer, list(stmt.indices), self.x.spread(stmt.value, lanes))

    def _evaluate(self, stmt) -> None:
        if type(stmt.value).__name__ == "Call":
            self.x.lanes(stmt.value)

    def _attribute(self, stmt) -> None:
        if stmt.attr_key == "thread_extent":
            tag = str(stmt.node.thread_tag)
            group, _, axis = tag.partition(".")
            builtin = {"blockIdx": "WorkgroupId", "threadIdx": "LocalInvocationId"}.get(group)
            if builtin is None or axis not in ("x", "y", "z"):
                raise CodegenError(f"the thread axis {tag} is not available on Vulkan")
            vector = self.m.builtin(builtin, 3)
            value = self.m.scalar("CompositeExtract", U32, vector, "xyz".index(axis))
            self.x.values[stmt.node.var] = [self.a.cast(dtypes.of(stmt.node.var)[0], U32, value)]
        self.emit(stmt.body)

    def _if(self, stmt) -> None:
        def side(body) -> Callable[[], None] | None:
            return None if body is None else lambda: self.emit(body)

        self.x.branch(self.x.condition(stmt.condition), side(stmt.then_case), side(stmt.else_case))

    # ---- loops

    def _loop(self, control: int, phi: Callable[[int], None], test: Callable[[], int], body, step) -> None:
        """header (phis) → test → body → continue → header; `body` and `step` emit, `test` gives the condition."""
        m = self.m
        head, check, inside, again, merge = (m.new_id() for _ in range(5))
        m.end("Branch", head)
        m.begin(head)
        phi(again)
        m.effect("LoopMerge", merge, again, control)
        m.end("Branch", check)
        with m.scope():
            m.begin(check)
            m.end("BranchConditional", test(), inside, merge)
            m.begin(inside)
            self.x.intrinsics.enter_loop(merge, again)
            with m.scope():
                body()
            self.x.intrinsics.leave_loop()
            m.end("Branch", again)
            m.begin(again)
            step()
            m.end("Branch", head)
        m.begin(merge)

    def _for(self, stmt) -> None:
        if stmt.kind == tirx.ForKind.THREAD_BINDING or stmt.kind == tirx.ForKind.VECTORIZED:
            raise CodegenError(f"the loop over {stmt.loop_var.name} was not lowered before code generation")
        dtype = dtypes.of(stmt.loop_var)[0]
        first = self.x.scalar(stmt.min)
        if literal(stmt.extent) == 1:
            self.x.values[stmt.loop_var] = [first]
            if not self._jumps(stmt.body):
                self.emit(stmt.body)
                return
        end = self.a.binary("Add", dtype, first, self.x.scalar(stmt.extent))
        stride = self.m.constant(dtype, 1) if stmt.step is None else self.x.scalar(stmt.step)
        before, counter, following = self.m.block, self.m.new_id(), self.m.new_id()
        type_id = self.m.type(dtype)
        self.m.use(dtype)
        self.x.values[stmt.loop_var] = [counter]
        self._loop(
            spirv.UNROLL if stmt.kind == tirx.ForKind.UNROLLED else 0,
            lambda again: self.m.effect("Phi", type_id, counter, first, before, following, again),
            lambda: self.a.binary("LT", dtype, counter, end),
            lambda: self.emit(stmt.body),
            lambda: self.m.effect("IAdd", type_id, following, counter, stride),
        )

    @staticmethod
    def _jumps(body) -> bool:
        names = ("break_loop", "continue_loop")
        return any(
            type(s).__name__ in ("Break", "Continue")
            or (type(s).__name__ == "Evaluate" and type(s.value).__name__ == "Call" and call_name(s.value) in names)
            for s in statements(body)
        )

    def _while(self, stmt) -> None:
        self._loop(
            0,
            lambda again: None,
            lambda: self.x.condition(stmt.condition),
            lambda: self.emit(stmt.body),
            lambda: None,
        )
