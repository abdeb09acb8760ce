"""What Go agents send, and what nobody should: each refusal names the field."""

from __future__ import annotations

import base64
import json
import ssl
import time
from datetime import UTC, datetime
from math import gcd
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from protocol.defaults import LEGACY_REGISTRATION
from tests.lab.pki import ClusterCA
from tower_server.legacy.registration import (
    Registration,
    RegistrationError,
    read_claim,
    read_registration,
)

GO_TOWER_CA = """-----BEGIN CERTIFICATE-----
MIICyDCCAbCgAwIBAgIBADANBgkqhkiG9w0BAQsFADAVMRMwEQYDVQQDEwprdWJl
c3BoZXJlMB4XDTIwMDMxNDA4MTIwMloXDTMwMDMxMjA4MTIwMlowFTETMBEGA1UE
AxMKa3ViZXNwaGVyZTCCASIwDQYJKoZIhvcNAQEBBQADggEPADCCAQoCggEBAMZ5
iQENWlNyB2CTq0IF72waeHjw4PbRhqLkHeKeqCv9Qw7u6+71/2glX5NiIGfXZjaF
W2fplq20Nrg6FP3kN94lzxQu4x7nCtsedgtKRgzETcrKdVkfU02z8IDZNiGAmztK
PDwHVZvXDiT1dgm+VtEHQ979D5UOm7ba7P6M2XzMnVrUmQ/BIXsbt3YYA7N46hct
jUgS1N/SFamBUNAk11eVOyPRy+Zgf5+xTFuui9QueGqONyxdk5ZPpd0F04iG8R85
vYt2kOkcvF7cwsWnGiToAUZP0g2BoRZA8RcGf3OJ5KBd6vadu9Z61pK0RlDnXV9E
9yKfRqOiyXeahvxbvgMCAwEAAaMjMCEwDgYDVR0PAQH/BAQDAgKkMA8GA1UdEwEB
/wQFMAMBAf8wDQYJKoZIhvcNAQELBQADggEBAHKwi2NIqSR0u5+C2lBUHOfDREND
2ZoEe/juN5i5vW6TWYMHDHq2C4An5vT5FFAk6CjX0pJQMHpCruEkWmuOBRp2Sw0P
RZzdHPOqICx31I2RoHza3dTZJNoraJxddk2fBec9E2A2lN2BnCjkbRYbNqpFJOE5
TsE9qW1ADbvWDi6k1SeYD1H0Eu5O0vlrUy/+wXt6kHXvTlgMoh+gTKrETb8gRlPg
4VWzfXea1mNZ3QcGbVkPhesI/hjsN2gNWMdPSQ7RVH7c9MP10LJOl+Vpa20iXBuQ
d5+S3uWJdamHKWp0GPUYQZYOlZIOoLzY7K5mjQ+VuCp7wyYETw8huA2ttEs=
-----END CERTIFICATE-----
"""

# A root on the curve SM2, which neither Go's x509 nor the library here knows.
SM2_CA = """-----BEGIN CERTIFICATE-----
MIIBejCCAR+gAwIBAgIUNp9TiXZtIOrgqo+LPMdLmQX4Pw0wCgYIKoEcz1UBg3Uw
EjEQMA4GA1UEAwwHZ20gcm9vdDAeFw0yNjExMjMwMTM4MTJaFw0yNjEyMjMwMTM4
MTJaMBIxEDAOBgNVBAMMB2dtIHJvb3QwWTATBgcqhkjOPQIBBggqgRzPVQGCLQNC
AASdwr1dWg99ZKV+i2zXIwQ7ogRGkwLtSlE3uZaNBB9XsD+7AqdjRJ9rMDZuhBZB
JAR0fGNWDJ1Sb2RNv6qFK8Zho1MwUTAdBgNVHQ4EFgQUGjnd0XfYBlN/ti0TjY/1
0GF+NVQwHwYDVR0jBBgwFoAUGjnd0XfYBlN/ti0TjY/10GF+NVQwDwYDVR0TAQH/
BAUwAwEB/zAKBggqgRzPVQGDdQNJADBGAiEA5EB785OgJEgTUW9WV/AfwahxB60S
/Trp044CvAkNtc8CIQDXML36/f7FE9bydNippMSC11ZGVFJ9WEDIJx22JIqIFA==
-----END CERTIFICATE-----
"""


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> ClusterCA:
    return ClusterCA(tmp_path_factory.mktemp("ca"), "ca")


@pytest.fixture
def document(ca: ClusterCA) -> dict[str, Any]:
    """In a pod, as Go sends it."""
    return {
        "Version": "0.0.0-rc",
        "Name": "edge-1",
        "Token": "ab" * 32,
        "KubernetesSvcHost": "10.96.0.1:443",
        "KubeSphereSvcHost": "ks-apiserver.kubesphere-system.svc:80",
        "CAData": b64(ca.pem),
        "BearerToken": b64(b"eyJhbGciOi.e30.sig"),
    }


def read(document: Any) -> Registration:
    payload = document if isinstance(document, bytes) else json.dumps(document).encode()
    return read_registration(read_claim(payload))


def test_a_pods_registration(document: dict[str, Any], ca: ClusterCA) -> None:
    found = read({**document, "SomethingNewer": {"a": 1}})
    assert (found.name, found.version) == ("edge-1", "0.0.0-rc")
    assert (str(found.kubernetes), str(found.kubesphere)) == (
        "10.96.0.1:443",
        "ks-apiserver.kubesphere-system.svc:80",
    )
    assert found.credential.token == b"eyJhbGciOi.e30.sig"
    assert found.credential.ca_pem == ca.pem.decode()


def test_a_kubeconfigs_registration_prefers_its_certificate(document: dict[str, Any], ca: ClusterCA) -> None:
    pair = ca.client("a", "agent", ["system:masters"])
    chain, key = pair.certificate.read_bytes(), pair.key.read_bytes()
    found = read({**document, "CertData": b64(chain), "KeyData": b64(key)})
    assert (found.credential.certificate_pem, found.credential.key_pem) == (chain, key)
    assert found.credential.token == b""


def test_nothing_secret_shows_in_what_may_be_logged(document: dict[str, Any], ca: ClusterCA) -> None:
    pair = ca.client("b", "agent", ["system:masters"])
    keyed = {**document, "CertData": b64(pair.certificate.read_bytes()), "KeyData": b64(pair.key.read_bytes())}
    for each in (document, keyed):
        claim = read_claim(json.dumps(each).encode())
        shown = repr(claim) + repr(read_registration(claim))
        for secret in ("ab" * 32, "eyJhbGciOi", "PRIVATE KEY", document["BearerToken"]):
            assert secret not in shown


@pytest.mark.parametrize(
    ("given", "host", "port"),
    [
        ("10.0.0.1:6443", "10.0.0.1", 6443),
        ("api.example.com", "api.example.com", 443),
        ("https://api.example.com:6443", "api.example.com", 6443),
        ("api.example.com:6443/", "api.example.com", 6443),
        ("[fd00::1]:443", "fd00::1", 443),
        ("[fd00::1]", "fd00::1", 443),
        ("fd00::1:443", "fd00::1", 443),  # of a pod: KUBERNETES_SERVICE_HOST and _PORT, joined as they are
        ("2001:db8::a:6443", "2001:db8::a", 6443),
        ("2001:db8:1:2:3:4:5:6:443", "2001:db8:1:2:3:4:5:6", 443),
        ("fd00::1", "fd00::1", 443),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2:3:4:5:6", 443),
    ],
)
def test_addresses(document: dict[str, Any], given: str, host: str, port: int) -> None:
    found = read({**document, "KubernetesSvcHost": given}).kubernetes
    assert (found.bare_host, found.port) == (host, port)
    # What the agent dials by it, in a form that Go's `net.Dial` takes.
    assert str(found) == (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def test_a_service_without_a_port_is_http_and_none_is_none(document: dict[str, Any]) -> None:
    assert str(read({**document, "KubeSphereSvcHost": "ks-apiserver"}).kubesphere) == "ks-apiserver:80"
    assert read({**document, "KubeSphereSvcHost": ""}).kubesphere is None


@pytest.mark.parametrize(
    "given",
    [
        "",
        ":443",
        "host:0",
        "host:65536",
        "host:x",
        "a b:443",
        "host:443:1",
        "host/path",
        "h\x00st:1",
        "..:1",
        "-:1",
        "fe80::1%eth0:443",
    ],
)
def test_what_is_no_address_is_refused(document: dict[str, Any], given: str) -> None:
    with pytest.raises(RegistrationError, match="KubernetesSvcHost"):
        read({**document, "KubernetesSvcHost": given})


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 90_000, b'{"Name":' + b"[" * 50_000, b"1" * 5000, b'"x"'],
)
def test_what_is_no_json_object_is_refused(payload: bytes) -> None:
    with pytest.raises(RegistrationError, match="JSON"):
        read(payload)


def test_an_oversized_payload_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(RegistrationError, match=f"at most {LEGACY_REGISTRATION}"):
        read_claim(b" " * (LEGACY_REGISTRATION + 1))


@pytest.mark.parametrize("key", ["Name", "Token", "Version", "KubernetesSvcHost", "KubeSphereSvcHost"])
@pytest.mark.parametrize("value", [1, None, [], {"a": 1}, "x" * 2000, "line\nbreak", "\x1b[31m"])
def test_texts_are_bounded_and_printable(document: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(RegistrationError, match=key):
        read({**document, key: value})


@pytest.mark.parametrize("key", ["CAData", "CertData", "KeyData", "BearerToken"])
@pytest.mark.parametrize("value", [1, ["a"], "not base64!", "YQ"])
def test_bytes_are_base64(document: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(RegistrationError, match=f"{key} is not base64"):
        read({**document, key: value})


@pytest.mark.parametrize("pem", [b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_certificates_that_do_not_parse_are_refused(document: dict[str, Any], pem: bytes) -> None:
    with pytest.raises(RegistrationError, match="CAData"):
        read({**document, "CAData": b64(pem)})
    with pytest.raises(RegistrationError, match="CertData"):
        read({**document, "CertData": b64(pem), "KeyData": b64(b"x")})


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # Go Tower's is 0
@pytest.mark.parametrize("odd", [SM2_CA, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_of_a_bundle_what_can_be_read_is_taken_as_go_does(document: dict[str, Any], ca: ClusterCA, odd: str) -> None:
    mixed = b"# the first\n" + odd.encode() + b"# ours\n" + ca.pem + odd.encode()
    assert read({**document, "CAData": b64(mixed)}).credential.ca_pem == ca.pem.decode()
    with pytest.raises(RegistrationError, match="CAData holds no certificates as PEM that can be read"):
        read({**document, "CAData": b64(odd.encode())})
    with pytest.raises(RegistrationError, match="anybody could pass for this apiserver"):
        read({**document, "CAData": b64(mixed + GO_TOWER_CA.encode())})


def test_certificates_are_counted(document: dict[str, Any], ca: ClusterCA) -> None:
    assert read({**document, "CAData": b64(ca.pem * 128)}).credential.ca_pem == ca.pem.decode() * 128
    with pytest.raises(RegistrationError, match="129 certificates, at most 128"):
        read({**document, "CAData": b64(ca.pem * 129)})


def test_a_key_that_is_another_certificates_is_refused(document: dict[str, Any], ca: ClusterCA) -> None:
    one, other = ca.client("one", "a"), ca.client("other", "b")
    chain = b64(one.certificate.read_bytes())
    with pytest.raises(RegistrationError, match="not the key of the certificate"):
        read({**document, "CertData": chain, "KeyData": b64(other.key.read_bytes())})
    with pytest.raises(RegistrationError, match="not an unencrypted private key") as caught:
        read({**document, "CertData": chain, "KeyData": b64(b"-----BEGIN PRIVATE KEY-----\nAA\n")})
    assert caught.value.__cause__ is None
    with pytest.raises(RegistrationError, match="one is missing"):
        read({**document, "CertData": chain})
    with pytest.raises(RegistrationError, match="one is missing"):
        read({**document, "KeyData": chain})


def der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content).to_bytes(2, "big")
    return bytes([tag, 0x82]) + size + content if len(content) > 255 else bytes([tag, 0x81, size[1]]) + content


def short(tag: int, content: bytes) -> bytes:
    return bytes([tag, len(content)]) + content


def whole(number: int) -> bytes:
    content = number.to_bytes(number.bit_length() // 8 + 1, "big")
    return der(2, content) if len(content) > 127 else short(2, content)


def diffie_hellman(prime: int) -> bytes:
    """A private key of that group, as PKCS #8."""
    kind = short(6, b"\x2a\x86\x48\x86\xf7\x0d\x01\x03\x01")
    inner = der(0x30, kind, der(0x30, whole(prime), whole(2)))
    return pem_of("PRIVATE KEY", der(0x30, whole(0), inner, short(4, whole(5))))


def pem_of(label: str, content: bytes) -> bytes:
    return f"-----BEGIN {label}-----\n{b64(content)}\n-----END {label}-----\n".encode()


def rsa_pem(held: rsa.RSAPrivateNumbers) -> bytes:
    """Byte by byte: the library makes none whose parts do not fit."""
    public = held.public_numbers
    parts = (0, public.n, public.e, held.d, held.p, held.q, held.dmp1, held.dmq1, held.iqmp)
    return pem_of("RSA PRIVATE KEY", der(0x30, *map(whole, parts)))


def certificate_for(numbers: rsa.RSAPrivateNumbers) -> bytes:
    """Of that key; whoever signed it."""
    name, now = x509.Name([]), datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, numbers.public_numbers.public_key(), 1, now, now)
    return builder.sign(ec.generate_private_key(ec.SECP256R1()), SHA256()).public_bytes(Encoding.PEM)


def rsa_of(one: int, other: int) -> rsa.RSAPrivateNumbers:
    exponent = next(e for e in range(65537, 70000, 2) if gcd(e, (one - 1) * (other - 1)) == 1)
    secret = pow(exponent, -1, (one - 1) * (other - 1))
    public = rsa.RSAPublicNumbers(exponent, one * other)
    inverse = rsa.rsa_crt_iqmp(one, other)
    return rsa.RSAPrivateNumbers(one, other, secret, secret % (one - 1), secret % (other - 1), inverse, public)


def test_no_key_costs_much_to_read(document: dict[str, Any], ca: ClusterCA) -> None:
    """Each member's agent may bring one, and everybody waits meanwhile: these would take half a minute and more."""
    chain = ca.client("c", "agent").certificate.read_bytes()
    large = rsa_of(2**4423 - 1, 2**4253 - 1)
    began = time.process_time()
    with pytest.raises(RegistrationError, match="not an unencrypted private key"):
        read({**document, "CertData": b64(chain), "KeyData": b64(diffie_hellman(2**9941 - 1))})
    with pytest.raises(RegistrationError, match="more than 4096 bits"):
        read({**document, "CertData": b64(certificate_for(large)), "KeyData": b64(rsa_pem(large))})
    assert time.process_time() - began < 10


def test_a_common_rsa_key_is_taken_and_alone(document: dict[str, Any]) -> None:
    numbers = rsa.generate_private_key(65537, 2048).private_numbers()
    chain, key = certificate_for(numbers), rsa_pem(numbers)
    found = read({**document, "CertData": b64(chain), "KeyData": b64(b"a remark\n" + key + diffie_hellman(23))})
    assert found.credential.key_pem == key


def test_an_rsa_key_whose_signatures_would_cost_more_than_its_size_says_is_refused(document: dict[str, Any]) -> None:
    held = rsa.generate_private_key(65537, 2048).private_numbers()
    slow = held.dmp1 + (held.p - 1) * 2**8000
    odd = rsa.RSAPrivateNumbers(held.p, held.q, held.d, slow, held.dmq1, held.iqmp, held.public_numbers)
    with pytest.raises(RegistrationError, match="its parts do not fit"):
        read({**document, "CertData": b64(certificate_for(held)), "KeyData": b64(rsa_pem(odd))})


def test_a_certificate_for_a_strange_kind_of_key_is_refused(document: dict[str, Any], ca: ClusterCA) -> None:
    pair = ca.client("d", "agent")
    plain = ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())
    chain = pem_of("CERTIFICATE", plain.replace(b"\x2a\x86\x48\xce\x3d\x02\x01", b"\x2a\x86\x48\xce\x3d\x02\x7f"))
    with pytest.raises(RegistrationError, match="another kind than RSA, ECDSA or Ed25519"):
        read({**document, "CertData": b64(chain), "KeyData": b64(pair.key.read_bytes())})


def test_without_any_credential_the_mend_is_told(document: dict[str, Any]) -> None:
    del document["BearerToken"]
    with pytest.raises(RegistrationError, match="inline"):
        read(document)


@pytest.mark.parametrize("token", [b"a b", b"a\r\nX-Evil: 1", b"\xc3\xbc", b"t" * 16385])
def test_a_token_that_could_not_stand_in_a_header_is_refused(document: dict[str, Any], token: bytes) -> None:
    with pytest.raises(RegistrationError, match="BearerToken is not a token"):
        read({**document, "BearerToken": b64(token)})


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # theirs is 0
def test_go_towers_published_ca_is_refused_wherever_it_stands(document: dict[str, Any], ca: ClusterCA) -> None:
    published = GO_TOWER_CA.encode()
    for pem in (published, ca.pem + published):
        with pytest.raises(RegistrationError, match="private key is published"):
            read({**document, "CAData": b64(pem)})
    with pytest.raises(RegistrationError, match="private key is published"):
        read({**document, "CertData": b64(published), "KeyData": b64(b"x")})


def test_an_untouched_claim_reads_no_more_than_name_and_token(document: dict[str, Any]) -> None:
    document |= {"CAData": 1, "CertData": "?", "KubernetesSvcHost": {}}
    claim = read_claim(json.dumps(document).encode())
    assert (claim.name, claim.token) == ("edge-1", "ab" * 32)
