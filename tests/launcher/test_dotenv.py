"""What a .env file may hold: secrets by their names, plain values, and in which encodings."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hydra_modal_jobs import LaunchRefused, Secrets, is_secret_name, read_dotenv
from hydra_modal_jobs.config import SecretsConf

PLAIN = {
    "WANDB_PROJECT": "rl-experiments",
    "AWS_DEFAULT_REGION": "us-east-1",
    "PROJECT_ROOT": "/home/me/work",
    "OPENAI_BASE_URL": "http://127.0.0.1:8000/v1",
    "MODEL_NAME": "Qwen/Qwen2.5-3B-Instruct",
    "S3_BUCKET": "my-bucket",
    "MAX_TOKENS": "1000000000",
    "TOKENIZERS_PARALLELISM": "false-false",
    "KEYBOARD_LAYOUT": "colemak-dh",
    "WANDB_ENTITY": "our-laboratory",
}
SECRET = [
    *("WANDB_API_KEY", "HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"),
    *("openai_api_key", "GITHUB_PAT", "SENTRY_DSN", "SLACK_WEBHOOK_URL", "SMTP_PASS", "APIKEY"),
    *("GOOGLE_APPLICATION_CREDENTIALS", "HF_TOKEN_READ", "CLIENT_SECRET_2", "SSH_PASSPHRASE"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (*PLAIN, *SECRET, "DATABASE_URL", "PLAIN_NAME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_plain_values_go_along_and_are_no_secrets(folder: Path) -> None:
    (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in PLAIN.items()))
    secrets = Secrets.load(SecretsConf())
    assert secrets.values() == PLAIN and secrets.names == []
    text = " ".join(PLAIN.values())
    secrets.refuse_in(text, what="the configuration")
    assert secrets.redact(text) == text


@pytest.mark.parametrize("name", SECRET)
def test_a_secret_is_known_by_its_name(folder: Path, name: str) -> None:
    (folder / ".env").write_text(f"{name}=canary-4711\n")
    secrets = Secrets.load(SecretsConf())
    assert is_secret_name(name) and secrets.names == [name]
    with pytest.raises(LaunchRefused, match=name):
        secrets.refuse_in("x=canary-4711", what="an override")


def test_further_secrets_are_named_by_a_setting_or_known_by_their_value(folder: Path) -> None:
    url = "postgres://me:pass-word@host/db"
    (folder / ".env").write_text(f"PLAIN_NAME=canary-4711\nDATABASE_URL={url}\nS3_BUCKET=bucket\n")
    secrets = Secrets.load(SecretsConf(names=["PLAIN_NAME"]))
    assert secrets.names == ["DATABASE_URL", "PLAIN_NAME"]
    assert secrets.redact(f"{url} canary-4711 bucket") == "[DATABASE_URL] [PLAIN_NAME] bucket"


def test_variables_of_the_environment_are_judged_by_name_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    monkeypatch.setenv("HF_TOKEN", "canary-4711")
    secrets = Secrets.load(SecretsConf(environment=["AWS_ENDPOINT_URL", "HF_TOKEN"]))
    assert secrets.names == ["HF_TOKEN"] and "AWS_ENDPOINT_URL" in secrets.values()


READ = {
    "mark of UTF-8": b"\xef\xbb\xbfA_KEY=one\nB=two\n",
    "carriage returns": b"A_KEY=one\r\nB=two\r\n",
    "export, quotes, spaces, comments": b"# \xc3\xa9\nexport A_KEY=\"one\"  # note\nB = 'two'\n",
    "UTF-16": "A_KEY=one\nB=two\n".encode("utf-16"),
    "UTF-16, big": b"\xfe\xff" + "A_KEY=one\nB=two\n".encode("utf-16-be"),
    "odd names": b"A_KEY=one\n1KEY=y\nMY-KEY=z\nEMPTY=\nALONE\n\nB=two",
}


@pytest.mark.parametrize("content", READ.values(), ids=READ)
def test_a_file_of_any_usual_form_is_read(folder: Path, content: bytes) -> None:
    (folder / ".env").write_bytes(content)
    assert read_dotenv(".env") == {"A_KEY": "one", "B": "two"}


REFUSED = {
    "unclosed quote": (b'\nB=two\n\nA_KEY="canary-4711\nC=3\n', 4),
    "words": (b"B=two\njust canary-4711 words\n", 2),
    "no name": (b"=canary-4711\n", 1),
    "Latin-1": (b"A_KEY=canary-4711\n# caf\xe9\n", 2),
    "UTF-16 without its mark": ("A_KEY=canary-4711\n".encode("utf-16-le"), 1),
}


@pytest.mark.parametrize(("content", "line"), REFUSED.values(), ids=REFUSED)
def test_a_line_that_cannot_be_read_is_named_and_not_shown(
    folder: Path, content: bytes, line: int
) -> None:
    (folder / ".env").write_bytes(content)
    with pytest.raises(LaunchRefused, match=rf"^\.env, line {line}: ") as refused:
        Secrets.load(SecretsConf())
    assert "canary" not in str(refused.value) and "\n" not in str(refused.value)


def test_a_folder_is_none_and_a_pipe_is_read_once(folder: Path) -> None:
    assert read_dotenv(".env") == {} == read_dotenv(None)
    (folder / ".env").mkdir()
    assert read_dotenv(".env") == {}
    os.mkfifo(folder / "pipe")
    threading.Thread(target=(folder / "pipe").write_text, args=("A_KEY=one\n",)).start()
    assert read_dotenv("pipe") == read_dotenv("pipe") == {"A_KEY": "one"}


def test_a_file_that_may_not_be_read_is_refused_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".env").touch()

    def denied(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(LaunchRefused, match=r"^\.env: Permission denied; make it readable$"):
        read_dotenv(".env")
