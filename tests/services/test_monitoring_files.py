"""The files of the profile `monitoring` are what Prometheus and Grafana take, and name what there is."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY

from bellhop import catalog

FOLDER = Path(__file__).parents[2] / "deploy" / "monitoring"
METRIC = re.compile(r"\b(?:bellhop|rabbitmq|haproxy)_[a-z_]+")
# Every module that makes metrics: importing it is making them.
MODULES = (
    "bellhop.observe.metrics",
    *(f"services.{name}.metrics" for name in catalog.NAMES),
)


def expressions() -> dict[str, str]:
    """Return every PromQL expression of the alerts and of the board, by where it stands."""
    alerts = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    found = {rule["alert"]: rule["expr"] for group in alerts for rule in group["rules"]}
    for panel in json.loads((FOLDER / "bellhop.json").read_text())["panels"]:
        for target in panel.get("targets", []):
            found[f"{panel['title']} {target['refId']}"] = target["expr"]
    return found


def test_our_metrics_exist() -> None:
    """A name that no service tells would be an alert that never rings."""
    for module in MODULES:
        importlib.import_module(module)
    families = list(REGISTRY.collect())
    known = {sample.name for family in families for sample in family.samples}
    # Those with labels have no sample before the first is used.
    suffixes = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count", "_sum"]}
    known |= {family.name + suffix for family in families for suffix in suffixes.get(family.type, [])}
    named = {name for text in expressions().values() for name in METRIC.findall(text) if name.startswith("bellhop_")}
    assert len(named) > 10
    assert named <= known


# Labels that no service can know before the first case; one case alone raises neither of these alerts.
LATER = {
    "bellhop_http_request_seconds_count": "routes are counted as they are asked for",
    "bellhop_mailer_relay_up": "named like the operator's relays, from the start of the mailer",
}
SELECTOR = re.compile(r"\b(bellhop_[a-z_]+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)=~?"([^"]*)"')


def unseen(texts: list[str], samples: list[tuple[str, dict[str, str]]], select: re.Pattern[str] = SELECTOR) -> set[str]:
    """Return the metrics and label values of PromQL expressions that no sample has."""
    missing = set()
    for name, matchers in (found.groups() for text in texts for found in select.finditer(text)):
        labels = [told for sample, told in samples if sample == name]
        if not labels:
            missing.add(name)
        for label, pattern in MATCHER.findall(matchers or ""):
            missing |= {
                f'{name}{{{label}="{value}"}}'
                for value in pattern.split("|")
                if not any(re.fullmatch(value, told.get(label, "")) for told in labels)
            }
    return missing


def test_what_an_alert_counts_begins_with_zero() -> None:
    """A series that is born with 1 has not increased for Prometheus: the first case would raise no alert."""
    program = (
        "import importlib, json, sys\n"
        "from prometheus_client import REGISTRY\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(json.dumps([(one.name, one.labels) for each in REGISTRY.collect() for one in each.samples]))\n"
    )
    told = subprocess.run([sys.executable, "-c", program, *MODULES], capture_output=True, text=True, check=True).stdout
    alerts = [
        rule["expr"]
        for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
        for rule in group["rules"]
    ]
    samples = [(name, labels) for name, labels in json.loads(told)]
    assert {name for name in unseen(alerts, samples) if name.partition("{")[0] not in LATER} == set()


def test_every_alert_says_what_and_how_urgent() -> None:
    """Whoever is woken reads a sentence."""
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
            assert rule["annotations"]["summary"], rule["alert"]


def test_panels_do_not_overlap() -> None:
    """Each place of the board is taken once."""
    places = set()
    for panel in json.loads((FOLDER / "bellhop.json").read_text())["panels"]:
        at = panel["gridPos"]
        taken = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & places, panel["title"]
        places |= taken


@pytest.mark.parametrize(
    "check", [["rules", "alerts.yml"], ["config", "--syntax-only", "prometheus.yml"]], ids=["rules", "config"]
)
def test_promtool_takes_it(check: list[str]) -> None:
    """Prometheus' own opinion, where its tool is installed (Debian's package `prometheus` has it)."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run([promtool, "check", *check], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
