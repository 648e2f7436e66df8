"""JSON and YAML from outside: bounded, and errors name the file."""

import errno
import time

import pytest

from cellglot.inputs import InputError, digest_of, path_inside, read_json, read_yaml, reading
from cellglot.inputs.documents import parse_yaml


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{k: *a{i - 1}, l: *a{i - 1}}}\n" for i in range(1, 40))


@pytest.mark.parametrize("text", ["{", "", "[1]", "3", '"x"', "null", "[" * 200_000, '{"a":' * 200_000, "\0"])
def test_json_that_cannot_be_used_names_the_file(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        read_json(path)


def test_bytes_that_are_no_text_name_the_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": "\xff\xfe"}')
    with pytest.raises(InputError, match=r"config\.json.*UTF-8"):
        read_json(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(10 << 30)
    for read in (read_json, read_yaml):
        with pytest.raises(InputError, match=r"config\.json has 10,737,418,240 bytes"):
            read(path)


@pytest.mark.parametrize("text", [BOMB, MERGED, "a: &a [*a]\n", "[" * 5000, "a: [", "a: !!python/object:os.system {}"])
def test_yaml_that_cannot_be_used_is_refused_at_once(tmp_path, text):
    path, start = tmp_path / "settings.yaml", time.monotonic()
    path.write_text(text)
    with pytest.raises(InputError, match=r"settings\.yaml"):
        read_yaml(path)
    assert time.monotonic() - start < 2


def test_yaml_with_a_few_aliases_is_read(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}
    assert parse_yaml("3", "--set") == 3


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x", "a/../../x", "C:/x", "\\\\host\\x", "..\\x", "", None, 3, "a\0b", "~/../../x"]
)
def test_names_that_lead_out_of_a_folder(tmp_path, name):
    with pytest.raises(InputError, match="manifest names"):
        path_inside(tmp_path, name, "manifest")


def test_names_inside_of_a_folder(tmp_path):
    assert path_inside(tmp_path, "data/..a/x.y", "manifest") == tmp_path / "data" / "..a" / "x.y"


def test_errors_of_libraries_name_the_file_and_errors_that_do_pass(tmp_path):
    for error in (TypeError("bad header"), KeyError("x"), RuntimeError(""), OverflowError("too big"), MemoryError()):
        with (
            pytest.raises(InputError, match=r"^m\.safetensors: ") as raised,
            reading("m.safetensors", "copy it again"),
        ):
            raise error
        assert raised.value.__cause__ is error
    for error in (ValueError("m.safetensors is empty"), InputError("other"), OSError(errno.ENOSPC, "disk full")):
        with pytest.raises(type(error)) as raised, reading("m.safetensors"):
            raise error
        assert raised.value is error


def test_digests_are_of_names_and_contents(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("1")
    assert digest_of(tmp_path / "a") == digest_of(tmp_path / "b") != digest_of(tmp_path / "a" / "x")
    (tmp_path / "b" / "x").write_text("2")
    assert digest_of(tmp_path / "a") != digest_of(tmp_path / "b")
    (tmp_path / "b" / "x").rename(tmp_path / "b" / "y")
    (tmp_path / "b" / "y").write_text("1")
    assert digest_of(tmp_path / "a") != digest_of(tmp_path / "b")
