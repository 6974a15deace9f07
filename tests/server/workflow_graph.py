"""A workflow as ComfyUI's page writes it, laid out by what a real server says of its nodes."""

from __future__ import annotations

GAP, WIDTH, ROW, TEXT = 50, 360, 24, 110

#: Pixels of a node for what it will show: pictures, or a whole report.
SHOWS = {"TRACE_CompareErasure": 230, "LossGraphNode": 230, "PreviewAny": 580}

#: Pixels that the page adds below a node once it has run, in the design that adds more. A report may be
#: longer than its node: it is the last of its column.
PANELS = {
    "TRACE_LateStageFinetune": 490,
    "TRACE_FuseErasureLoras": 40,
    "TRACE_ApplyErasureLora": 40,
    "TRACE_SaveErasureLora": 40,
    "PreviewAny": 130,
}


class Graph:
    """A workflow in the page's own format, a column of nodes at a time."""

    def __init__(self, info: dict, harness):
        self.info, self.harness = info, harness
        self.nodes, self.links, self.groups = [], [], []
        self._x, self._y, self._members, self._title = 0, 0, [], ""

    def column(self, title: str) -> None:
        """Begin a column; its nodes are framed by a group with this title."""
        self._close()
        self._title, self._members, self._y = title, [], 0

    def note(self, text: str) -> None:
        lines = sum(1 + len(line) // 48 for line in text.splitlines())
        self._place(
            "MarkdownNote",
            {"inputs": [], "outputs": [], "widgets_values": [text]},
            40 + 19 * lines,
            color="#432",
        )

    def node(self, kind: str, title: str = "", /, **given) -> tuple[int, int]:
        """Add a node. A value that is ``(node, slot)`` is a wire, any other a widget's; returns ``(node,
        0)``.
        """
        spec, number = self.info[kind], len(self.nodes) + 1
        inputs, values, height, unfolded = [], [], 2 * ROW, self._unfolded(spec, given)
        for name, form, options in self.harness.inputs_of(spec):
            value, widget = given.pop(name, None), self.harness.is_widget(form, options)
            kind_of = "COMBO" if isinstance(form, list) else form
            if isinstance(value, tuple) or not widget:
                slot = {
                    "name": name,
                    "type": kind_of,
                    "link": self._link(value, number, len(inputs), kind_of),
                }
                inputs.append(slot | ({"widget": {"name": name}} if widget else {}))
                height += 0 if widget else ROW
                value = None
            if widget:
                values.append(self._default(form, options) if value is None else value)
                height += TEXT if options.get("multiline") else ROW
                if self.harness.has_control(name, form, options):
                    values.append("fixed")
                    height += ROW
        if given:
            raise ValueError(f"{kind} has no input {', '.join(given)}")
        # What versions of ComfyUI add to a stock node is left to the page, so that a template is the same of
        # all of them
        outputs = [
            {"name": n, "type": t, "links": [], "slot_index": i}
            for i, (t, n) in enumerate(zip(spec["output"], spec["output_name"]))
            if kind.startswith("TRACE_")
        ]
        height += SHOWS[kind] if kind in SHOWS else ROW * max(0, len(outputs) - len(inputs))
        parts = {"inputs": inputs, "outputs": outputs, "widgets_values": values}
        self._place(kind, parts | ({"showAdvanced": True} if unfolded else {}), height, title=title)
        return number, 0

    def _unfolded(self, spec: dict, given: dict) -> bool:
        """Whether a value is given to a widget that the page folds away: it is shown then."""
        return any(
            name in given and options.get("advanced") for name, _, options in self.harness.inputs_of(spec)
        )

    @staticmethod
    def _default(form, options: dict):
        return options.get("default", form[0] if isinstance(form, list) and form else "")

    def _link(self, source, target: int, slot: int, kind: str) -> int | None:
        if source is None:
            return None
        number = len(self.links) + 1
        self.links.append([number, source[0], source[1], target, slot, kind])
        self.nodes[source[0] - 1]["outputs"][source[1]]["links"].append(number)
        return number

    def _place(self, kind: str, parts: dict, height: int, title: str = "", color: str = "") -> None:
        number = len(self.nodes) + 1
        node = {
            "id": number,
            "type": kind,
            "pos": [self._x, self._y],
            "size": [WIDTH, height],
            "flags": {},
            "order": number - 1,
            "mode": 0,
            "properties": {"Node name for S&R": kind},
            **parts,
        }
        node |= {"title": title} if title else {}
        node |= {"color": color, "bgcolor": "#653"} if color else {}
        self.nodes.append(node)
        self._members.append(node)
        self._y += height + PANELS.get(kind, 0) + GAP

    def _close(self) -> None:
        if not self._members:
            return
        bottom = max(n["pos"][1] + n["size"][1] + PANELS.get(n["type"], 0) for n in self._members)
        self.groups.append(
            {
                "id": len(self.groups) + 1,
                "title": self._title,
                "bounding": [self._x - 20, -80, WIDTH + 40, bottom + 100],
                "color": "#3f789e",
                "font_size": 24,
                "flags": {},
            }
        )
        self._x += WIDTH + 80

    def workflow(self) -> dict:
        self._close()
        return {
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": self.groups,
            "config": {},
            "extra": {},
            "version": 0.4,
        }


SWAP = """## Your own model

Put **Load Checkpoint** in the place of *Load Demo Model*, and connect its MODEL, CLIP and VAE where the \
demo's were.

- **SD 1.5, SD 2, SDXL**: Nothing else to set. Compare takes 20 steps, cfg 7 and 512 or 1024 pixels.
- **FLUX**: Use *Load Diffusion Model*, *DualCLIPLoader* (type flux) and *Load VAE* instead. Compare takes \
cfg 1.

Then write your own concept, prompts with the concept, and prompts with what must stay. An empty **keep** \
keeps a hundred everyday things.
"""


CATS = """a photo of a cat, google style
a photo of a cat, twitter style
a photo of a kitty, android style
a photo of a dog, google style
a photo of a house, fluent style
a photo of a pizza, twitter style"""


def compare(g: Graph, model: int, after: tuple[int, int], prompts: str, erase) -> None:
    compared, _ = g.node(
        "TRACE_CompareErasure",
        model_before=(model, 0),
        model_after=after,
        clip=(model, 1),
        vae=(model, 2),
        prompts=prompts,
        erase=erase,
    )
    g.node("PreviewAny", "Figures", source=(compared, 3))
