"""What people put into addresses to be let in is not shown."""

from __future__ import annotations

import string
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.storage.masking import masked_argument, without_home, without_secrets
from fewstep.storage.records import EventRecord, StudyRecord
from fewstep.storage.store import Store
from fewstep.storage.tracking import default_tracking_uri, sync

word = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)
# What a password may hold unencoded, the signs included that end other parts of an address.
password = st.text(string.ascii_letters + string.digits + "!$%^&*()-_=+[]{};:,.<>/?#@~|", max_size=20).map(
    lambda text: f"SECRET{text}SECRET"
)
scheme = st.sampled_from(["http", "https", "postgresql+psycopg2", "mysql", "s3", "mssql+pyodbc"])
around = st.sampled_from(
    ["{}", "fewstep search --tracking-uri {} --out runs/x", "tracking at {} failed: no route", "'{}'"]
)


@given(scheme, word, password, word, around)
def test_user_and_password_of_an_address_are_hidden(
    scheme: str, user: str, password: str, host: str, text: str
) -> None:
    shown = without_secrets(text.format(f"{scheme}://{user}:{password}@{host}.example/path"))
    assert shown == text.format(f"{scheme}://***@{host}.example/path")
    bare = without_secrets(text.format(f"{user}:SECRET@{host}.example/path"))
    assert "SECRET" not in bare
    assert f"{host}.example/path" in bare


@given(
    scheme,
    word,
    st.sampled_from(
        ["token", "access_token", "api_key", "apikey", "Password", "passwd", "X-Amz-Signature", "client_secret"]
    ),
    st.text(string.ascii_letters + string.digits + "%-_.~+/=", min_size=1).map(lambda text: f"SECRET{text}"),
    around,
)
def test_tokens_of_a_query_are_hidden(scheme: str, host: str, name: str, token: str, text: str) -> None:
    shown = without_secrets(text.format(f"{scheme}://{host}/path?a=1&{name}={token}&b=2"))
    assert shown == text.format(f"{scheme}://{host}/path?a=1&{name}=***&b=2")


@pytest.mark.parametrize(
    "address",
    [
        "mysql+pymysql://user:SECRET pass word@host/db",
        "mysql://user:SECRET'\"`$(x)@host/db",
        "postgresql://host/db?user=u&password=SECRET%21word",
        "postgresql://u:SECRET%40word@host:5432/db?sslmode=require",
        "https://SECRETtoken@host/path",
        "https://:SECRETtoken@host",
        "https://user:SECRET/with/slashes@host",
        "https://host/path?sig=SECRETsignature&x=1",
        "--tracking-uri=https://user:SECRET word@host",
    ],
)
def test_nothing_of_an_addresss_secret_is_left_however_it_is_quoted(address: str) -> None:
    assert "SECRET" not in masked_argument(address)
    assert "host" in masked_argument(address)
    assert masked_argument(masked_argument(address)) == masked_argument(address)
    secret = address[address.index("SECRET") :].partition("@")[0].partition("&")[0]
    for quoted in (secret, unquote(secret), quote(secret, ""), quote_plus(secret)):
        assert "SECRET" not in without_secrets(f"access denied (using {quoted!r} or {quoted})", address)


@pytest.mark.parametrize(
    "text",
    [
        "fewstep search --recipe digits-demo --out runs/demo",
        "fewstep evaluate --schedule ddim/uniform-t-zero@3 --images 10",
        "fewstep flow-table --samplers heun@2,mine=dpmpp-2m/karras-zero@3 --guidance 1:8",
        "mlflow server --backend-store-uri sqlite:////srv/runs/mlflow.db --host 127.0.0.1 --port 5000",
        "preset:ddim/karras@3 by somebody@example.org",
        "http://127.0.0.1:5000/#/experiments/1?orderBy=start",
        "",
    ],
)
def test_other_text_is_left_as_it_is(text: str) -> None:
    assert without_secrets(text) == text
    assert without_secrets(without_secrets(text)) == text


def test_a_home_folder_is_a_tilde_and_nothing_else_is():
    home = str(Path.home())
    assert without_home(f"cannot read {home}/runs/x.npz: no file") == "cannot read ~/runs/x.npz: no file"
    assert without_home(f"'{home}' and {home}, {home}-other, {home}2") == f"'~' and ~, {home}-other, {home}2"


def test_what_is_kept_in_words_names_no_secret_and_no_person(tmp_path, evaluation):
    """In the tables' files, byte for byte, and in what the tracking server is told."""
    home, store = str(Path.home()), Store(tmp_path)
    error = f"{home}/model.bin: https://user:hunter22@host/x?token=abcdef12 refused"
    failed = replace(evaluation(0), status="failed", value=None, error=error)
    store.evaluations.append([failed, evaluation(1)])
    store.events.append([EventRecord("digits", 0, "note", error, failed.finished_at)])
    settings = f'{{"model": "{home}/models/mine"}}'
    store.studies.append([StudyRecord("digits", failed.finished_at, settings, f"{home}/models/mine", "m")])
    for column in (store.evaluations.records()[0].error, store.events.records()[0].message):
        assert column == "~/model.bin: https://***@host/x?token=*** refused"
    uri = default_tracking_uri(tmp_path / "runs")
    sync(store, "digits", uri)
    for path in (p for p in (tmp_path / "runs").rglob("*") if p.is_file()):
        held = path.read_bytes()
        assert b"hunter22" not in held
        assert f"{home}/models".encode() not in held
