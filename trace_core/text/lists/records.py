"""JSON and YAML: the entries of nested lists and objects."""

from __future__ import annotations

import json
import json.scanner
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...errors import ConceptError
from ..kinds import KINDS
from ..syntax import Item, check, items, key, masked, short
from .columns import NAMES, NONE, SETTINGS, Columns, kind_named, word

MAX_DEPTH = 20
MAX_ITEMS = 100_000
DETAILS = NAMES["anchor"] | NAMES["kind"] | NAMES["strength"]  #: keys that describe a name


class Text(str):
    """A string of a file, with its line number."""

    line = 0


def json_data(text: str, source: str, lines: bool = False):
    """The data of a JSON text. Its strings carry their line numbers.

    Args:
        lines: True for JSON Lines, one value per line.

    Raises:
        ConceptError: naming the line, or a key that an object has twice.
    """
    decoder = json.JSONDecoder(object_pairs_hook=lambda pairs: _object(pairs, source))
    plain, at, line = decoder.parse_string, 0, 1

    def string(s, end, strict=True):
        nonlocal at, line
        value, after = plain(s, end, strict)
        text = Text(value)
        line, at = line + s.count("\n", at, end), end  # the parser reads strings in order
        text.line = line
        return text, after

    decoder.parse_string = string
    decoder.scan_once = json.scanner.py_make_scanner(decoder)
    try:
        if not lines:
            return decoder.decode(text.lstrip("\ufeff"))
        out = []
        for line, part in enumerate(text.splitlines(), start=1):
            at = 0
            if part.strip():
                out.append(decoder.decode(part))
        return out
    except json.JSONDecodeError as error:
        raise ConceptError(
            f"{source}, line {line if lines else error.lineno}: this is not JSON ({error.msg}); correct it, "
            "or save the list as text with one name per line"
        ) from error
    except RecursionError:
        raise ConceptError(
            f"{source}: the brackets are nested too deeply for a list; write one flat list of names"
        ) from None


def _object(pairs, source: str) -> dict:
    twice = [name for name, count in Counter(key(name) for name, _ in pairs).items() if count > 1]
    if twice:
        raise ConceptError(f"{source}: one object has '{short(twice[0])}' twice; remove one")
    return dict(pairs)


def yaml_data(text: str, source: str):
    """The data of a YAML text. Every scalar is a string, so that `no` and `1984` are names."""
    try:
        import yaml
    except ImportError:
        raise ConceptError(
            f"{source}: reading YAML needs the package pyyaml, which is not installed; install it (pip "
            "install pyyaml), or save the list as JSON, CSV or text"
        ) from None

    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)  # nodes with line numbers; constructs no objects
        return None if root is None else _of_node(root, {}, source)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConceptError(
            f"{source}{where}: this is not YAML ({getattr(error, 'problem', None) or 'damaged'}); "
            "correct it, or save the list as text with one name per line"
        ) from error
    except RecursionError:
        raise ConceptError(
            f"{source}: the brackets are nested too deeply for a list; write one flat list of names"
        ) from None


def _of_node(node, converted: dict, source: str):
    """The strings (with lines), lists and objects of a YAML node. An alias gives its target."""
    if node.tag.startswith("!") or ":python/" in node.tag:
        raise ConceptError(
            f"{source}, line {node.start_mark.line + 1}: the tag '{short(node.tag)}' is not allowed in a "
            "list of names; remove it"
        )
    if id(node) not in converted:
        if node.id == "sequence":
            converted[id(node)] = [_of_node(value, converted, source) for value in node.value]
        elif node.id == "mapping":
            names = [
                _of_node(name, converted, source) if name.id == "scalar" else "?" for name, _ in node.value
            ]
            converted[id(node)] = _object(
                [
                    (name or "", _of_node(value, converted, source))
                    for name, (_, value) in zip(names, node.value)
                ],
                source,
            )
        elif node.style is None and node.value.lower() in ("", "~", "null"):
            converted[id(node)] = None
        else:
            converted[id(node)] = text = Text(node.value)
            text.line = node.start_mark.line + 1
    return converted[id(node)]


def entries(data, source: str, columns: Columns, keep: bool) -> list[Item]:
    """The entries of the data of a JSON or YAML file, checked.

    Raises:
        ConceptError: naming the line where it is known, or the keys between which to choose.
    """
    found = []
    for item in _RecordReader(source, columns, keep).read(data):
        if not item.text.strip():
            raise ConceptError(f"{item.where}: an entry is empty; fill it in or remove it")
        check(item)
        found.append(item)
        if len(found) > MAX_ITEMS:
            raise ConceptError(f"{source}: more than {MAX_ITEMS:,} entries; is this the right file?")
    return found


class _RecordReader:
    """Reads entries from nested lists and objects."""

    def __init__(self, source: str, columns: Columns, keep: bool):
        self.source, self.columns, self.keep = source, columns, keep
        self.option = "--keep-column" if keep else "--column"
        self.roles = ("keep", "concept") if keep else ("concept",)

    def read(self, data) -> Iterator[Item]:
        if self.columns.concept and _is_row(data):
            lacking = next(
                (
                    i
                    for i, row in enumerate(data, start=1)
                    if not any(word(n) == word(self.columns.concept) for n in row)
                ),
                0,
            )
            if lacking:
                raise ConceptError(
                    f"{self.option} '{short(self.columns.concept)}': entry {lacking} of {self.source} has "
                    "no such key"
                )
        elif self.columns.concept:
            yield from self._under(*self._named(data))
            return
        yield from self.values(data)

    def values(self, data, depth: int = 0) -> Iterator[Item]:
        """The entries in a value of any type."""
        if depth > MAX_DEPTH:
            raise ConceptError(
                f"{self.source}: the brackets are nested too deeply for a list; write one flat list of names"
            )
        if isinstance(data, dict):
            yield from self.object(data, depth)
        elif isinstance(data, list):
            for number, value in enumerate(data, start=1):
                if isinstance(value, str):
                    yield self.item(value)
                elif isinstance(value, list) and _is_pair(value):
                    yield replace(
                        self.item(value[0]), kind="" if len(value) < 2 or self.keep else kind_named(value[1])
                    )
                elif isinstance(value, dict) or (
                    isinstance(value, list) and all(isinstance(v, list) for v in value)
                ):
                    yield from self.values(value, depth + 1)
                else:
                    raise ConceptError(
                        f"{self.source}: entry {number} is {_described(value)}, not a name; write it in "
                        "quotes, or give each name "
                        'with its kind, such as ["Van Gogh", "style"]'
                    )
        elif isinstance(data, str):
            raise ConceptError(
                f"{self.source}: the file contains one text instead of a list; write one name per line, each "
                "after '- ' in YAML"
            )
        else:
            raise ConceptError(
                f"{self.source}: the file contains {_described(data)} instead of a list of names; write one "
                "name per line"
            )

    def item(self, text: str) -> Item:
        return Item(" ".join(text.split()), self.source, getattr(text, "line", 0), string=True)

    def object(self, data: dict, depth: int) -> Iterator[Item]:
        """The entries of an object: one entry, a mapping of names to anchors, or settings with a list."""
        chosen = [n for n in data if self.columns.concept and word(n) == word(self.columns.concept)]
        names = chosen or next(
            filter(None, ([n for n in data if word(n) in NAMES[role]] for role in self.roles)), []
        )
        if len(names) > 1:
            raise ConceptError(
                f"{self.source}: {' and '.join(repr(str(n)) for n in names)} may both be meant; choose one "
                f"by {self.option}, such as {self.option} {names[0]}"
            )
        maps = not self.keep and self._maps(data)
        if names and not chosen and maps and len(data) > 1 and not any(word(n) in DETAILS for n in data):
            raise ConceptError(
                f"{self.source}: '{names[0]}' may be a name with its anchor, or a key with names; "
                f"write the list as objects with 'concept' and 'anchor', or choose by {self.option}"
            )
        if names:
            yield from self._under(data, names[0], depth)
        elif data and maps:
            yield from self._mapping(data)
        elif len(data) == 1 and isinstance(value := next(iter(data.values())), (dict, list)):
            yield from self.values(value, depth + 1)
        else:
            shown = ", ".join(repr(short(str(n))) for n in list(data)[:12]) or "nothing"
            raise ConceptError(
                f"{self.source}: it is not clear which key holds the names; choose one by "
                f"{self.option}. The keys are {shown}" + (" and more" if len(data) > 12 else "")
            )

    @staticmethod
    def _maps(data: dict) -> bool:
        if any(word(n) in SETTINGS for n in data):
            return False
        return all(
            v is None
            or isinstance(v, str)
            or (isinstance(v, dict) and v and all(word(n) in DETAILS for n in v))
            for v in data.values()
        )

    def _mapping(self, data: dict) -> Iterator[Item]:
        """``{name: anchor}`` or ``{name: {"anchor": ..., "kind": ...}}``."""
        for name, value in data.items():
            beside = value.values() if isinstance(value, dict) else [value]
            line = next((n for n in (getattr(text, "line", 0) for text in (name, *beside)) if n), 0)
            entry = replace(self.item(name), line=line)
            if isinstance(value, dict):
                yield self._details(entry, value)
            else:
                yield replace(entry, anchor=" ".join((value or "").split()))

    def _under(self, data: dict, name: str, depth: int = 0) -> Iterator[Item]:
        """The entries under a key of an object, with the anchors and kinds from its other keys."""
        value = data[name]
        if isinstance(value, str):
            if "," in masked(value) and word(name).endswith(("s", "list", "multiconcept")):
                raise ConceptError(
                    f"{self.item(value).where}: '{short(value)}' contains a comma; write '{name}' as a list, "
                    "or put a semicolon between two names"
                )
            found = list(items(value, self.source)) if ";" in value else [self.item(value)]
            yield from (
                self._details(replace(i, line=getattr(value, "line", 0), string=True), data) for i in found
            )
            return
        found = list(self.values(value, depth + 1)) if value is not None else []
        # MACE's own code replaces the hyphens by blanks and knows two kinds
        if word(name) == "multiconcept":
            found = [
                replace(i, text=i.text.replace("-", " "), kind="" if i.kind == "object" else i.kind)
                for i in found
            ]
        anchors = self._beside(data, "anchor", self.columns.anchor)
        if isinstance(anchors, list):
            if len(anchors) != len(found) or not all(a is None or isinstance(a, str) for a in anchors):
                raise ConceptError(
                    f"{self.source}: {len(found)} names and {len(anchors)} anchors; give equally many of both"
                )
            yield from (
                self._details(replace(i, anchor=" ".join((a or "").split())), data, ("kind",))
                for i, a in zip(found, anchors)
            )
        else:
            yield from (self._details(i, data) for i in found)

    def _details(self, item: Item, data: dict, roles: Sequence[str] = ("anchor", "kind", "strength")) -> Item:
        """An entry with the details that its object gives and the entry itself lacks."""
        if self.keep:
            return item
        if (
            "anchor" in roles
            and item.anchor is None
            and isinstance(value := self._beside(data, "anchor", self.columns.anchor), str)
        ):
            item = replace(item, anchor=" ".join(value.split()))
        if (
            "kind" in roles
            and not item.kind
            and isinstance(value := self._beside(data, "kind", self.columns.kind), str)
        ):
            kind = kind_named(value)
            if kind is None:
                raise ConceptError(
                    f"{item.where}: '{short(value)}' is not a kind; use {', '.join(KINDS)}, or ignore the "
                    f"kinds with --kind-column {NONE}"
                )
            item = replace(item, kind=kind)
        if (
            "strength" in roles
            and item.strength is None
            and (value := self._beside(data, "strength")) is not None
        ):
            try:
                item = replace(item, strength=float(value))
            except (TypeError, ValueError):
                raise ConceptError(
                    f"{item.where}: the strength {_described(value)} is not a number"
                ) from None
        return item

    def _beside(self, data: dict, role: str, given: str = ""):
        if key(given) == NONE:
            return None
        names = [n for n in data if (word(n) == word(given) if given else word(n) in NAMES[role])]
        if len(names) > 1:
            raise ConceptError(
                f"{self.source}: {' and '.join(repr(str(n)) for n in names)} may both be meant; remove one"
            )
        return data[names[0]] if names else None

    def _named(self, data) -> tuple[dict, str]:
        """The object that has the option's key, which may be a path: ``MACE.multi_concept``."""
        path = self.columns.concept.split(".")
        for step in path[:-1]:
            data = data.get(step) if isinstance(data, dict) else None
        holders = [] if data is None else list(_holders(data, path[-1]))
        if len(holders) != 1:
            problem = "more than one; write its path, such as settings.concepts" if holders else "no such key"
            raise ConceptError(f"{self.option} '{short(self.columns.concept)}': {self.source} has {problem}")
        return holders[0], path[-1]


def _holders(data, name: str, depth: int = 0) -> Iterator[dict]:
    """Objects that have a key, excluding objects nested in such an object."""
    if isinstance(data, dict) and name in data:
        yield data
    elif isinstance(data, (dict, list)) and depth < MAX_DEPTH:
        for value in data.values() if isinstance(data, dict) else data:
            yield from _holders(value, name, depth + 1)


def _is_row(data) -> bool:
    """Whether data is a list of objects, one per entry, so that the option names a key of each."""
    return isinstance(data, list) and bool(data) and all(isinstance(v, dict) for v in data)


def _is_pair(value: list) -> bool:
    """Whether a list is ``[name]`` or ``[name, kind]``."""
    return (
        0 < len(value) <= 2
        and all(isinstance(v, str) for v in value)
        and (len(value) == 1 or kind_named(value[1]) is not None)
    )


def _described(value) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return {type(None): "empty", bool: "true or false"}.get(type(value), f"'{short(str(value))}'")
