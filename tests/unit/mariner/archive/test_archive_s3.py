"""Signatures of requests to S3; the first ones are those of the examples in AWS's documentation."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest

from mariner.archive.s3 import sign_get
from mariner.errors import BadRequest

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "AWS_DEFAULT_REGION": "us-east-1",
}
NOW = datetime(2013, 5, 24, tzinfo=UTC)
BUCKET = "https://examplebucket.s3.amazonaws.com"


def signature(url: str, **environment: str) -> str:
    headers = sign_get(urlsplit(url), {**ENVIRONMENT, **environment}, NOW)
    return headers["Authorization"].partition("Signature=")[2]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("?lifecycle", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        ("?max-keys=2&prefix=J", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
        ("?prefix=J&max-keys=2", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ],
)
def test_examples_of_the_documentation_have_their_signatures(query: str, expected: str) -> None:
    assert signature(f"{BUCKET}/{query}") == expected


def test_the_headers_say_who_signed_what_and_when() -> None:
    assert sign_get(urlsplit(f"{BUCKET}/m.mar"), {**ENVIRONMENT, "AWS_SESSION_TOKEN": "temporary"}, NOW) == {
        "x-amz-content-sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "x-amz-date": "20130524T000000Z",
        "x-amz-security-token": "temporary",
        "Authorization": "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
        "SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token,"
        f"Signature={signature(f'{BUCKET}/m.mar', AWS_SESSION_TOKEN='temporary')}",
    }


def test_a_path_is_signed_the_same_however_it_is_escaped() -> None:
    assert signature(f"{BUCKET}/a%20b/m+1.mar") == signature(f"{BUCKET}/%61%20b/m%2B1.mar")
    assert signature(f"{BUCKET}/a/b.mar") != signature(f"{BUCKET}/a%252Fb.mar")


def test_the_secret_and_the_region_count() -> None:
    signatures = {
        signature(f"{BUCKET}/m.mar"),
        signature(f"{BUCKET}/m.mar", AWS_SECRET_ACCESS_KEY="other"),
        signature(f"{BUCKET}/m.mar", AWS_DEFAULT_REGION="eu-west-1"),
    }
    assert len(signatures) == 3


@pytest.mark.parametrize("same", ["https://ExampleBucket.s3.amazonaws.com:443/m.mar", f"{BUCKET}/m.mar#part"])
def test_the_host_is_signed_as_it_is_sent(same: str) -> None:
    assert signature(same) == signature(f"{BUCKET}/m.mar")
    assert signature(f"{BUCKET}:444/m.mar") != signature(same)


def test_missing_variables_are_named() -> None:
    with pytest.raises(BadRequest, match="needs AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION in the environment"):
        sign_get(urlsplit(f"{BUCKET}/m.mar"), {"AWS_ACCESS_KEY_ID": "x", "AWS_DEFAULT_REGION": ""})


def test_nothing_is_signed_for_plain_http() -> None:
    with pytest.raises(BadRequest, match="https"):
        sign_get(urlsplit("http://examplebucket.s3.amazonaws.com/m.mar"), ENVIRONMENT)
