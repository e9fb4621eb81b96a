"""The table of replies as docs/mail.md shows it: reply, command, what the reply concerns, what happens."""

from services.mailer.relays.dialogue import Step
from services.mailer.relays.replies import (
    CONSEQUENCES,
    RULES,
    Cause,
    Kind,
    Rule,
    classify,
    deciding_rule,
    enhanced_code,
)

HEADER = (
    "| reply | example | to | concerns | the mail | attempt counts | next relay | suppresses | `cause` |",
    "|---|---|---|---|---|---|---|---|---|",
)


def markdown() -> str:
    """Return the table in Markdown, one row a rule, in the order in which the rules are tried."""
    return "\n".join([*HEADER, *map(_row, RULES)])


def steps(rule: Rule) -> list[Step]:
    """Return the commands for which `rule` is the first that matches its example."""
    code, text = parts(rule)
    return [step for step in Step if rule in deciding_rule(step, code, enhanced_code(text), text)]


def parts(rule: Rule) -> tuple[int, str]:
    """Return code and text of the rule's example."""
    code, _, text = rule.example.partition(" ")
    return int(code), text


def _row(rule: Rule) -> str:
    decided = steps(rule)
    verdict = classify(decided[-1], *parts(rule))
    consequence = CONSEQUENCES[rule.cause]
    permanent = verdict.kind is Kind.PERMANENT
    cells = (
        rule.reply,
        f"`{rule.example}`",
        "any" if len(decided) == len(Step) else ", ".join(decided),
        consequence.concerns,
        _action(rule, permanent),
        "yes" if verdict.charged else "no",
        "yes" if verdict.try_next_relay else "no",
        "yes" if consequence.suppress and permanent else "no",
        "" if rule.cause is Cause.OTHER else f"`{rule.cause}`",
    )
    return f"| {' | '.join(cells)} |"


def _action(rule: Rule, permanent: bool) -> str:
    if rule.kind is None and not rule.severity and not rule.codes:
        return "fails after 5.x.x, is tried again after 4.x.x"
    return "fails" if permanent else "is tried again"
