"""The journal of a run: a line a judged picture, on disk as soon as it is judged."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...errors import TraceError
from ...lora.files import why, write_whole

NAME = "judged.jsonl"


class Journal:
    """Answers by side and place. A line that a crash cut short is dropped, and its picture is judged anew.

    Args:
        folder: where :data:`NAME` is, or will be.
        settings: everything on which an answer depends, in JSON's types.
        anew: drop what another run left.

    Raises:
        TraceError: if the folder has answers of another run, or cannot be written.
    """

    def __init__(self, folder: str | Path, settings: Mapping, anew: bool = False):
        self.path = Path(folder) / NAME
        self.settings = json.loads(json.dumps(settings))
        self.answers: dict[tuple[str, int], dict] = {}
        kept = b""
        if self.path.is_file() and not anew:
            kept = self._read()
        head = json.dumps({"settings": self.settings}, ensure_ascii=False).encode() + b"\n"
        try:
            write_whole(self.path, head + kept)
            self._file = self.path.open("ab")
        except OSError as error:
            raise TraceError(f"cannot write '{self.path}': {why(error)}") from error

    def _read(self) -> bytes:
        """The whole lines behind the head, whose answers are kept."""
        data = self.path.read_bytes()
        lines = data[: data.rfind(b"\n") + 1].splitlines()
        if not lines:
            return b""
        try:
            found = json.loads(lines[0])["settings"]
            entries = [json.loads(line) for line in lines[1:]]
            answers = {(e["side"], e["at"]): e["answer"] for e in entries}
            whole = isinstance(found, dict) and all(map(_is_answer, answers.items()))
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise TraceError(f"'{self.path}' is damaged; remove it, or add --overwrite to begin anew")
        other = [key for key in {**found, **self.settings} if found.get(key) != self.settings.get(key)]
        if other:
            key = other[0]
            raise TraceError(
                f"'{self.path.parent}' has pictures of another run: its {key} is {_short(found.get(key))}, "
                f"not {_short(self.settings.get(key))}. Choose another --out, or add --overwrite to begin "
                "anew"
            )
        self.answers = answers
        return b"".join(line + b"\n" for line in lines[1:])

    def add(self, side: str, places: Sequence[int], answers: Sequence[Mapping]) -> None:
        """Write answers, and wait until they are on the disk.

        Raises:
            TraceError: if they cannot be written; those before them stay.
        """
        text = ""
        for at, answer in zip(places, answers):
            if (side, at) not in self.answers:
                self.answers[side, at] = dict(answer)
                text += json.dumps({"side": side, "at": at, "answer": answer}, ensure_ascii=False) + "\n"
        try:
            self._file.write(text.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise TraceError(
                f"cannot write '{self.path}': {why(error)}. The same command goes on from what is there"
            ) from error

    def has(self, side: str, places: Sequence[int]) -> bool:
        return all((side, at) in self.answers for at in places)

    def of(self, side: str, count: int) -> list[dict]:
        """The answers of a side, in the order of its entries."""
        return [self.answers[side, at] for at in range(count)]

    def close(self) -> None:
        self._file.close()


def _is_answer(entry: tuple) -> bool:
    """Whether a line is one that :meth:`Journal.add` writes."""
    (side, at), answer = entry
    return isinstance(side, str) and type(at) is int and at >= 0 and isinstance(answer, dict)


def _short(value) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
