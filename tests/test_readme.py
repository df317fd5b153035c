import re
import subprocess
import sys

from conftest import REPO

README = (REPO / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_first_example_prints_what_the_readme_shows(tmp_path):
    code, shown = blocks("python")[0], blocks("text")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 8
    code = code.replace("demo_out/cache", str(tmp_path / "cache"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=True)
    printed, expected = done.stdout.splitlines(), shown.splitlines()
    assert printed[0].split() == expected[0].split()
    assert len(printed) == len(expected)
    # Processors without bfloat16 give slightly other vectors, so a near tie may fall the other way.
    assert len({line.split()[2] for line in printed[1:]} & {line.split()[2] for line in expected[1:]}) >= 2


def test_commands_and_targets_named_exist():
    makefile = (REPO / "Makefile").read_text()
    for target in set(re.findall(r"make (\w+)", README)) - {"it"}:
        assert f"\n{target}:" in makefile, target
    known = subprocess.run(
        [sys.executable, "-m", "recotransfer", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for command in set(re.findall(r"^recotransfer (\w+)", README, re.MULTILINE)):
        assert f"\n  {command} " in known, command


def test_flags_named_exist():
    for command, flags in re.findall(r"`?(?:recotransfer )?(fit|recommend|similar)((?: [^`\n]*)?)", README):
        wanted = set(re.findall(r"(--[a-z-]+)", flags))
        if wanted:
            text = subprocess.run(
                [sys.executable, "-m", "recotransfer", command, "--help"], capture_output=True, text=True, check=True
            ).stdout
            assert not {flag for flag in wanted if flag not in text}
