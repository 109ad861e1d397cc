"""One live line per run: what, n of N edits, elapsed, estimated rest; readable in a log too."""

import sys
import time
from typing import Protocol as Interface


class Progress(Interface):
    """What a run reports to while it goes on."""

    def start(self, title: str, total: int, done: int) -> None: ...

    def advance(self, done: int) -> None: ...

    def finish(self, note: str) -> None: ...


def clock(seconds: float) -> str:
    """1:05 or 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class LineProgress:
    """For terminals and logs: rewrites its line on a terminal, else adds one now and then."""

    def __init__(self, prefix: str = "", every: float = 20.0) -> None:
        self.prefix, self.every = prefix, every
        self.live = sys.stderr.isatty()

    def start(self, title: str, total: int, done: int) -> None:
        """Begin a run of `total` edits of which `done` were there already."""
        self.title, self.total, self.begun_at = title, total, done
        self.began = self.shown = time.monotonic()
        self._show(done)

    def advance(self, done: int) -> None:
        """`done` edits are applied and scored."""
        if self.live or time.monotonic() - self.shown > self.every:
            self._show(done)

    def _show(self, done: int) -> None:
        self.shown = time.monotonic()
        elapsed = self.shown - self.began
        worked = done - self.begun_at
        rest = f", about {clock(elapsed / worked * (self.total - done))} left" if worked else ""
        self._write(f"{self.title}: {done} of {self.total} edits, {clock(elapsed)}{rest}", False)

    def finish(self, note: str) -> None:
        """The run ended; `note` says how."""
        self._write(f"{self.title}: {note}, {clock(time.monotonic() - self.began)}", True)

    def _write(self, text: str, final: bool) -> None:
        text = self.prefix + text
        if self.live:
            sys.stderr.write("\r\x1b[2K" + text + ("\n" if final else ""))
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()


class BarProgress:
    """For notebooks: a tqdm bar per run."""

    def start(self, title: str, total: int, done: int) -> None:
        """See `LineProgress.start`."""
        from tqdm.auto import tqdm

        self.bar = tqdm(total=total, initial=done, desc=title, unit="edit")

    def advance(self, done: int) -> None:
        """See `LineProgress.advance`."""
        self.bar.update(done - self.bar.n)

    def finish(self, note: str) -> None:
        """See `LineProgress.finish`."""
        self.bar.set_postfix_str(note)
        self.bar.close()
