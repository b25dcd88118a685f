"""What is told of a certificate that was refused, and of what does not speak TLS."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from jetsocket import ConnectionPool
from jetsocket.exceptions import ConnectionError, TimeoutError
from jetsocket.wire.certificates import explain
from jetsocket.wire.websocket import WebSocket
from tests import servers
from tests.conftest import Tls
from tests.servers import LOCALHOST, EchoServer, RawServer

RawFactory = Callable[..., RawServer]
ANOTHER = "to trust another authority"


def served(*names: str, ca: trustme.CA, **options: object) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names, **options).configure_cert(context)  # type: ignore[arg-type]
    return context


def served_as(host_name: str, ca: trustme.CA, path: Path) -> ssl.SSLContext:
    """With a certificate that enters `host_name` as a DNS name, whatever it is; trustme knows addresses."""
    key = ec.generate_private_key(ec.SECP256R1())
    start = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=1)
    issuer = x509.load_pem_x509_certificate(ca.cert_pem.bytes())
    issuers_key = serialization.load_pem_private_key(ca.private_key_pem.bytes(), None)
    assert isinstance(issuers_key, ec.EllipticCurvePrivateKey)
    subject_key = x509.SubjectKeyIdentifier.from_public_key(issuers_key.public_key())
    certificate = (
        x509.CertificateBuilder(issuer.subject, x509.Name([]), key.public_key(), x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host_name)]), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier(subject_key.digest, None, None), critical=False)
        .sign(issuers_key, hashes.SHA256())
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    file = path / "served.pem"
    file.write_bytes(
        key.private_bytes(pem, pkcs8, serialization.NoEncryption()) + certificate.public_bytes(pem)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def refusal(
    server_context: ssl.SSLContext,
    client_context: ssl.SSLContext | None,
    host: str = LOCALHOST,
    server_hostname: str | None = None,
) -> str:
    with EchoServer(ssl_context=server_context) as server, pytest.raises(ConnectionError) as caught:
        WebSocket().connect(
            server.uri.replace(LOCALHOST, host),
            timeout=5,
            ssl_context=client_context,
            server_hostname=server_hostname,
        )
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
    return str(caught.value)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_of_a_certificate_for_another_name_the_names_are_told(tls: Tls, version: ssl.TLSVersion) -> None:
    context = served("other.test", "10.1.2.3", "*.more.test", ca=tls.ca)
    context.minimum_version = context.maximum_version = version
    told = refusal(context, tls.client_context)
    assert "is for other.test, 10.1.2.3, *.more.test, not for 127.0.0.1" in told
    assert 'manager_kwargs["server_hostname"]' in told
    assert ANOTHER not in told


def test_the_user_s_context_stays_as_it_is(tls: Tls) -> None:
    context = tls.client_context
    before = (context.check_hostname, context.verify_mode, context.verify_flags, context._msg_callback)
    refusal(served("other.test", ca=tls.ca), context)
    assert before == (
        context.check_hostname,
        context.verify_mode,
        context.verify_flags,
        context._msg_callback,
    )


def test_where_python_does_not_tell_the_names_it_is_another(
    tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jetsocket.wire.dial.names_of", lambda session: None)
    told = refusal(served("other.test", ca=tls.ca), tls.client_context)
    assert "is for another name, not for 127.0.0.1" in told


def test_many_names_are_cut(tls: Tls) -> None:
    told = refusal(served(*(f"n{number}.test" for number in range(50)), ca=tls.ca), tls.client_context)
    assert "n7.test and 42 more, not for" in told


def test_a_certificate_with_a_common_name_only(tls: Tls) -> None:
    told = refusal(served(common_name=LOCALHOST, ca=tls.ca), tls.client_context)
    # Since Python 3.13 the default context refuses it even before it looks at names.
    assert "a common name does not count" in told or "Subject Alternative Name" in told
    assert ANOTHER not in told


def test_a_common_name_is_told_where_it_counts(tls: Tls) -> None:
    """For a host name, where there are no others: OpenSSL's rule, unless the context has it switched off."""
    context = tls.trusting()
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    server = served(common_name="old.test", ca=tls.ca)
    assert "is for old.test, not for new.test" in refusal(server, context, server_hostname="new.test")
    assert "is for no host name at all" in refusal(server, context)
    context.hostname_checks_common_name = False
    assert "is for no host name at all" in refusal(server, context, server_hostname="new.test")


def test_an_address_that_is_entered_as_a_name(tls: Tls, tmp_path: Path) -> None:
    told = refusal(served_as(LOCALHOST, tls.ca, tmp_path), tls.client_context)
    assert f"is for {LOCALHOST} (entered as a name, which does not count for an address), not for 127" in told


def test_an_empty_name_is_none(tls: Tls, tmp_path: Path) -> None:
    assert "is for no host name" in refusal(served_as("", tls.ca, tmp_path), tls.client_context)


def test_an_expired_certificate(tls: Tls) -> None:
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
    context = served(LOCALHOST, ca=tls.ca, not_before=past, not_after=past + datetime.timedelta(days=1))
    told = refusal(context, tls.client_context)
    assert "expired" in told and "needs a new one" in told
    assert ANOTHER not in told and "server_hostname" not in told


def test_a_certificate_that_is_not_valid_yet(tls: Tls) -> None:
    future = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=100)
    context = served(LOCALHOST, ca=tls.ca, not_before=future, not_after=future + datetime.timedelta(days=1))
    told = refusal(context, tls.client_context)
    assert "not yet valid" in told and "clock" in told
    assert ANOTHER not in told


def test_an_unknown_authority(tls: Tls) -> None:
    told = refusal(tls.server_context, ssl.create_default_context())
    assert ANOTHER in told and "server_hostname" not in told


# --- what does not speak TLS


def says(data: bytes) -> servers.Script:
    def script(sock: servers.socket.socket) -> None:
        sock.recv(1)
        sock.sendall(data)
        servers.hold(sock)

    return script


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"220 mail.example ESMTP\r\n",
        b"-ERR unknown command\r\n",
    ],
)
def test_a_plain_answer_to_a_tls_hello(raw_server: RawFactory, tls: Tls, data: bytes) -> None:
    uri = raw_server(says(data)).uri.replace("ws://", "wss://")
    with (
        ConnectionPool(base_uri=uri, manager_kwargs={"ssl_context": tls.client_context}) as pool,
        pytest.raises(ConnectionError, match=r"does not speak TLS: .*; does it want ws://\?"),
    ):
        pool.acquire("/", timeout=20)


@pytest.mark.parametrize(
    ("alert", "told"),
    [
        (112, "server_hostname"),
        (120, "by ALPN"),
        (70, "another version of TLS"),
        (40, "refused the handshake"),
    ],
)
def test_an_alert_is_told_with_what_to_do(raw_server: RawFactory, tls: Tls, alert: int, told: str) -> None:
    uri = raw_server(says(b"\x15\x03\x03\x00\x02\x02" + bytes([alert]))).uri.replace("ws://", "wss://")
    with pytest.raises(ConnectionError) as caught:
        WebSocket().connect(uri, timeout=20, ssl_context=tls.client_context)
    assert told in str(caught.value)


def test_one_that_hangs_up_at_a_tls_hello(raw_server: RawFactory, tls: Tls) -> None:
    def script(sock: servers.socket.socket) -> None:
        sock.recv(1)
        servers.reset(sock)

    uri = raw_server(script).uri.replace("ws://", "wss://")
    with pytest.raises(ConnectionError, match=r"or does it want ws://\?"):
        WebSocket().connect(uri, timeout=20, ssl_context=tls.client_context)


def test_one_that_says_nothing_at_a_tls_hello(raw_server: RawFactory, tls: Tls) -> None:
    uri = raw_server(servers.hold).uri.replace("ws://", "wss://")
    with pytest.raises(TimeoutError, match=r"no byte came: does it want ws://\?"):
        WebSocket().connect(uri, timeout=0.3, ssl_context=tls.client_context)


def test_evil_names_are_printable_and_short() -> None:
    error = ssl.SSLCertVerificationError(1, "no")
    error.verify_code, error.verify_message = 62, "mismatch"
    why, remedy = explain(error, "h.test", ["a\x1b[2J\r\n.test", "x" * 50_000])
    assert "a?[2J  .test" in why
    assert (why + remedy).isprintable() and len(why) < 400


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("shown", ["none", "another authority's"])
def test_a_server_that_wants_a_certificate_of_the_client_s_is_told(
    tls: Tls, version: ssl.TLSVersion, shown: str
) -> None:
    """With TLS 1.3, it says so when the handshake is over on this side."""
    context = served(LOCALHOST, ca=tls.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    tls.ca.configure_trust(context)
    context.minimum_version = context.maximum_version = version
    client = tls.trusting()
    remedy = "it wants a certificate of yours: load one into your SSLContext"
    if shown != "none":
        trustme.CA().issue_cert("client.test").configure_cert(client)
        remedy = "it does not take the certificate that your SSLContext shows it"
    elif version is ssl.TLSVersion.TLSv1_2:  # which has no alert of its own for that
        remedy = "does your SSLContext fit its versions and ciphers?"
    with EchoServer(ssl_context=context) as server, pytest.raises(ConnectionError) as caught:
        WebSocket().connect(server.uri, timeout=5, ssl_context=client)
    assert remedy in str(caught.value)
    assert isinstance(caught.value.__cause__, ssl.SSLError)
