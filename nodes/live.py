"""What a running node tells its page: ComfyUI's progress bar, previews, and events for the panel.

Every call looks first whether the user pressed cancel. Events go out as ``trace.progress`` where there is a
server; the newest one of every node, with all points of its curves, can be asked for at ``/trace/live``, for
a page that was reloaded.
"""

from __future__ import annotations

import time
from collections import OrderedDict

from PIL import Image

from . import host

EVENT = "trace.progress"
PAUSE = 0.1  #: seconds between events; points that fall between two are sent with the next
KEPT = 16  #: nodes whose last state is remembered

_last: OrderedDict[str, dict] = OrderedDict()


class Live:
    """One run of a node; use it as a context manager, so that the page hears how it ended."""

    def __init__(self, **facts):
        """``facts``: sent with every event (objective, window, ...)."""
        self.node, self.prompt = host.where()
        self.facts, self.points, self.previews = facts, [], []
        self._sent, self._sent_points, self._phase, self._payload = 0.0, 0, None, {}
        self._bar = host.progress_bar(1)

    def __enter__(self) -> Live:
        return self

    def __exit__(self, kind, error, trace) -> None:
        state = "done" if error is None else "cancelled" if host.is_interrupt(error) else "failed"
        self._send({**self._payload, "error": str(error)[:500] if state == "failed" else None}, state)

    def phase(self, name: str, done: int, total: int) -> None:
        """A step of a phase that has no optimiser: the bar shows the phase."""
        host.stop_if_interrupted()
        self._bar.update_absolute(min(done, total), max(1, total))
        self._maybe_send({"phase": name, "done": done, "total": total})

    def training(self, progress) -> None:
        """Hears a :class:`trace_core.finetune.Progress`; until the first step the bar shows the phase,
        then the steps.
        """
        host.stop_if_interrupted()
        shown = (progress.step, progress.steps) if progress.step else (progress.done, max(1, progress.total))
        self._bar.update_absolute(*shown)
        if progress.losses and (not self.points or self.points[-1]["step"] < progress.step - 1):
            self.points.append({"step": progress.step - 1, **progress.losses})
        self._maybe_send(
            {
                "phase": progress.phase,
                "step": progress.step,
                "steps": progress.steps,
                "done": progress.done,
                "total": progress.total,
                "losses": progress.losses,
                "steps_per_second": progress.steps_per_second,
                "eta_seconds": progress.eta_seconds,
                "bank_bytes": progress.bank_bytes,
                "evaluations": progress.evaluations,
                "window": progress.window,
            }
        )

    def preview(self, image: Image.Image, step: int, prompts: list[str], largest: int = 512) -> None:
        """Show a picture in ComfyUI's own preview, and keep it for the panel as a temporary file."""
        self._bar.update_absolute(step, max(1, self._payload.get("steps") or 1), ("JPEG", image, largest))
        file = save_temporary(image, "jpg")
        self.previews.append({"step": step, "prompts": prompts, **file})
        self._send({**self._payload, "step": step})

    def _maybe_send(self, payload: dict) -> None:
        last = payload.get("step") is not None and payload["step"] == payload["steps"]
        if payload["phase"] == self._phase and not last and time.monotonic() - self._sent < PAUSE:
            self._payload = payload
            return
        self._send(payload)

    def _send(self, payload: dict, state: str = "running") -> None:
        self._payload, self._phase, self._sent = payload, payload.get("phase"), time.monotonic()
        event = {**self.facts, **payload, "state": state, "node": self.node, "prompt_id": self.prompt}
        remember(event | {"points": list(self.points), "previews": list(self.previews)})
        new, self._sent_points = self.points[self._sent_points :], len(self.points)
        instance = host.server()
        if instance is not None:
            instance.send_sync(
                EVENT, event | {"points": new, "previews": self.previews[-1:]}, instance.client_id
            )


def remember(event: dict) -> None:
    _last[str(event["node"])] = event
    _last.move_to_end(str(event["node"]))
    while len(_last) > KEPT:
        _last.popitem(last=False)


def save_temporary(image: Image.Image, kind: str = "png") -> dict[str, str]:
    """Write a picture into ComfyUI's temp folder; returns how a page asks for it."""
    folder = host.temp_directory() / "trace"
    folder.mkdir(exist_ok=True)
    name = f"{time.time_ns():x}.{kind}"
    image.save(folder / name, quality=85) if kind == "jpg" else image.save(folder / name, compress_level=1)
    return {"filename": name, "subfolder": "trace", "type": "temp"}


def add_route() -> None:
    """``GET /trace/live``: the last event of every node, with all its points; ``?node=ID`` for one."""
    instance = host.server()
    if instance is None:
        return
    from aiohttp import web

    @instance.routes.get("/trace/live")
    async def live(request):
        node = request.query.get("node")
        return web.json_response(list(_last.values()) if node is None else _last.get(node))
