"""Access control."""

import json
import re

import pytest
from api_server import JOBS, running

from wan_orchestration.cli import serve
from wan_orchestration.errors import BadInput
from wan_orchestration.settings.service import ApiSettings

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def outside(project):
    """A server with a token, reached from another machine."""
    settings = ApiSettings(token=TOKEN, hosts=["studio.example"], cors_origins=["https://pages.example"])
    with running(settings, "http://192.0.2.7:8000") as client:
        yield client


@pytest.mark.parametrize("path", [JOBS, f"{JOBS}/x", f"{JOBS}/x/media", "/metrics", "/readyz", "/openapi.json"])
def test_a_token_is_required(outside, path):
    for headers in ({}, {"authorization": f"Bearer {TOKEN}x"}, {"authorization": f"Basic {TOKEN}"}, {"cookie": "x=1"}):
        answer = outside.get(path, headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["content-type"] == "application/problem+json"
    assert outside.get(path, headers={"authorization": f"Bearer {TOKEN}"}).status_code in (200, 404)


def test_the_page_and_healthz_need_no_token(outside):
    for path in ("/", "/page/main.js", "/page/style.css", "/healthz"):
        assert outside.get(path).status_code == 200


def test_the_page_signs_in_with_a_cookie(outside):
    assert outside.post("/session", json={"token": "wrong"}).status_code == 401
    answer = outside.post("/session", json={"token": TOKEN})
    assert answer.status_code == 204
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and TOKEN not in cookie
    assert outside.get(JOBS).status_code == 200
    outside.delete("/session")
    assert outside.get(JOBS).status_code == 401


def test_without_a_token_only_loopback_is_answered(project):
    with running(ApiSettings(), "http://192.0.2.7:8000") as client:
        answer = client.get("/healthz")
        assert answer.status_code == 403 and "WAN_API_TOKEN" in answer.json()["detail"]


def test_serving_other_machines_requires_a_token(monkeypatch):
    monkeypatch.delenv("WAN_API_TOKEN", raising=False)
    for host in ("127.0.0.1", "::1", "localhost"):
        serve.check_host(host)
    for host in ("0.0.0.0", "::", "192.0.2.7", "studio.example"):
        with pytest.raises(BadInput, match="WAN_API_TOKEN"):
            serve.check_host(host)
    monkeypatch.setenv("WAN_API_TOKEN", TOKEN)
    serve.check_host("0.0.0.0")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "[::1", ""])
def test_unknown_host_names_are_refused(api, host):
    assert api.get(JOBS, headers={"host": host}).status_code == 400


def test_known_host_names_are_answered(api, outside):
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert api.get(JOBS, headers={"host": host}).status_code == 200
    assert outside.get("/healthz", headers={"host": "studio.example"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_pages_of_other_sites_are_refused(api, headers):
    assert api.get(JOBS, headers=headers).status_code == 403
    assert api.post(JOBS, files={"driving": b"x"}, headers=headers).status_code == 403
    assert "access-control-allow-origin" not in api.options(JOBS, headers=headers).headers


def test_its_own_page_is_allowed(api):
    own = {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}
    assert api.get(JOBS, headers=own).status_code == 200
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert api.get("/", headers=link).status_code == 200


def test_origins_can_be_allowed(outside):
    origin = {"origin": "https://pages.example"}
    preflight = outside.options(JOBS, headers={**origin, "access-control-request-method": "POST"})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://pages.example"
    assert outside.get(JOBS, headers={**origin, "authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_the_page_loads_from_this_server_only(api):
    answer = api.get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    sources = re.findall(r'(?:src|href)="([^"#]+)"', answer.text)
    assert sources and all(source.startswith("/page/") for source in sources)
    for source in sources:
        assert api.get(source).status_code == 200
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*src=)", answer.text), "the policy blocks it"
    assert api.get("/animate/nothing").headers["content-security-policy"] == policy
    assert "secret" not in json.dumps(api.get("/openapi.json").json()).lower()
