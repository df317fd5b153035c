"""The README's lines run, print what they show, and name commands and flags that exist."""

import re

import pytest
from click.testing import CliRunner
from conftest import REPO

from recotransfer.cli.main import cli

README = (REPO / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


PRINTING = [code for code in blocks("python") if "print(" in code]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder for the vectors that the examples share."""
    return tmp_path_factory.mktemp("cache")


def said_by(*words):
    """What a command prints."""
    return CliRunner().invoke(cli, words, catch_exceptions=False).output


def test_the_first_screen_is_seven_lines_and_the_whole_a_thousand_words():
    assert len([line for line in PRINTING[0].splitlines() if line.strip()]) <= 7
    assert len(README.split()) <= 1000


@pytest.mark.parametrize("at", range(len(PRINTING)))
def test_examples_print_what_the_readme_shows(at, cache, monkeypatch, capsys):
    monkeypatch.chdir(REPO)
    exec(PRINTING[at].replace("demo_out/cache", str(cache)), {"__name__": "__main__"})
    printed, shown = capsys.readouterr().out.splitlines(), blocks("text")[at].splitlines()
    assert printed[0].split() == shown[0].split()
    assert len(printed) == len(shown)
    # Processors without bfloat16 give slightly other vectors, so a near tie may fall the other way.
    assert len({line.split()[2] for line in printed[1:]} & {line.split()[2] for line in shown[1:]}) >= 2
    # Weights learned from them differ by up to a hundredth, beside the rounding to a tenth.
    scores = [{tuple(line.split()[1:3]): float(line.split()[4]) for line in lines[1:]} for lines in (printed, shown)]
    for pair in scores[0].keys() & scores[1].keys():
        assert scores[0][pair] == pytest.approx(scores[1][pair], abs=0.15)


def test_the_lines_about_transfer_methods_build_a_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = next(code for code in blocks("python") if "FineTune" in code)
    exec(code.replace(".fit(items, events)", ""), {"__name__": "__main__"})


def test_commands_and_targets_named_exist():
    makefile = (REPO / "Makefile").read_text()
    for target in set(re.findall(r"make (\w+)", README)) - {"it"}:
        assert f"\n{target}:" in makefile, target
    known = said_by("--help")
    for command in set(re.findall(r"^recotransfer (\w+)", README, re.MULTILINE)):
        assert f"\n  {command} " in known, command


def test_flags_named_exist():
    for command, flags in re.findall(r"`?(?:recotransfer )?(fit|recommend|similar)((?: [^`\n]*)?)", README):
        wanted = set(re.findall(r"(--[a-z-]+)", flags))
        if wanted:
            text = said_by(command, "--help")
            assert not {flag for flag in wanted if flag not in text}
