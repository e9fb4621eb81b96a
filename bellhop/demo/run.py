"""Run the demo: the steps, a table of their results, and a summary."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bellhop.cli.errors import CannotRun
from bellhop.demo import live, mail, newsletter, scores
from bellhop.demo.api import Api
from bellhop.demo.settings import DemoSettings
from bellhop.demo.steps import StepResult, System, first_error

STEPS: tuple[Callable[[System], Awaitable[StepResult]], ...] = (
    mail.one_mail,
    mail.mails,
    mail.reactions,
    newsletter.sign_ups,
    newsletter.broadcasts,
    live.notifications,
    scores.scores,
)

READY_SECONDS = 30.0
MOST_SENTENCES = 10


def demo() -> None:
    """Run the demo on the running system.

    Raises:
        CannotRun: a request that it accepted is lost, or has a wrong outcome.
    """
    settings = DemoSettings.load()
    console = Console()
    began = time.monotonic()
    results, error = asyncio.run(_DemoRun(settings, console).run())
    if results:
        console.print(table(results))
    wrong = [sentence for result in results for sentence in result.wrong]
    for sentence in wrong[:MOST_SENTENCES]:
        console.print(f"[red]✘[/red] {escape(sentence)}")
    if len(wrong) > MOST_SENTENCES:
        console.print(f"… and {len(wrong) - MOST_SENTENCES} more.")
    if error is not None:
        raise error
    if wrong:
        raise CannotRun(f"{len(wrong)} results are not what Bellhop guarantees; they are listed above.")
    console.print(verdict(results, time.monotonic() - began))


class _DemoRun:
    """One run of all steps."""

    def __init__(self, settings: DemoSettings, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        key = settings.admin_key.get_secret_value()
        self._system = System(
            gateway=Api("gateway", settings.url, self._say, key),
            visitor=Api("gateway", settings.url, self._say),
            mailbox=Api("mailbox", settings.mailbox_url, self._say),
            notifier_url=settings.notifier_url,
            run=f"demo-{secrets.token_hex(3)}",
            progress=self._progress,
        )

    def _say(self, sentence: str) -> None:
        # On the console of the progress bars, so that the line is printed above them.
        self._console.print(f"[yellow]●[/yellow] {escape(sentence)}")

    async def run(self) -> tuple[list[StepResult], CannotRun | None]:
        """Return the results of the steps, and the error that ended the run, if any."""
        results: list[StepResult] = []
        try:
            await self._wait_ready()
            self._console.print(f"Driving {self._system.gateway.base_url} as [bold]{self._system.run}[/bold]")
            with self._progress:
                for step in STEPS:
                    results.append(await self._step(step))  # noqa: PERF401 - what is done when a later one fails counts
        except CannotRun as error:
            return results, error
        except BaseExceptionGroup as group:
            if (found := first_error(group)) is None:
                raise
            return results, found
        finally:
            for api in (self._system.gateway, self._system.visitor, self._system.mailbox):
                await api.close()
        return results, None

    async def _wait_ready(self) -> None:
        """Wait for a system that is starting.

        Raises:
            CannotRun: it is not running, or not ready in time.
        """
        gateway, mailbox = self._system.gateway, self._system.mailbox
        deadline = time.monotonic() + READY_SECONDS
        while True:
            answers, failure = await gateway.look("/readyz")
            if answers and not failure:
                break
            if not answers or time.monotonic() > deadline:
                raise CannotRun(
                    f"Bellhop is not up at {gateway.base_url} ({failure}): start it with 'make up',"
                    " or set BELLHOP_URL to where it runs."
                )
            await asyncio.sleep(0.5)
        answers, failure = await mailbox.look("/api/v1/messages?limit=1")
        if failure:
            raise CannotRun(
                f"No mailbox answers at {mailbox.base_url} ({failure}), and the demo sends mail to nothing else: set"
                " BELLHOP_MAILBOX_URL to the development mailbox or to Mailpit."
            )

    async def _step(self, step: Callable[[System], Awaitable[StepResult]]) -> StepResult:
        result = await step(self._system)
        good = not result.wrong
        for task in self._progress.tasks:
            self._progress.remove_task(task.id)
        mark = "[green]✔[/green]" if good else "[red]✘[/red]"
        remark = f" [dim]({escape(result.remark)})[/dim]" if result.remark else ""
        self._console.print(f"{mark} {escape(result.what)}: {result.seconds:.1f} s{remark}")
        return result


def table(results: list[StepResult]) -> Table:
    """Return the table of results."""
    shown = Table(title="Outcome of everything that was accepted", title_justify="left")
    shown.add_column("step")
    for name in ("accepted", "done", "lost", "doubled", "a second"):
        shown.add_column(name, justify="right")
    for result in results:
        shown.add_row(
            escape(result.what),
            f"{result.accepted:,}",
            f"{result.done:,}",
            _alarm(result.lost, "red"),
            _alarm(result.doubled, "yellow"),
            f"{result.rate:,.0f}" if result.done > 1 else "",
        )
    return shown


def _alarm(count: int, colour: str) -> str:
    return f"[bold {colour}]{count:,}[/]" if count else "0"


def verdict(results: list[StepResult], seconds: float) -> str:
    """Return the summary of a run without failures."""
    done = sum(result.done for result in results)
    doubled = sum(result.doubled for result in results)
    text = f"[green]✔[/green] Everything that was accepted is done, {done:,} items in {seconds:.0f} s; nothing is lost"
    if not doubled:
        return f"{text}, nothing doubled."
    return (
        f"{text}. {doubled} mails arrived twice, with the same Message-ID and marked `uncertain`: a service was killed"
        " between sending them and recording it (RFC 1047)."
    )
