"""The files that describe clusters: what Ray and KubeRay accept, of the tested versions; dashboards of real names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fewstep.pipeline.executors import ray_metrics

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line and line[0] != "#"
)


@pytest.mark.parametrize("name", ["ray_cluster.yaml", "ray_cluster_local.yaml"])
def test_ray_accepts_the_cluster(name: str) -> None:
    """By the schema and the checks that `ray up` has."""
    from ray.autoscaler._private import util

    given = yaml.safe_load((ROOT / name).read_text())
    config = util.prepare_config(given)
    util.validate_config(config)
    # The wheel travels in a folder of its own: Ray does not see a change of a mounted single file.
    assert "dist" in given["file_mounts"].values()
    assert all("constraints.txt" in command for command in given["setup_commands"] if "pip install" in command)
    started = " ".join(config["head_start_ray_commands"])
    assert "--autoscaling-config=" in started
    assert all("RAY_AUTH_MODE=token" in " ".join(config[f"{who}_start_ray_commands"]) for who in ("head", "worker"))
    with pytest.raises(Exception, match="validat"):
        util.validate_config({**config, "max_workers": "many"})


def test_the_cluster_grows_by_gpu_and_cpu_workers_and_shrinks() -> None:
    config = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    kinds = config["available_node_types"]
    head = kinds.pop(config["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert any(kind["resources"].get("GPU") for kind in kinds.values())
    assert all(kind["min_workers"] == 0 < kind["max_workers"] <= config["max_workers"] for kind in kinds.values())
    assert 0 < config["idle_timeout_minutes"] < 60
    assert f":{VERSIONS['ray']}-py311" in config["docker"]["image"]


def test_the_clusters_autoscaling_can_be_played_with_rays_fake_nodes() -> None:
    """What is left of the file is what decides how it grows and shrinks."""
    from benchmarks.elastic import fake_config

    given, config = (
        yaml.safe_load((ROOT / "ray_cluster.yaml").read_text()),
        fake_config(ROOT / "ray_cluster.yaml", "a:1"),
    )
    assert config["provider"]["type"] == "fake_multinode"
    assert (config["max_workers"], config["upscaling_speed"]) == (given["max_workers"], given["upscaling_speed"])
    assert config["available_node_types"][config["head_node_type"]]["resources"] == {"CPU": 0}
    assert config["available_node_types"]["cpu"]["min_workers"] == 0


def test_kubernetes_runs_the_tested_version() -> None:
    text = (ROOT / "ray_cluster_kuberay.yaml").read_text()
    parts: dict[str, Any] = {part["kind"]: part for part in yaml.safe_load_all(text)}
    cluster, job = parts["RayCluster"]["spec"], parts["RayJob"]["spec"]
    assert cluster["rayVersion"] == VERSIONS["ray"]
    assert set(re.findall(r"ray[:-](\d+\.\d+\.\d+)", text)) == {VERSIONS["ray"]}
    assert cluster["enableInTreeAutoscaling"] is True
    assert job["clusterSelector"]["ray.io/cluster"] == parts["RayCluster"]["metadata"]["name"]
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in cluster["headGroupSpec"]["template"]["spec"]["volumes"]
    }
    assert claims == {parts["PersistentVolumeClaim"]["metadata"]["name"]}
    (group,) = cluster["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_dashboard_asks_for_every_metric_there_is_and_for_no_other() -> None:
    """Ray puts `ray_` before a name, and `_total` behind a counter's."""
    board = json.loads((ROOT / "dashboards" / "grafana" / "fewstep.json").read_text())
    asked = {target["expr"] for panel in board["panels"] for target in panel["targets"]}
    names = set(re.findall(r"\bray_\w+", " ".join(asked)))
    exported = {f"ray_{name}_total" for name in ray_metrics.COUNTERS} | {f"ray_{name}" for name in ray_metrics.GAUGES}
    assert names == exported
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
