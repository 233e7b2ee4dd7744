"""Addresses and variables of a store that cannot work: refused in one line, without secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl_experiments.errors import UserError
from rl_experiments.storage.objects import ObjectStore
from tests.support.faults import FaultProxy
from tests.support.stores import KEY, SECRET, moto, proxy, rclone, surroundings

__all__ = ["moto", "proxy", "rclone", "surroundings"]  # fixtures


def refusal(url: str, *, patience_seconds: float = 15) -> str:
    """Return the message with which a store at this address is refused."""
    with pytest.raises(UserError) as error:
        ObjectStore.open(
            url, "below", writes=True, setting="the.setting", patience_seconds=patience_seconds
        )
    return str(error.value)


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("gs://bucket/x", "give a folder or s3://bucket/prefix"),
        ("s3://", "give a folder or s3://bucket/prefix"),
        ("s3://bucket/../other", "give a folder or s3://bucket/prefix"),
        (f"s3://key:{SECRET}@bucket/x", "no credentials or options in the address"),
        ("s3://absent/x", "there is no such bucket"),
        ("/dev/null/store", "it cannot be written: Not a directory"),
    ],
)
def test_addresses_are_refused_in_one_line(proxy: FaultProxy, url: str, line: str) -> None:
    message = refusal(url)
    assert message.startswith("the.setting") and line in message
    assert SECRET not in message and "\n" not in message


# The answer to a HEAD request has no text that says more than 403; which request comes first is
# the library's business.
FORBIDDEN = "these credentials may not read and write here (403)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "lines"),
    [
        (
            {"AWS_SECRET_ACCESS_KEY": "wr0ng"},
            ("refuses the credentials (SignatureDoesNotMatch)", FORBIDDEN),
        ),
        (
            {"AWS_ACCESS_KEY_ID": "wr0ng"},
            ("refuses the credentials (InvalidAccessKeyId)", FORBIDDEN),
        ),
        (
            {"AWS_SECRET_ACCESS_KEY": "", "AWS_ACCESS_KEY_ID": ""},
            ("no credentials were found",),
        ),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, ("the store does not answer",)),
        ({"AWS_ENDPOINT_URL": "nonsense"}, ("AWS_ENDPOINT_URL or the bucket's name",)),
    ],
)
def test_wrong_variables_are_named_in_one_line(
    rclone: str,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    lines: tuple[str, ...],
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", rclone)
    for name, value in variables.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name)
    message = refusal("s3://bucket", patience_seconds=8)
    assert any(line in message for line in lines) and "AWS_" in message
    assert "\n" not in message and SECRET not in message and "wr0ng" not in message


def test_a_wrong_clock_is_named(proxy: FaultProxy) -> None:
    proxy.refuses = dict.fromkeys(("GET", "PUT", "POST", "DELETE"), "RequestTimeTooSkewed")
    message = refusal("s3://bucket")
    assert "the clock of this machine is wrong (RequestTimeTooSkewed)" in message


@pytest.mark.slow
def test_credentials_that_were_renewed_in_their_file_are_read_again(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Reads, writes, lists and questions that have no text in their answers go on."""
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    def renew(key: str) -> None:
        lines = [f"aws_access_key_id={key}", "aws_secret_access_key=b", f"aws_session_token={key}"]
        file.write_text("\n".join(["[default]", *lines]))

    renew("KEY0")
    store = ObjectStore.open("s3://bucket", "x", writes=True, setting="s", patience_seconds=15)
    store.first_pause_seconds = 0.01
    calls = (
        lambda: store.write("a", "text"),
        lambda: store.read("a"),
        lambda: store.put(file, "b"),
        lambda: store.get("b", tmp_path / "copy", size=1),
        lambda: store.call("info", store.path("a")),  # a HEAD
        store.list,
        lambda: store.remove("a"),
    )
    for number, call in enumerate(calls, start=1):
        proxy.expired.add(f"KEY{number - 1}")
        renew(f"KEY{number}")
        call()  # type: ignore[no-untyped-call]
    assert store.list().keys() == {"b"}


@pytest.mark.slow
def test_credentials_that_stay_expired_are_named(proxy: FaultProxy) -> None:
    store = ObjectStore.open("s3://bucket", "x", writes=True, setting="s", patience_seconds=15)
    store.patience_seconds = 0.2
    proxy.expired.add(KEY)
    refused = pytest.raises(UserError, match=r"refuses the credentials \(ExpiredToken\)")
    with refused, store.as_user_error():
        store.list()
