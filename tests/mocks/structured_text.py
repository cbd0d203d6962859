"""Runs the sample PLC programs: IEC 61131-3 Structured Text, parsed by tree-sitter, to Python classes and functions.

It knows just what the samples use, and is as strict as a PLC's compiler: both sides of an operator have one type, and
numbers wrap as that type does. Anything else raises SyntaxError, and a wrong type TypeError.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tree_sitter_iec61131_3_st
from tree_sitter import Language, Node, Parser

BITS = {"BOOL": 1, "BYTE": 8, "WORD": 16, "DWORD": 32, "USINT": 8, "UINT": 16, "UDINT": 32, "INT": 16, "DINT": 32}
SIGNED, STRINGS = ("INT", "DINT"), ("BOOL", "BYTE", "WORD", "DWORD")
LOGIC = {"AND": "&", "OR": "|", "XOR": "^"}
COMPARE = {"=": "==", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
ARITHMETIC = {"+": "+", "-": "-", "*": "*", "/": "//", "MOD": "%"}
KEYWORDS = {*BITS, "AT", "BIT", "BY", "DATE", "LEN", "LIMIT", "MAX", "MIN", "PRIORITY", "STEP", "STRING", "TASK",
            "TIME", "TYPE", "WITH"}
SECTIONS = {"var_input", "var_output", "var_in_out", "var_block"}


def wrapped(value: int, kind: str) -> int:
    """A number as a variable of this type holds it."""
    value = int(value) & ((1 << BITS[kind]) - 1)
    return value - (1 << BITS[kind]) if kind in SIGNED and value >> (BITS[kind] - 1) else value


def text(node: Node | None) -> str:
    assert node is not None and node.text is not None
    return node.text.decode()


def number(word: str) -> int:
    return int(word[3:].replace("_", ""), 16) if word.startswith("16#") else int(word.replace("_", ""))


class _Unit:
    """One FUNCTION or FUNCTION_BLOCK on its way to Python."""

    def __init__(self, node: Node, functions: dict[str, tuple[list[str], str]]) -> None:
        self.node, self.functions = node, functions
        self.name = text(node.child_by_field_name("name"))
        self.is_block = node.type == "function_block_declaration"
        self.types: dict[str, str] = {}  # "UDINT" or "UDINT[]"
        self.sections: dict[str, list[str]] = {section: [] for section in SECTIONS}
        self.values: dict[str, str] = {}  # what each begins with
        for section in node.children:
            if section.type in SECTIONS:
                for declaration in section.children:
                    if declaration.type == "variable_declaration":
                        self._declare(section.type, declaration)
        self.result = "" if self.is_block else text(node.child_by_field_name("return_type"))
        self.parameters = [*self.sections["var_input"], *self.sections["var_in_out"]]

    def _declare(self, section: str, declaration: Node) -> None:
        kind = declaration.child_by_field_name("type")
        initial = declaration.child_by_field_name("initial_value")
        value = "0" if initial is None else self.expression(initial)[0]
        assert kind is not None
        for name in (child for child in declaration.children_by_field_name("names") if child.type == "identifier"):
            if text(name).upper() in KEYWORDS:
                raise TypeError(f"{self.name}: {text(name)} is a word of the language")
            if kind.type == "array_type":
                bounds = kind.child_by_field_name("range")
                assert bounds is not None
                low, high = (number(text(bounds.child_by_field_name(side))) for side in ("lower", "upper"))
                if low != 0:
                    raise SyntaxError(f"an array from {low}")
                self.types[text(name)] = text(kind.child_by_field_name("element_type")) + "[]"
                self.values[text(name)] = f"[{value}] * {high + 1}"
            else:
                self.types[text(name)] = text(kind)
                self.values[text(name)] = value
            self.sections[section].append(text(name))

    def variable(self, name: str) -> str:
        if name not in self.types and name != self.name:
            raise TypeError(f"{self.name}: no variable {name}")
        return f"self.{name}" if self.is_block else name

    def expression(self, node: Node) -> tuple[str, str]:
        """(Python, type); the type of a number in the text is empty: it takes its neighbour's."""
        if node.type == "integer_literal":
            return str(number(text(node))), ""
        if node.type == "boolean_literal":
            return str(int(text(node) == "TRUE")), "BOOL"
        if node.type == "parenthesized_expression":
            code, kind = self.expression(node.named_children[0])
            return f"({code})", kind
        if node.type == "identifier":
            kind = self.result if text(node) == self.name else self.types.get(text(node), "?")
            return self.variable(text(node)), kind
        if node.type == "index_expression":
            array = text(node.child_by_field_name("object"))
            index, _ = self.expression(self._field(node, "index"))
            if not self.types.get(array, "").endswith("[]"):
                raise TypeError(f"{self.name}: {array} is no array")
            return f"{self.variable(array)}[_index({index})]", self.types[array][:-2]
        if node.type == "unary_expression" and text(node.child_by_field_name("operator")) == "NOT":
            code, kind = self.expression(self._field(node, "operand"))
            return self._wrap(f"~{code}", kind, STRINGS), kind
        if node.type == "binary_expression":
            return self._binary(node)
        if node.type == "call_expression":
            return self._call(node)
        raise SyntaxError(f"{self.name}: {node.type} {text(node)}")

    def _field(self, node: Node, name: str) -> Node:
        child = node.child_by_field_name(name)
        if child is None:
            raise SyntaxError(f"{self.name}: {text(node)}")
        return child

    def _wrap(self, code: str, kind: str, allowed: Any = None) -> str:
        if kind not in BITS or (allowed and kind not in allowed):
            raise TypeError(f"{self.name}: {code} of type {kind or 'number'}")
        return f"_wrapped({code}, {kind!r})"

    def _binary(self, node: Node) -> tuple[str, str]:
        (left, one), (right, other) = (self.expression(self._field(node, side)) for side in ("left", "right"))
        operator, kind = text(node.child_by_field_name("operator")), one or other
        if one and other and one != other:
            raise TypeError(f"{self.name}: {one} {operator} {other} in {text(node)}")
        if operator in COMPARE:
            return f"int({left} {COMPARE[operator]} {right})", "BOOL"
        if operator in LOGIC:
            return self._wrap(f"({left} {LOGIC[operator]} {right})", kind, STRINGS), kind
        if not kind:
            return f"({left} {ARITHMETIC[operator]} {right})", kind
        return self._wrap(f"({left} {ARITHMETIC[operator]} {right})", kind,
                          [name for name in BITS if name not in STRINGS]), kind

    def _call(self, node: Node) -> tuple[str, str]:
        name = text(node.child_by_field_name("function"))
        arguments = [self.expression(argument) for argument in self._field(node, "arguments").named_children]
        if name in ("SHL", "SHR"):
            (value, kind), (places, _) = arguments
            return self._wrap(f"({value} {'<<' if name == 'SHL' else '>>'} {places})", kind, STRINGS), kind
        if "_TO_" in name:
            before, _, after = name.partition("_TO_")
            ((value, kind),) = arguments
            if kind not in ("", before):
                raise TypeError(f"{self.name}: {name} of {kind}")
            return self._wrap(value, after), after
        if name not in self.functions:
            raise SyntaxError(f"{self.name}: {name}()")
        kinds, result = self.functions[name]
        if len(kinds) != len(arguments) or any(
                kind not in ("", wanted) for (_, kind), wanted in zip(arguments, kinds, strict=True)):
            raise TypeError(f"{self.name}: {text(node)}")
        return f"{name}({', '.join(code for code, _ in arguments)})", result

    def statements(self, nodes: list[Node], depth: int) -> list[str]:
        lines = [line for node in nodes for line in self.statement(node, depth)]
        return lines or ["    " * depth + "pass"]

    def statement(self, node: Node, depth: int) -> list[str]:
        indent = "    " * depth
        body = self.statements(node.children_by_field_name("body"), depth + 1) if node.type != "comment" else []
        if node.type in ("empty_statement", "comment"):
            return []
        if node.type == "assignment_statement":
            (target, kind), (value, other) = (self.expression(self._field(node, side)) for side in ("left", "right"))
            if other and other != kind:
                raise TypeError(f"{self.name}: {kind} := {other} in {text(node)}")
            return [f"{indent}{target} = {value if other else self._wrap(value, kind)}"]
        if node.type == "if_statement":
            lines = [f"{indent}if {self._condition(node)}:",
                     *self.statements(node.children_by_field_name("consequence"), depth + 1)]
            for clause in node.children:
                if clause.type in ("elsif_clause", "else_clause"):
                    head = f"elif {self._condition(clause)}:" if clause.type == "elsif_clause" else "else:"
                    lines += [indent + head, *self.statements(clause.children_by_field_name("body"), depth + 1)]
            return lines
        if node.type == "while_statement":
            return [f"{indent}while {self._condition(node)}:", *body]
        if node.type == "for_statement":
            control, first, last = (self.expression(self._field(node, name))[0] for name in ("control", "start", "end"))
            return [f"{indent}for {control} in range({first}, {last} + 1):", *body]
        if node.type == "case_statement":
            lines, word = [f"{indent}chosen = {self.expression(self._field(node, 'subject'))[0]}"], "if"
            for clause in node.children:
                if clause.type == "case_clause":
                    values = [number(text(value)) for value in clause.named_children if value.type == "case_value"]
                    lines += [f"{indent}{word} chosen in {values}:",
                              *self.statements(clause.children_by_field_name("body"), depth + 1)]
                    word = "elif"
                elif clause.type == "else_clause":
                    lines += [f"{indent}else:", *self.statements(clause.children_by_field_name("body"), depth + 1)]
            return lines
        if node.type == "exit_statement":
            return [f"{indent}break"]
        if node.type == "return_statement":
            return [f"{indent}return" + ("" if self.is_block else f" {self.name}")]
        raise SyntaxError(f"{self.name}: {node.type} {text(node)}")

    def _condition(self, node: Node) -> str:
        code, kind = self.expression(self._field(node, "condition"))
        if kind != "BOOL":
            raise TypeError(f"{self.name}: {kind} as a condition")
        return code

    def python(self) -> str:
        """A function, or a class whose call is one scan: inputs and in-outs by name."""
        body = self.statements(self.node.children_by_field_name("body"), 2 if self.is_block else 1)
        own = [name for name in self.values if name not in self.sections["var_in_out"]]
        if not self.is_block:
            local = [f"    {name} = {self.values[name]}" for name in own if name not in self.parameters]
            return "\n".join([f"def {self.name}({', '.join(self.parameters)}):", f"    {self.name} = 0", *local, *body,
                              f"    return {self.name}"])
        return "\n".join([f"class {self.name}:", "    def __init__(self):",
                          *(f"        self.{name} = {self.values[name]}" for name in own),
                          "    def __call__(self, **given):",
                          f"        for name in given: assert name in {self.parameters}, name",
                          "        vars(self).update(given)", *body])


def load(path: Path) -> dict[str, Any]:
    """The functions and function blocks of a file, by name. Raises SyntaxError for what is no Structured Text."""
    tree = Parser(Language(tree_sitter_iec61131_3_st.language())).parse(path.read_bytes())
    if tree.root_node.has_error:
        raise SyntaxError(f"{path} is no Structured Text: {tree.root_node}")
    functions: dict[str, tuple[list[str], str]] = {}
    names: dict[str, Any] = {"_wrapped": wrapped, "_index": lambda index: index if index >= 0 else 1 << 30}
    for node in tree.root_node.named_children:
        if node.type != "comment":
            unit = _Unit(node, functions)
            exec(compile(unit.python(), f"{path.name}:{unit.name}", "exec"), names)
            if not unit.is_block:
                functions[unit.name] = ([unit.types[name] for name in unit.parameters], unit.result)
    return names
