"""What leaves with a registration, and when it is read anew."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest
import yaml

from daemon.faults import TowerError
from daemon.kube import access
from tests.lab.pki import ClusterCA, write_kubeconfig
from tower_agent.shipment import Credential

pytestmark = pytest.mark.asyncio
SERVER = "https://10.0.0.1:6443"


def kubeconfig(folder: Path, **user: object) -> Path:
    ca = ClusterCA(folder, "member-ca")
    path = write_kubeconfig(folder / "kubeconfig", name="member", server=SERVER, ca=ca.pem)
    config = yaml.safe_load(path.read_text())
    config["users"][0]["user"] = user
    path.write_text(yaml.safe_dump(config))
    return path


async def test_a_token_goes_with_the_authority_and_both_destinations(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, token="member-token")
    shipment = await Credential(path, None, "console.svc:80").read()
    assert shipment.what == "a token"
    sent = json.loads(shipment.registration(cluster="edge", token="secret", version="1.2.3"))
    assert base64.b64decode(sent.pop("CAData")) == (tmp_path / "member-ca.crt").read_bytes()
    assert base64.b64decode(sent.pop("BearerToken")) == b"member-token"
    assert sent == {
        "Version": "1.2.3",
        "Name": "edge",
        "Token": "secret",
        "KubernetesSvcHost": "10.0.0.1:6443",
        "KubeSphereSvcHost": "console.svc:80",
    }


async def test_a_certificate_goes_with_its_key(tmp_path: Path) -> None:
    ca = ClusterCA(tmp_path, "ca")
    pair = ca.client("agent", "agent")
    path = write_kubeconfig(tmp_path / "kubeconfig", name="member", server=SERVER, ca=ca.pem, client=pair)
    shipment = await Credential(path, None, "console.svc:80").read()
    assert shipment.what == "a client certificate with its private key"
    sent = json.loads(shipment.registration(cluster="edge", token="secret", version="1"))
    assert base64.b64decode(sent["CertData"]) == pair.certificate.read_bytes()
    assert base64.b64decode(sent["KeyData"]) == pair.key.read_bytes()
    assert "BearerToken" not in sent


async def test_a_rotated_token_file_and_a_rewritten_kubeconfig_are_other_shipments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "TOKEN_REREAD", 0.0)
    (tmp_path / "token").write_text("first")
    path = kubeconfig(tmp_path, tokenFile=str(tmp_path / "token"))
    credential = Credential(path, None, "console.svc:80")
    first = await credential.read()
    assert first == await credential.read()
    (tmp_path / "token").write_text("second")
    assert (await credential.read()).token == "second"
    config = yaml.safe_load(path.read_text())
    config["users"][0]["user"] = {"token": "third"}
    (tmp_path / "new").write_text(yaml.safe_dump(config))
    os.replace(tmp_path / "new", path)
    assert (await credential.read()).token == "third"


async def test_what_no_host_could_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TowerError, match="neither a token nor a client certificate") as caught:
        await Credential(kubeconfig(tmp_path), None, "console.svc:80").read()
    assert caught.value.code == "TWR309"

    path = kubeconfig(tmp_path, token="t")
    config = yaml.safe_load(path.read_text())
    config["clusters"][0]["cluster"]["tls-server-name"] = "kubernetes"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(TowerError, match="'kubernetes', which no host of kubesphere-v1 can use") as caught:
        await Credential(path, None, "console.svc:80").read()
    assert "leave tls-server-name out" in caught.value.mend

    path = kubeconfig(tmp_path, token="t" * 200_000)
    with pytest.raises(TowerError, match="too large to be registered"):
        await Credential(path, None, "console.svc:80").read()
