"""The required names of a template: names of `data` that every rendering reads.

A name is optional inside a block or an expression that may be skipped, before `default`, and in a test with
`is defined`. If a rendering reads it and it is missing, that mail fails.
"""

from collections.abc import Iterator

from jinja2 import nodes

_OPTIONAL_FILTERS = {"default", "d"}
_OPTIONAL_TESTS = {"defined", "undefined"}


def required(tree: nodes.Template) -> set[str]:
    """Return the names of `data` without which the template raises."""
    if any(name.name == "data" and name.ctx == "store" for name in tree.find_all(nodes.Name)):
        return set()
    return set(_names(tree))


def _names(node: nodes.Node) -> Iterator[str]:
    if (name := _of_data(node)) is not None:
        if not hasattr(dict, name):  # `data.items()` is a method
            yield name
        return
    for part in _certain(node):
        yield from _names(part)


def _of_data(node: nodes.Node) -> str | None:
    if not isinstance(node, nodes.Getattr | nodes.Getitem):
        return None
    if not isinstance(node.node, nodes.Name) or node.node.name != "data":
        return None
    if isinstance(node, nodes.Getattr):
        return node.attr
    return node.arg.value if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str) else None


def _certain(node: nodes.Node) -> Iterator[nodes.Node]:
    """Return the parts of a node that are evaluated whenever the node is."""
    match node:
        case nodes.If() | nodes.CondExpr():
            yield node.test
        case nodes.For():
            yield node.iter
        case nodes.And() | nodes.Or():
            yield node.left
        case nodes.Filter() if node.name in _OPTIONAL_FILTERS:
            yield from node.args
        case nodes.Test() if node.name in _OPTIONAL_TESTS:
            return
        case nodes.Macro() | nodes.CallBlock():
            return
        case _:
            yield from node.iter_child_nodes()
