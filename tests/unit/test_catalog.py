"""The files that cannot import the catalogue of services agree with it, and so does the topology."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bellhop import catalog
from bellhop.amqp import topology
from bellhop.catalog import CatalogEntry

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
PROMETHEUS = yaml.safe_load((ROOT / "deploy/monitoring/prometheus.yml").read_text())
NOT_SERVICES = ["kept", "rabbitmq", "topology", "postgres", "grafana"]
"""Other readers of secrets."""

services = pytest.mark.parametrize("service", catalog.SERVICES, ids=catalog.NAMES)


def text(name: str) -> str:
    return (ROOT / "deploy" / name).read_text()


def mentioned(pattern: str, file: str) -> list[set[str]]:
    """Return the words in the first group of each match of `pattern` in a file of `deploy`."""
    return [set(re.findall(r"[a-z]+", found)) for found in re.findall(pattern, text(file))]


def test_each_package_of_services_has_one_entry() -> None:
    """A service that the catalogue does not name would get no user, no secrets and no port."""
    assert sorted(folder.parent.name for folder in ROOT.glob("services/*/__main__.py")) == sorted(catalog.NAMES)
    assert len(set(catalog.PORTS.values())) == len(catalog.NAMES)


@services
def test_a_service_with_tables_has_migrations(service: CatalogEntry) -> None:
    """And one without has none."""
    assert (ROOT / "services" / service.name / "migrations").is_dir() is service.tables


def test_every_queue_is_consumed_by_one_service() -> None:
    """A work queue that no service may read would only grow."""
    consumed = [queue for service in catalog.SERVICES for queue in service.queues]
    ladder = {retry_queue.name for retry_queue in topology.RETRY_QUEUES}
    assert sorted(consumed) == sorted({queue.name for queue in topology.QUEUES} - ladder)


@services
def test_a_service_publishes_to_exchanges_that_there_are(service: CatalogEntry) -> None:
    """A misspelt one would be a right to nothing."""
    assert set(service.publishes) <= {exchange.name for exchange in topology.EXCHANGES}


@services
def test_compose_runs_it(service: CatalogEntry) -> None:
    """With its image, its own secrets, and the network of the database only where it has tables."""
    found: dict[str, Any] = COMPOSE["services"][service.name]
    assert found["build"]["args"] == {"SERVICE": service.name}
    assert found["image"].startswith(f"bellhop/{service.name}:")
    assert found["volumes"] == [f"secrets-{service.name}:/run/secrets/bellhop:ro"]
    assert ("database" in found["networks"]) is service.tables
    assert ("postgres" in found["depends_on"]) is service.tables


def test_compose_publishes_what_is_public() -> None:
    """Through the front alone."""
    published = {line.split(":")[-1] for line in COMPOSE["services"]["front"]["ports"]}
    assert published == {str(service.port) for service in catalog.SERVICES if service.public}


def test_secrets_have_a_volume_and_a_folder_for_each_reader() -> None:
    """The step that makes them writes to each; the image gives each folder its owner."""
    readers = [*NOT_SERVICES, *catalog.NAMES]
    mounted = [line.partition(":")[0] for line in COMPOSE["services"]["secrets"]["volumes"]]
    assert sorted(mounted) == sorted(f"secrets-{reader}" for reader in readers)
    assert set(mounted) <= set(COMPOSE["volumes"])
    assert mentioned(r"for reader in ([a-z ]+);", "Dockerfile") == [set(readers)]


def test_the_image_knows_every_port() -> None:
    """Its health check, and what it declares."""
    ports = re.search(r"^PORTS = (.+)$", text("healthcheck.py"), re.MULTILINE)
    assert ports is not None
    assert ast.literal_eval(ports[1]) == catalog.PORTS
    exposed = re.search(r"^EXPOSE (.+)$", text("Dockerfile"), re.MULTILINE)
    assert exposed is not None
    assert sorted(map(int, exposed[1].split())) == sorted(catalog.PORTS.values())


def test_the_front_finds_services_on_their_ports() -> None:
    """The front of the composed system sends requests to those that are public."""
    targets = re.findall(r"server-template \S+ \d+ ([a-z]+):(\d+)", text("front/haproxy.cfg"))
    assert dict(targets) == {service.name: str(service.port) for service in catalog.SERVICES if service.public}


def test_an_alert_watches_each_public_service_behind_the_front() -> None:
    """It says when the front has no replica left to ask."""
    public = {service.name for service in catalog.SERVICES if service.public}
    assert mentioned(r'active_servers\{proxy=~"([a-z|]+)"\}', "monitoring/alerts.yml") == [public]


def test_a_role_and_a_database_for_each_service_with_tables() -> None:
    """Made when PostgreSQL starts for the first time."""
    assert mentioned(r"for service in ([a-z ]+);", "postgres/roles.sh") == [set(catalog.WITH_TABLES)]


def test_an_upgrade_replaces_every_service() -> None:
    """One that it left out would go on with the old version."""
    assert mentioned(r"\nservices=\(([a-z ]+)\)", "upgrade") == [set(catalog.NAMES)]


@services
def test_prometheus_reads_it(service: CatalogEntry) -> None:
    """On its port, and an alert says when no replica answers."""
    job = next(job for job in PROMETHEUS["scrape_configs"] if job["job_name"] == service.name)
    (target,) = job["dns_sd_configs"]
    assert (target["names"], target["port"]) == ([service.name], service.port)
    alerts = text("monitoring/alerts.yml")
    assert f'absent(up{{job="{service.name}"}})' in alerts
    assert service.name in mentioned(r'\(up\{job=~"([a-z|]+)"\}\)', "monitoring/alerts.yml")[0]
