"""Advice from what a real endpoint was seen to do: a release, its folder, a running endpoint, the command."""
import json
import sys

import pytest

from deploy_assist import Advice, ConfigError, EndpointError, advise, serve
from deploy_assist.cli import run

linux = pytest.mark.skipif(sys.platform != "linux", reason="CPU and memory of another process are read from /proc")


@pytest.fixture(scope="module")
def found(patients) -> Advice:
    return advise(patients, 50, p95_ms=1000, budget=100, data_residency="on-premises", seconds=1.5)


def test_a_release_is_served_measured_and_advised(found):
    assert found.where == "on-premises" and found.is_feasible and found.replicas == found.cores + 1
    assert found.measured.start_s > 0 and found.measured.artefact_mb > 0.01 and found.measured.environment_mb > 100
    topics = [topic for topic, _ in found.steps]
    assert {"cores", "latency", "replicas", "image", "edge", "cost"} <= set(topics)
    assert found.month_cost is None and any(ask.startswith("prices:") for ask in found.asks), "no price is invented"


@linux
def test_cpu_and_memory_are_the_servers(found):
    assert 0 < found.measured.memory_start_mb <= found.measured.memory_peak_mb < found.memory_mb
    assert 0 < found.measured.batch_cpu_ms < found.measured.cpu_ms * found.measured.batch_rows


def test_it_shows_as_text_page_and_json(found):
    assert "What would change the answer" in str(found) and "<table>" in found._repr_html_()
    assert json.loads(json.dumps(found.to_dict()))["where"] == "on-premises"


def test_a_running_endpoint_is_measured_as_it_is(bundle, tmp_path):
    with serve(bundle, log=False, key="a-key-for-the-advice", home=tmp_path) as endpoint:
        found = advise(endpoint, 5, offline=True, seconds=0.9)
        assert found.where == "on-premises" and found.image_mb is None and found.fits_edge is None
        with pytest.raises(EndpointError, match="expected a key"): advise(endpoint.url, 5)


def test_needs_are_checked_before_anything_is_served():
    with pytest.raises(ConfigError, match="got availability, expected any of requests_per_s"):
        advise("no-such-folder", 5, availability=0.99)
    with pytest.raises(ConfigError, match="p95_ms: got -1"): advise("no-such-folder", 5, p95_ms=-1)


def test_the_command_uses_the_users_prices(bundle, capfd):
    code = run(["advise", str(bundle), "--requests-per-s", "5", "--p95-ms", "0.01", "--budget", "1000", "--price",
                "replica_month=12.5", "--device", "memory_mb=64", "--seconds", "0.9", "--json"])
    out = json.loads(capfd.readouterr().out)
    assert code == 1 and not out["is_feasible"] and out["is_within_budget"]
    assert out["month_cost"] == 12.5 * out["replicas"]
    assert any("would be met by" in said for said in out["changes"])
