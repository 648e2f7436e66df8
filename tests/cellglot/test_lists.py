"""Options that take several values: commas, repetition, and names that hold a comma."""

import pytest

from cellglot.lists import split_list, split_pairs, split_paths, split_settings, to_dict


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a,b", ["a", "b"]),
        ('"a, b",c', ["a, b", "c"]),
        ('c, "a, b"', ["c", "a, b"]),
        ("", [""]),
        ("a,,b", ["a", "", "b"]),
        ('"say ""x"", y"', ['say "x", y']),
    ],
)
def test_lists(text, parts):
    assert split_list(text) == parts


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("a=1,b=2", {"a": "1", "b": "2"}),
        ("genes=[1,2],total=vocabulary", {"genes": "[1,2]", "total": "vocabulary"}),
        ("a=x, y,b=z", {"a": "x, y", "b": "z"}),
        ("T cell, CD4=CL:1,B=CL:2", {"T cell, CD4": "CL:1", "B": "CL:2"}),
        ('"a, b=c",d=e', {"a, b": "c", "d": "e"}),
        ("a=b=c", {"a": "b=c"}),
    ],
)
def test_pairs(text, pairs):
    assert to_dict(split_pairs(text), "--rename") == pairs
    with pytest.raises(ValueError, match="--rename 'a': write it as KEY=VALUE"):
        to_dict(["a"], "--rename")


def test_settings_keep_commas_of_their_values():
    text = "data.template={name}, of {id}=x,trainer.max_steps=3,trainer.betas=[0.9, 0.95]"
    expected = ["data.template={name}, of {id}=x", "trainer.max_steps=3", "trainer.betas=[0.9, 0.95]"]
    assert split_settings(text) == expected


def test_paths_that_are_there_are_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b.h5ad").touch()
    assert split_paths("a,b.h5ad") == ["a,b.h5ad"] and split_paths("c.h5ad, d.h5ad") == ["c.h5ad", "d.h5ad"]
