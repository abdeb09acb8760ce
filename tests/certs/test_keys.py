from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from certs.errors import AuthorityError, IssueRefused
from certs.keys import (
    MAX_CSR_BYTES,
    PrivateKey,
    generate_key,
    key_fingerprint,
    key_from_pem,
    key_to_pem,
    make_csr,
    public_key_from_csr,
    signer,
    verify_signature,
)

# OIDs of a kind of key, and of one that nobody knows: to read a key of that kind raises an exception.
ELLIPTIC, UNREAD = b"\x2a\x86\x48\xce\x3d\x02\x01", b"\x2a\x86\x48\xce\x3d\x02\x7f"


def csr_of(key: object, algorithm: SHA256 | None = None) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, algorithm or SHA256()).public_bytes(Encoding.DER)  # type: ignore[arg-type]


def test_a_key_comes_back_from_pem(key: PrivateKey) -> None:
    assert key_from_pem(key_to_pem(key), what="x").private_numbers() == key.private_numbers()


@pytest.mark.parametrize(
    "damage", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_damaged_key_names_what_it_was_for(damage: bytes) -> None:
    with pytest.raises(AuthorityError, match=r"private key of the tower CA"):
        key_from_pem(damage, what="the tower CA")


def test_only_p256_keys_are_read() -> None:
    foreign = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(AuthorityError, match=r"not an ECDSA key on P-256"):
        key_from_pem(key_to_pem(foreign), what="x")


def test_a_request_gives_its_key_in_pem_and_der(key: PrivateKey) -> None:
    expected = key.public_key().public_numbers()
    assert public_key_from_csr(make_csr(key, "anything")).public_numbers() == expected
    assert public_key_from_csr(csr_of(key)).public_numbers() == expected


@pytest.mark.parametrize(
    ("foreign", "says"),
    [
        (lambda: rsa.generate_private_key(65537, 1024), r"1\.2\.840\.113549\.1\.1\.1"),
        (lambda: ec.generate_private_key(ec.SECP256K1()), "secp256k1"),
        (lambda: ec.generate_private_key(ec.SECP521R1()), "secp521r1"),
    ],
)
def test_weak_and_odd_keys_are_refused_with_the_way_to_a_good_one(foreign: object, says: str) -> None:
    with pytest.raises(IssueRefused, match=rf"{says}.*prime256v1"):
        public_key_from_csr(csr_of(foreign()))  # type: ignore[operator]


def test_an_edwards_key_is_refused() -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.sign(ed25519.Ed25519PrivateKey.generate(), None).public_bytes(Encoding.DER)
    with pytest.raises(IssueRefused, match=r"OID 1\.3\.101\.112"):
        public_key_from_csr(request)


def test_a_key_whose_check_would_take_hours_is_not_even_read(key: PrivateKey) -> None:
    with pytest.raises(IssueRefused, match=r"another kind \(OID 1\.2\.840\.10045\.2\.127\)"):
        public_key_from_csr(csr_of(key).replace(ELLIPTIC, UNREAD))


def test_a_request_for_somebody_elses_key_is_refused(key: PrivateKey) -> None:
    def spki(each: PrivateKey) -> bytes:
        return each.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    stolen = csr_of(key).replace(spki(key), spki(generate_key()))
    with pytest.raises(IssueRefused, match=r"not signed by the key that it holds"):
        public_key_from_csr(stolen)


def test_a_request_is_bounded() -> None:
    with pytest.raises(IssueRefused, match=rf"at most {MAX_CSR_BYTES}"):
        public_key_from_csr(b"\x30" * (MAX_CSR_BYTES + 1))


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@given(st.data())
def test_an_altered_request_gives_a_refusal_or_its_key(data: st.DataObject) -> None:
    request = bytearray(CSR)
    at = data.draw(st.integers(0, len(request) - 1))
    request[at] ^= data.draw(st.integers(1, 255))
    try:
        found = public_key_from_csr(bytes(request))
    except IssueRefused:
        return
    # The signature does not cover its own algorithm field: a change there may pass, a change of the key may not.
    assert key_fingerprint(found) == key_fingerprint(CSR_KEY.public_key())


CSR_KEY = generate_key()
CSR = csr_of(CSR_KEY)


def test_signatures(key: PrivateKey) -> None:
    signature = signer(key)(b"transcript")
    assert verify_signature(key.public_key(), b"transcript", signature)
    assert not verify_signature(key.public_key(), b"another", signature)
    assert not verify_signature(generate_key().public_key(), b"transcript", signature)
    for bad in (b"", b"\x30", signature + b"x" * 100, signature[:-1]):
        assert not verify_signature(key.public_key(), b"transcript", bad)


def test_the_same_key_has_the_same_fingerprint(key: PrivateKey) -> None:
    assert key_fingerprint(key.public_key()) == key_fingerprint(public_key_from_csr(make_csr(key)))
    assert key_fingerprint(key.public_key()) != key_fingerprint(generate_key().public_key())
