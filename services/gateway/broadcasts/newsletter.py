"""The parts of the newsletter, and sign-up, which needs several of them."""

import asyncio
from dataclasses import dataclass, field

import orjson

from bellhop.contracts.base import new_id
from bellhop.contracts.identity import NEWSLETTER
from bellhop.contracts.kinds import MAIL
from bellhop.sql.database import Database
from bellhop.sql.group_commit import GroupCommit
from bellhop.web.rate_limit import Limiter, Rate
from services.gateway.acceptance.service import Intake
from services.gateway.broadcasts.dispatcher import Dispatcher
from services.gateway.broadcasts.dispatching import TaskMaker
from services.gateway.broadcasts.schemas import ProgressAnswer
from services.gateway.broadcasts.store import Broadcasts
from services.gateway.outbox.store import now_ms
from services.gateway.public_pages.form_limits import FormLimits
from services.gateway.public_pages.links import Links
from services.gateway.settings import Settings
from services.gateway.subscribers.addresses import subscriber_id
from services.gateway.subscribers.store import SignedUp, SignUp, SubscriberStore
from services.gateway.suppressions.store import SuppressionStore
from services.gateway.tasks.messages import new_task, request_entry
from services.gateway.tasks.store import Acceptance

# For one network; a person signs up once, an office several times.
SIGN_UPS = Rate(per_second=0.2, burst=20)

_TEXT = """Hello,

you, or another person, asked for {titles} at this address. Please confirm it here:

{url}

The link works for {days:g} days. If it was not you, do nothing: you will get no mail.
"""


@dataclass(slots=True)
class Newsletter:
    """What the routes of the newsletter work with."""

    links: Links
    suppressions: SuppressionStore
    subscribers: SubscriberStore
    broadcasts: Broadcasts
    maker: TaskMaker
    dispatcher: Dispatcher
    commits: GroupCommit
    intake: Intake
    public_lists: dict[str, str]
    """Titles by name."""
    form_limits: FormLimits
    """Limits the mails that the public form sends."""
    limiter: Limiter = field(default_factory=lambda: Limiter(keys=None, subjects=None, addresses=SIGN_UPS))
    """Counts sign-ups at the public form."""
    progress: dict[str, tuple[float, ProgressAnswer]] = field(default_factory=dict)
    """The last answers about broadcasts, and until when (`monotonic`) they may be used."""

    async def sign_up(self, *people: SignUp) -> list[SignedUp]:
        """Subscribe people in one commit, and send the mails that ask for confirmation.

        Raises:
            Problem: 503 when the outbox is full.
            DatabaseUnavailable: no sign-up was committed, or the commit status is unknown.
        """
        self.intake.check_room()
        results = await asyncio.gather(*(self.commits.write(self.subscribers.sign_up, person) for person in people))
        self.intake.outbox_publisher.hand_over([entry for result in results for entry in result.entries])
        return results


def build(settings: Settings, database: Database, suppressions: SuppressionStore, intake: Intake) -> Newsletter:
    """Compose the parts."""
    links = Links(settings.link_key_ring, settings.public_url)
    titles = settings.list_titles

    def ask(person: SignUp, lists: list[str]) -> Acceptance:
        url = links.confirm(subscriber_id(person.email), lists, seconds=settings.confirm_days * 86_400)
        named = " and ".join(titles.get(name, name) for name in lists)
        document = {
            "task_id": new_id(),
            "owner": NEWSLETTER,
            "to": person.email,
            "lane": person.lane.value,
            "subject": f"Please confirm: {named}",
            # Without any text of the form: otherwise a stranger could mail any text to any address through us.
            "text": _TEXT.format(titles=named, url=url, days=settings.confirm_days),
            "headers": {"Auto-Submitted": "auto-generated"},
        }
        packed = orjson.dumps(document)
        return Acceptance(
            answer=orjson.dumps({"id": document["task_id"]}),
            tasks=[new_task(MAIL, document, packed, created_at=now_ms())],
            entries=[request_entry(MAIL, document, packed)],
            claimed=intake.outbox_publisher.has_capacity,
        )

    broadcasts = Broadcasts(database)
    maker = TaskMaker(suppressions, links)
    return Newsletter(
        links=links,
        suppressions=suppressions,
        subscribers=SubscriberStore(database, suppressions, ask),
        broadcasts=broadcasts,
        maker=maker,
        dispatcher=Dispatcher(
            database, broadcasts, maker, suppressions, intake.outbox_publisher, settings.broadcast_window
        ),
        commits=intake.commits,
        intake=intake,
        public_lists=titles,
        form_limits=FormLimits(
            database, domain_per_hour=settings.form_domain_per_hour, per_hour=settings.form_per_hour
        ),
    )
