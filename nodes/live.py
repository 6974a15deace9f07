"""What a running node tells its page: ComfyUI's progress bar, previews, and events for the panel.

Every call first looks whether the user pressed cancel. A server sends the events out as ``trace.progress``. A
page that was reloaded asks ``/trace/live`` for the newest event of every node, with all points of its curves.
"""

from __future__ import annotations

import io
import itertools
import logging
import time
from collections import OrderedDict
from contextlib import suppress

from PIL import Image

from ..trace_core.errors import TraceError
from ..trace_core.lora.files import why, write_whole
from . import host

EVENT = "trace.progress"
EVENT_INTERVAL = 0.1  #: seconds; points in between are sent with the next event
REMEMBERED_NODES = 16

log = logging.getLogger(__name__)
_count = itertools.count()  #: clocks of some systems stand still for longer than a picture takes
_last_events: OrderedDict[str, dict] = OrderedDict()


class Live:
    """One run of a node, as a context manager, so that the page hears how the run ended."""

    def __init__(self, **facts):
        """``facts`` (objective, window, ...) are sent with every event."""
        self.node, self.prompt = host.running_node()
        self.facts, self.points, self.previews = facts, [], []
        self._sent, self._sent_points, self._phase, self._payload = 0.0, 0, None, {}
        self._bar = host.progress_bar(1)

    def __enter__(self) -> Live:
        return self

    def __exit__(self, kind, error, trace) -> None:
        state = "done" if error is None else "cancelled" if host.is_interrupt(error) else "failed"
        self._send({**self._payload, "error": str(error)[:500] if state == "failed" else None}, state)

    def phase(self, name: str, done: int, total: int) -> None:
        """A step of a phase without an optimiser. The bar shows the phase."""
        host.stop_if_interrupted()
        self._bar.update_absolute(min(done, total), max(1, total))
        self._send_if_due({"phase": name, "done": done, "total": total})

    def training(self, progress) -> None:
        """Take a :class:`trace_core.finetune.Progress`. The bar shows the phase, then the steps."""
        host.stop_if_interrupted()
        shown = (progress.step, progress.steps) if progress.step else (progress.done, max(1, progress.total))
        self._bar.update_absolute(*shown)
        if progress.losses and (not self.points or self.points[-1]["step"] < progress.step - 1):
            self.points.append({"step": progress.step - 1, **progress.losses})
        self._send_if_due(
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
        """Show a picture in ComfyUI's own preview, and save a temporary file of it for the panel."""
        self._bar.update_absolute(step, max(1, self._payload.get("steps") or 1), ("JPEG", image, largest))
        try:
            file = save_temporary(image, "jpg")
        except TraceError as error:  # a training is worth more than a picture of it
            log.warning("the preview of step %s is left out: %s", step, error)
            return
        self.previews.append({"step": step, "prompts": prompts, **file})
        self._send({**self._payload, "step": step})

    def _send_if_due(self, payload: dict) -> None:
        """Send an event, unless the last one of this phase went out a moment ago."""
        last = payload.get("step") is not None and payload["step"] == payload["steps"]
        if payload["phase"] == self._phase and not last and time.monotonic() - self._sent < EVENT_INTERVAL:
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
    """Keep the newest event of a node for ``/trace/live``."""
    node = str(event["node"])
    forgotten = [_last_events.pop(node)] if node in _last_events else []
    _last_events[node] = event
    while len(_last_events) > REMEMBERED_NODES:
        forgotten.append(_last_events.popitem(last=False)[1])
    for old in forgotten:
        remove_previews(old)


def remove_previews(event: dict) -> None:
    """Remove the pictures of a run that was cancelled or failed: no output of a node names them."""
    if event["state"] not in ("cancelled", "failed"):
        return
    for file in event["previews"]:
        with suppress(OSError):
            (host.temp_directory() / file["subfolder"] / file["filename"]).unlink()


def save_temporary(image: Image.Image, kind: str = "png") -> dict[str, str]:
    """Write a picture into ComfyUI's temp folder. The result names the file as ``/view`` wants it.

    Raises:
        TraceError: if the file cannot be written.
    """
    name, data = f"{time.time_ns():x}-{next(_count)}.{kind}", io.BytesIO()
    options = {"format": "JPEG", "quality": 85} if kind == "jpg" else {"format": "PNG", "compress_level": 1}
    image.save(data, **options)
    try:
        write_whole(host.temp_directory() / "trace" / name, data.getvalue())
    except OSError as error:
        raise TraceError(f"cannot write a picture into ComfyUI's temp folder: {why(error)}") from error
    return {"filename": name, "subfolder": "trace", "type": "temp"}


def add_route() -> None:
    """``GET /trace/live``: the last event of every node with all its points, or of one with ``?node=ID``."""
    instance = host.server()
    if instance is None:
        return
    from aiohttp import web

    @instance.routes.get("/trace/live")
    async def live(request):
        node = request.query.get("node")
        return web.json_response(list(_last_events.values()) if node is None else _last_events.get(node))
