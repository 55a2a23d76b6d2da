"""What a compiled module imports, with a device's kernels exchanged for ones that run on the CPU."""

from __future__ import annotations


def modules(root) -> list:
    """The module and everything it imports."""
    return [root, *(m for child in root.imports for m in modules(child))]


def replace(root, kind: str, module) -> None:
    """`module` in the place of those of a kind ("cuda") that `root` or what it imports imports."""
    for parent in modules(root):
        if any(m.kind == kind for m in parent.imports):
            others = [m for m in parent.imports if m.kind != kind]
            parent.clear_imports()
            for other in [*others, module]:
                parent.import_module(other)
