"""The reason is found in what a node logs."""

from pathlib import Path

import pytest

from bellhop.local.node_log import reason

FOLDER = Path("/home/ann/.bellhop/rabbitmq")
PORTS = {"amqp": 5673, "management": 15673, "prometheus": 15693, "distribution": 25673, "epmd": 4370}
STAMP = "2026-11-25 19:23:45.163785+00:00 [error] <0.130.0> "


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (
            "Error during startup: {error,\n   failed_to_initialize_feature_flags_registry}",
            "another version of RabbitMQ",
        ),
        ("{error,{incompatible_feature_flags,{badarg,[]}}}", "another version of RabbitMQ"),
        ("{disabled_required_feature_flag,\n  stream_queue}", "another version of RabbitMQ"),
        ('{error,{file_error,"/x/rabbit_serial",enospc}}', f"the disk of {FOLDER} is full"),
        ("write failed: No space left on device", f"the disk of {FOLDER} is full"),
        ("{listen_error,\n  {acceptor,{127,0,0,1},15673},\n   eaddrinuse}", "port 15673 for its management is taken"),
        ('{error,{cannot_read_file,"/x",eacces}}', "must belong to the user that runs Bellhop"),
    ],
)
def test_known_reasons_are_sentences(said: str, sentence: str) -> None:
    """Whatever stands before and behind them, and however the lines are wrapped."""
    lines = [f"{STAMP}{line}" for line in ("crasher:", *said.splitlines(), "stack_size: 28", "neighbours:")]
    found = reason("\n".join(lines), FOLDER, PORTS)
    assert found is not None
    assert sentence in found
    assert "\n" not in found
    assert found.endswith(".")


def test_an_unknown_reason_is_what_stands_below_boot_failed() -> None:
    """RabbitMQ's own words, on one line."""
    said = f"{STAMP}stack_size: 28\n{STAMP}BOOT FAILED\n{STAMP}===========\n{STAMP}Exception during startup:\n{STAMP}\n"
    said += f"{STAMP}error:{{badmatch,\n{STAMP}   too_hot}}\n"
    assert reason(said, FOLDER, PORTS) == "error:{badmatch, too_hot}"


def test_a_long_reason_is_cut() -> None:
    """It stays one line that can be read."""
    found = reason("BOOT FAILED\n===\n" + "x" * 5000, FOLDER, PORTS)
    assert found is not None
    assert len(found) < 400


def test_a_node_that_says_nothing_has_no_reason() -> None:
    """Then nothing is made up."""
    assert reason(f"{STAMP}stack_size: 28", FOLDER, PORTS) is None
